"""What is told of code without running it."""

import io

import pytest

from port_server.cli import syntax_check
from port_server.runtime.syntax_check import names_of


def read(text):
    return set(names_of(text).read)


def test_what_is_bound_is_what_the_top_level_binds_by_whatever_statement():
    """Assignments, loops, imports, definitions, patterns: all of them, taken or not."""
    text = """
if False:
    a = 1
for b in []: pass
import os.path, sys as c
from math import pi as d
def e(inner): local = 1
class F: member = 1
with open("x") as g: pass
[h := 1 for i in []]
match 1:
    case {"k": j, **k}: pass
l: int = 1
"""
    assert names_of(text).bound == {*"abcdegFhjkl"} | {"os"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x + y", {"x", "y"}),
        ("x = 1", set()),
        ("x += 1", {"x"}),
        ("x.y.z[w]", {"x", "w"}),
        ("[a for a in b]", {"b"}),
        ("[a for a in a]", {"a"}),
        ("[b for a in c for b in a]", {"c"}),
        ("def f(a, *b, c=d, **e): g = a; return a + b + h", {"d", "h"}),
        ("lambda a: a + b", {"b"}),
        ("def f():\n  a = 1\n  def g(): return a + b\n  return g", {"b"}),
        ("def f():\n  global a\n  a = a + 1", {"a"}),
        ("def f(a):\n  def g():\n    global a\n    return a\n  return g", {"a"}),
        ("def f(a: B) -> C: pass", {"B", "C"}),
        ("@a\nclass D(b, metaclass=c):\n  def f(self): return self, e", {"a", "b", "c", "e"}),
        ("del x", {"x"}),
        ("f'{x!r:>{y}}'", {"x", "y"}),
        ("match x:\n  case A(b): b", {"x", "A", "b"}),
        ("return x", {"x"}),
        ("await x", {"x"}),
    ],
)
def test_what_is_read_is_what_is_looked_up_as_a_global(text, names):
    """At whatever depth, but never the locals of a function or a comprehension."""
    assert read(text) == names


def test_what_may_be_deleted_again_is_told():
    """A name that a `del` may have unbound."""
    assert names_of("x = y = 1\ndel x").deleted == {"x"}


def test_a_long_chain_of_operators_is_walked():
    """Deep trees do not end in a RecursionError of ours."""
    assert read("+".join(["x"] * 500)) == {"x"}


def frames(*texts):
    said = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "big") + text for text in said)


def test_questions_are_answered_in_turn_until_there_are_no_more():
    """Names, or the place and the message of what does not compile."""
    answers = io.BytesIO()
    syntax_check.serve(io.BytesIO(frames("x = y", "x = = y", "ü = 'x\0'")), answers)
    assert answers.getvalue().startswith(frames("names\nx\n\ny", "error\n1\n5\n6\ninvalid syntax"))
    assert b"null bytes" in answers.getvalue()


def test_code_that_the_server_takes_at_top_level_is_no_error():
    """`return`, `yield` and `await` outside of functions; `import *` beside them is explained."""
    assert syntax_check.answer("return 1").startswith("names")
    assert syntax_check.answer("for x in y: yield await x").startswith("names")
    assert "cannot be used together" in syntax_check.answer("from math import *\nreturn pi")


def test_what_is_nested_too_deep_is_an_error_and_no_end():
    """The parser's own limits."""
    assert syntax_check.answer("(" * 500 + ")" * 500).startswith("error")
