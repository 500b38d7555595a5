"""Source -> value: the last expression, return, yield, await; positions, caching, a quirk."""

import asyncio
import contextlib
import signal

import pytest

from port_server.runtime import sources
from port_server.runtime.snippet import (
    ASYNC_GENERATOR,
    COROUTINE,
    GENERATOR,
    PLAIN,
    Snippets,
    compile_snippet,
)


def run(text, **namespace):
    return compile_snippet(text).run(namespace)


VALUES = {
    "1 + 1": 2,
    "x = 1\nx + 1": 2,
    "x = 1": None,
    "": None,
    "# only a comment": None,
    "\n\n  \n5": 5,
    "'a string alone'": "a string alone",
    "if True:\n    1": None,
    "x = 1; x": 1,
    "(1,\n 2)": (1, 2),
    "from __future__ import annotations\ndef f(a: Nowhere): pass\nlist(f.__annotations__)": ["a"],
    "from __future__ import annotations\n[1]": [1],
    "x: int = 3\nx": 3,
    "lambda: (yield)\n4": 4,
    "def f():\n    return 1\nf()": 1,
    "def g():\n    yield 1\nlist(g())": [1],
    "async def h():\n    await h()\n7": 7,
    "class A:\n    def m(self):\n        return 2\nA().m()": 2,
    "return 5": 5,
    "return": None,
    "if 1:\n    return 2\n3": 2,
    "if 0:\n    return 2\n3": 3,
    "x: int = 3\nreturn x": 3,
    "x: int\nreturn 1": 1,
    "for i in range(5):\n    y: int = i\n    if i == 3:\n        return y": 3,
    "from __future__ import annotations\ndef f(a: Nowhere): pass\nreturn 8": 8,
    "import os.path\nreturn os.path.sep": "/",
    "from os import sep as s\nreturn s": "/",
    "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    return str(e)": "division by zero",
    "match {'a': 1, 'b': 2}:\n    case {'a': p, **q}:\n        return (p, q)": (1, {"b": 2}),
    "match [1, 2, 3]:\n    case [p, *q]:\n        return q": [2, 3],
    "with open('/dev/null') as f:\n    return f.read()": "",
    "a, (b, *c) = 1, (2, 3, 4)\nreturn [a, b, c]": [1, 2, [3, 4]],
    "def f():\n    return x\nx = 9\nreturn f()": 9,
    "x = 1\nclass A:\n    y = x\nreturn A.y": 1,
    "[last := i for i in range(3)]\nreturn last": 2,
    "x = 1\ndel x\nreturn 'x' in globals()": False,
    "x = 1\nx += 1\nreturn x": 2,
}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_the_value_is_that_of_the_last_expression_or_of_return(text, value):
    """Code that ends in a statement gives None; everything works that works in a file."""
    assert run(text) == value


@pytest.mark.parametrize("end", ["", "\nreturn 0"])
def test_names_land_in_the_namespace_with_and_without_return(end):
    """`return` runs the code as a function; what it defines is global all the same."""
    namespace = {}
    text = "import os\ndef f(): pass\nclass C: pass\nfor i in [1]: j = i\n(k := 2)\nx: int = 1"
    compile_snippet(text + end).run(namespace)
    assert {"os", "f", "C", "i", "j", "k", "x"} <= set(namespace)


def test_comprehension_variables_stay_in_the_comprehension():
    """They do not overwrite a name of the namespace, with `return` either."""
    assert run("[x for x in range(3)]\nreturn x", x="mine") == "mine"


KINDS = {
    "yield 1": GENERATOR,
    "x = yield": GENERATOR,
    "yield from [1]": GENERATOR,
    "for i in x:\n    yield i\nreturn 3": GENERATOR,
    "await x": COROUTINE,
    "async for i in x: pass": COROUTINE,
    "async with x: pass": COROUTINE,
    "[i async for i in x]": COROUTINE,
    "await x\nreturn 1": COROUTINE,
    "yield await x": ASYNC_GENERATOR,
    "async for i in x:\n    yield i": ASYNC_GENERATOR,
    "def f(): yield": PLAIN,
    "f = lambda: (yield)": PLAIN,
    "'yield await return'": PLAIN,
}


@pytest.mark.parametrize(("text", "kind"), KINDS.items())
def test_code_is_known_by_its_kind_before_it_runs(text, kind):
    """Only what stands at the top level counts."""
    assert compile_snippet(text).kind == kind


def test_async_code_and_generators_can_be_driven():
    """`run` gives the object that drives them; executors need no more than that."""
    assert asyncio.run(run("import asyncio\nawait asyncio.sleep(0)\n41 + 1")) == 42
    generator = run("yield 1\nyield 2\nreturn 'end'")
    assert [next(generator), next(generator)] == [1, 2]
    with pytest.raises(StopIteration) as end:
        next(generator)
    assert end.value.value == "end"

    async def collect():
        return [
            item async for item in run("import asyncio\nyield 1\nawait asyncio.sleep(0)\nyield 2")
        ]

    assert asyncio.run(collect()) == [1, 2]


def test_import_star_beside_return_is_explained():
    """Python's own words would speak of a function that the user did not write."""
    with pytest.raises(SyntaxError, match=r"together with `return`.*line 2") as caught:
        compile_snippet("from os import *\nreturn 1")
    assert caught.value.lineno == 1


BAD = {
    "x = 1\nx +": 2,
    "def f(:\n  pass": 1,
    "\n\nbreak": 3,
    "x = (1,\n\n": 1,
    "return 1\nnonlocal x": 2,
    "await x\nyield 1\nreturn 2": 3,
}


@pytest.mark.parametrize(("text", "line"), BAD.items())
def test_a_syntax_error_has_its_line_and_text(text, line):
    """Also where it is found only while the tree is compiled; the line is that of the file."""
    with pytest.raises(SyntaxError) as caught:
        compile_snippet(text, "lib/a.ex", 11)
    assert caught.value.filename == "lib/a.ex"
    if caught.value.lineno is not None:
        assert caught.value.lineno == line + 10
        assert caught.value.text is not None


@pytest.mark.parametrize("text", ["\0", "x = '\ud800'", "(" * 300, "-" * 200_000 + "1"])
def test_hostile_source_is_an_ordinary_exception(text):
    """Whatever compile() thinks of it, an Exception comes out, not a crash."""
    with contextlib.suppress(Exception, RecursionError):
        compile_snippet(text)


def test_lines_are_those_of_the_file():
    """A snippet that begins at line 17 of a file says so in its frames."""
    with pytest.raises(ZeroDivisionError) as caught:
        compile_snippet("x = 1\n1 / 0", "lib/a.ex", 17).run({})
    frame = caught.tb.tb_next
    while frame.tb_next:
        frame = frame.tb_next
    assert (frame.tb_frame.f_code.co_filename, frame.tb_lineno) == ("lib/a.ex", 18)


LOOP = "while True:\n    pass"
CAUGHT = "\nexcept Interrupted:\n    caught = True"


def indented(text, levels=1):
    return "\n".join(" " * 4 * levels + line for line in text.split("\n"))


LOOPS = {
    "on one line": f"try:\n    while True: pass{CAUGHT}",
    "on one line, finally": "try:\n    while True: pass\nfinally:\n    caught = True",
    "that counts": f"n = 1\ntry:\n    while n:\n        n += 1{CAUGHT}",
    "that counts, in with": (
        "import contextlib\n"
        "n = 1\n"
        "with contextlib.suppress(Interrupted):\n"
        "    while n: n += 1\n"
        "caught = True"
    ),
    "that calls": f"try:\n    while not int():\n        int(){CAUGHT}",
    "except": f"try:\n{indented(LOOP)}{CAUGHT}",
    "finally": (
        f"try:\n    try:\n{indented(LOOP, 2)}\n    finally:\n        cleaned = True{CAUGHT}\n"
        f"caught = cleaned"
    ),
    "a nested try": (
        f"try:\n    try:\n{indented(LOOP, 2)}\n    except ValueError:\n        pass{CAUGHT}"
    ),
    "with": (
        "class Caught:\n"
        "    def __enter__(self): pass\n"
        "    def __exit__(self, *error):\n"
        "        global caught\n"
        "        caught = True\n"
        "        return True\n"
        f"with Caught():\n{indented(LOOP)}"
    ),
    "with in a try": (
        f"import threading\ntry:\n    with threading.Lock():\n{indented(LOOP, 2)}{CAUGHT}"
    ),
    "in an if that is no question": f"try:\n    if True:\n{indented(LOOP, 2)}{CAUGHT}",
    "a loop in a loop": f"try:\n    while True:\n{indented(LOOP, 2)}{CAUGHT}",
    "behind a pass": f"try:\n    pass\n{indented(LOOP)}{CAUGHT}",
    "behind a text": f"try:\n    'text'\n{indented(LOOP)}{CAUGHT}",
    "with a condition": f"n = 1\ntry:\n    while n:\n        pass{CAUGHT}",
    "a for loop": f"try:\n    for _ in iter(int, 1):\n        pass{CAUGHT}",
    "in a function": (
        f"def f():\n    global caught\n    try:\n{indented(LOOP, 2)}\n"
        f"    except Interrupted:\n        caught = True\nf()"
    ),
    "in a handler": (
        f"try:\n    try:\n        1 / 0\n    except ZeroDivisionError:\n{indented(LOOP, 2)}{CAUGHT}"
    ),
    "in a finally": f"try:\n    try:\n        n = 1\n    finally:\n{indented(LOOP, 2)}{CAUGHT}",
    "in an else": (
        f"try:\n    try:\n        n = 1\n    except ValueError:\n        pass\n    else:\n"
        f"{indented(LOOP, 2)}{CAUGHT}"
    ),
}


@pytest.mark.parametrize("end", ["", "\nreturn 1"], ids=["module", "function"])
@pytest.mark.parametrize("where", LOOPS)
def test_a_signal_in_a_loop_that_opens_a_try_is_caught_by_it(where, end):
    """As Python compiles some of them, and others on other versions, it would be missed."""

    class RingError(Exception):
        pass

    def interrupt(*_):
        raise RingError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        namespace = {"Interrupted": RingError}
        snippet = compile_snippet(LOOPS[where] + end)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with contextlib.suppress(RingError):
            snippet.run(namespace)
        assert namespace["caught"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_loop_that_is_changed_for_that_does_the_same():
    """Its `else`, `break` and `continue` included."""
    text = (
        "seen = []\n"
        "try:\n"
        "    n = 0\n"
        "    while n < 6:\n"
        "        n += 1\n"
        "        if n == 2: continue\n"
        "        if n == 5: break\n"
        "        seen.append(n)\n"
        "    while n:\n"
        "        n -= 1\n"
        "    else:\n"
        "        seen.append('else')\n"
        "    while n > 0: seen.append('never')\n"
        "finally: pass\n"
        "seen"
    )
    assert compile_snippet(text).run({}) == [1, 3, 4, "else"]


def test_the_cache_is_bounded_and_forgets_the_sources_too():
    """Code built from data does not pile up, nor do its lines."""
    snippets = Snippets(10)
    before = len(sources._sources)
    for number in range(100):
        snippets.compile(str(number), f"{number} + 1000")
    assert len(sources._sources) - before == 10
    assert snippets.get("0") is None
    assert snippets.get("99").run({}) == 1099


def test_the_same_code_has_the_same_name_and_other_code_another():
    """So the lines in a traceback are never those of another snippet."""
    names = [compile_snippet(text).source.file for text in ("1/0", "1/0", "2/0")]
    assert names[0] == names[1] != names[2]
