"""Exceptions described: what Python would print, without the server's own frames."""

import linecache

import pytest

from port_server.etf import encode
from port_server.runtime import sources
from port_server.runtime.failure import describe_exception, type_name
from port_server.runtime.snippet import compile_snippet
from port_server.settings import Settings

SETTINGS = Settings()


def describe(text, settings=SETTINGS, **where):
    try:
        compile_snippet(text, **where).run({"__name__": "__main__"})
    except BaseException as error:
        return describe_exception(error.with_traceback(error.__traceback__.tb_next), settings)
    pytest.fail("nothing was raised")


def test_the_traceback_is_what_python_would_print():
    """File, line, function, source; outermost first; nothing of the server."""
    error = describe("def f(a):\n    return 1 / a\nf(0)", file="lib/a.ex", line=5)
    assert (error["kind"], error["type"], error["message"]) == (
        "python",
        "ZeroDivisionError",
        "division by zero",
    )
    assert [tuple(frame.values()) for frame in error["frames"]] == [
        ("lib/a.ex", 7, "<module>", "f(0)"),
        ("lib/a.ex", 6, "f", "return 1 / a"),
    ]
    assert error["traceback"].startswith(
        'Traceback (most recent call last):\n  File "lib/a.ex", line 7, in <module>\n    f(0)\n'
    )
    assert "port_server" not in error["traceback"]


def test_causes_contexts_groups_and_notes_are_in_the_traceback():
    """All that Python prints is there."""
    text = describe("try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('v') from e")
    assert "direct cause" in text["traceback"]
    assert text["frames"][-1]["line"] == 4
    assert "During handling" in describe("try:\n    a\nexcept NameError:\n    b")["traceback"]
    note = describe("e = ValueError('v')\ne.add_note('mind the gap')\nraise e")
    assert "mind the gap" in note["traceback"]
    assert note["message"] == "v"
    group = describe("raise ExceptionGroup('g', [ValueError(1), TypeError(2)])")
    assert "TypeError: 2" in group["traceback"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class Own(BaseException): pass\nraise Own('x')", "Own"),
        ("import json; json.loads('{')", "json.decoder.JSONDecodeError"),
        ("class A:\n    class B(Exception): pass\nraise A.B", "A.B"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_every_kind_of_exception_is_described(text, name):
    """Types are named as Python prints them."""
    assert describe(text)["type"] == name


def test_lines_of_exec_are_not_those_of_the_first_line_of_python(monkeypatch):
    """From 3.13 on Python puts the text of `python -c` where tracebacks look for `<string>`."""
    entry = (8, None, ["serve()\n"], "<string>")
    monkeypatch.setitem(linecache.cache, "<string>", entry)
    monkeypatch.setattr(linecache, "_interactive_cache", {"<string>": entry}, raising=False)
    sources.prepare(linecache)
    assert "serve()" not in describe("exec('1/0')")["traceback"]
    assert not linecache._interactive_cache


def test_a_syntax_error_has_a_frame():
    """Its file and line are where a program finds them, not only in the text."""
    with pytest.raises(SyntaxError) as caught:
        compile_snippet("x = 1\nx +", "lib/a.ex", 3)
    error = describe_exception(caught.value.with_traceback(None), SETTINGS)
    assert error["frames"] == [
        {"file": "lib/a.ex", "line": 4, "function": "<module>", "source": "x +"}
    ]
    assert 'File "lib/a.ex", line 4' in error["traceback"]


HOSTILE = {
    "str raises": "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
    "str is no string": "class E(Exception):\n    def __str__(self): return 3\nraise E",
    "surrogates": "raise ValueError('\\ud800')",
    "huge": "raise ValueError('x' * 10_000_000)",
    "module is a number": "class E(Exception): __module__ = 3\nraise E",
    "strange notes": "e = ValueError()\ne.__notes__ = 3\nraise e",
    "cyclic cause": "a = ValueError()\nb = ValueError()\na.__cause__ = b\nb.__cause__ = a\nraise a",
    "its module raises": "class M(type):\n    __module__ = property(lambda cls: 1 / 0)\n"
    "class E(Exception, metaclass=M): pass\nraise E",
    "its class hides all": "class M(type):\n    def __getattribute__(cls, name): 1 / 0\n"
    "class E(Exception, metaclass=M): pass\nraise E",
    "its class raises": "class E(Exception):\n    __class__ = property(lambda e: 1 / 0)\nraise E",
    "its name is no text": "class E(Exception): pass\nE.__qualname__ = '\\udcff'\nraise E",
    "its name is strange": "class N(str):\n    def __format__(self, how): 1 / 0\n"
    "class E(Exception): pass\nE.__module__ = N('a')\nraise E",
    "str exits": "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
    "file name with surrogates": "exec(compile('1/0', '\\udcff', 'exec'))",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_exception_is_described_all_the_same(text):
    """And the description can be written on the wire, in bounded size."""
    error = describe(text)
    assert len(encode(error)) < 500_000
    assert error["type"]


def test_frames_and_texts_are_bounded():
    """A RecursionError lists its ends, not a thousand equal frames."""
    error = describe("def f(): f()\nf()", SETTINGS.replace(max_error_frames=10))
    assert len(error["frames"]) == 10
    assert error["frames"][0]["line"] == 2
    small = describe(
        "raise ValueError('a' * 5000 + 'b')", SETTINGS.replace(max_error_text_chars=100)
    )
    assert len(small["message"]) < 200
    assert small["message"].endswith("b")


def test_a_class_inside_main_prints_without_its_module():
    """As in a script."""
    assert type_name(ValueError()) == "ValueError"
