"""Fresh namespaces, and source lines where Python looks for them."""

import inspect
import linecache
import subprocess
import sys
import traceback
import types
from contextvars import ContextVar

import pytest

from port_server.etf import Atom
from port_server.runtime.namespace import NamespaceError, Namespaces
from port_server.runtime.snippet import compile_snippet


def test_a_namespace_is_fresh_and_holds_what_was_given():
    """Nothing of one request is seen by the next; keys are exact strings whatever they came as."""
    namespaces = Namespaces()
    snippet = compile_snippet("1")
    first = namespaces.fresh(snippet, {Atom("a"): 1, "b": 2})
    first["leftover"] = 3
    second = namespaces.fresh(snippet, {})
    assert (first["a"], first["b"]) == (1, 2)
    assert "leftover" not in second
    assert "a" not in second
    assert all(type(key) is str for key in first)
    assert second["__name__"] == "__main__"


@pytest.mark.parametrize("key", ["not a name", "1x", "", 7, None, b"not a name", b"\xff", (1,)])
def test_a_global_that_cannot_be_a_name_is_named(key):
    """The error says which key, and what keys are."""
    with pytest.raises(NamespaceError, match="Python identifiers"):
        Namespaces().fresh(compile_snippet("1"), {key: 1})


def test_init_code_is_seen_by_every_namespace():
    """Names are, and a request may hide them for itself alone."""
    namespaces = Namespaces()
    init = compile_snippet("base = 40\ndef f(): return base")
    namespace = namespaces.fresh(init, {})
    init.run(namespace)
    namespaces.adopt(namespace)
    snippet = compile_snippet("f() + base")
    assert snippet.run(namespaces.fresh(snippet, {"base": 1})) == 41
    assert snippet.run(namespaces.fresh(snippet, {})) == 80


def test_user_code_can_print_its_own_traceback_with_lines():
    """Linecache finds the lines of a file that does not exist through `__loader__`."""
    linecache.clearcache()
    snippet = compile_snippet("1 / 0", "nowhere/a.ex", 5)
    linecache.cache.pop("nowhere/a.ex", None)
    with pytest.raises(ZeroDivisionError) as caught:
        snippet.run(Namespaces().fresh(snippet, {}))
    text = "".join(traceback.format_exception(caught.value))
    assert 'File "nowhere/a.ex", line 5' in text
    assert "    1 / 0\n" in text


def test_several_snippets_of_one_file_merge_by_line():
    """Two sigils of one module are one source, each at its place."""
    compile_snippet("a = 1\nb = 2", "merged.ex", 3)
    source = compile_snippet("c = 3", "merged.ex", 10).source
    compile_snippet("d = 4", "merged.ex", 1)
    lines = source.lines()
    assert (lines[0], lines[2], lines[3], lines[9]) == ("d = 4\n", "a = 1\n", "b = 2\n", "c = 3\n")
    assert len(lines) == 10
    assert lines[5] == "\n"


def test_inspect_finds_the_source_of_a_function():
    """What decorators of numba or torch ask for is there."""
    snippet = compile_snippet("def f():\n    return 1", "inspected.ex", 4)
    namespace = Namespaces().fresh(snippet, {})
    snippet.run(namespace)
    assert inspect.getsource(namespace["f"]) == "def f():\n    return 1\n"


def test_two_spellings_of_one_identifier_are_refused_every_time():
    """Python reads both µ as one name, so neither value may be dropped in silence, nor later."""
    namespaces, snippet = Namespaces(), compile_snippet("1")
    assert namespaces.fresh(snippet, {"\u00b5": 1})["\u03bc"] == 1
    for _ in range(2):
        with pytest.raises(NamespaceError, match="one name in Python"):
            namespaces.fresh(snippet, {"\u00b5": 1, "\u03bc": 2})


def test_two_odd_spellings_of_one_identifier_are_refused_too():
    """Neither need be the one that Python writes, and keys may be binaries."""
    for values in (
        {"\u00aa": 1, "\u1d43": 2},
        {b"a": 1, "\u00aa".encode(): 2},
        {Atom("\u00aa"): 1, b"a": 2},
    ):
        with pytest.raises(NamespaceError, match="one name in Python"):
            Namespaces().fresh(compile_snippet("1"), values)


def test_a_keyword_is_refused_by_name():
    """A value that no code could reach is a mistake, and is called one."""
    with pytest.raises(NamespaceError, match="class"):
        Namespaces().fresh(compile_snippet("1"), {"class": 1})


def test_a_closed_session_that_outlives_its_module_says_nothing():
    """Python takes modules apart when it ends, and drops what is left of a session after that."""
    code = (
        "import sys\n"
        "from port_server.runtime import namespace\n"
        "sys.kept = namespace\n"
        "namespace.kept = namespace.Closed({'x': 1})\n"
        "print('left')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert (ended.stdout, ended.stderr) == ("left\n", "")


def test_a_request_leaves_no_context_in_a_session_that_was_opened_anew():
    """In a thread it may end after its session was closed and opened."""
    variable = ContextVar("variable")
    namespaces = Namespaces()
    namespaces.open(b"one")
    session = namespaces.find(b"one")
    request = types.SimpleNamespace()
    session.enter(request).run(variable.set, 1)
    namespaces.close(b"one")
    namespaces.open(b"one")
    session.leave(request)
    assert variable not in namespaces.find(b"one").enter(request)
