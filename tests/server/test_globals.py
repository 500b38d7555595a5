"""`return => globals`: beside the value comes what the code has bound at its top level."""

import pytest
from raw_client import Port

from port_server.etf import Atom

GLOBALS = {"return": Atom("globals")}


@pytest.fixture
def port():
    with Port(init={"heartbeat_interval_ms": 0}) as port:
        yield port
        port.settled(tasks=0, queue=0)


def bound(port, code, given=None, **options):
    """Give the value and the globals; the objects among them as text, released."""
    kind, (value, names), *ids = port.reply(port.eval(code, given, **GLOBALS, **options))
    assert kind == "ok"
    if ids:
        port.tell(Atom("release"), ids[0])
    return value, {
        name.decode(): item["repr"].decode() if isinstance(item, dict) and "repr" in item else item
        for name, item in names.items()
    }


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x = 1", {"x": 1}),
        ("x, (y, *z) = 1, (2, 3)", {"x": 1, "y": 2, "z": [3]}),
        ("x: int = 1\ny: int", {"x": 1}),
        ("x = 1\nx += 1", {"x": 2}),
        ("for n in range(3): pass", {"n": 2}),
        ("[m := n for n in range(3)]", {"m": 2}),
        ("if True:\n  x = 1\nelse:\n  y = 2", {"x": 1}),
        ("match {'a': 1, 'b': 2}:\n  case {'a': x, **y}: pass", {"x": 1, "y": {b"b": 2}}),
        ("x = 1\ndel x", {}),
        ("try: 1 / 0\nexcept Exception as error: pass", {}),
        ("def f():\n  x = 1\nf()\ndel f", {}),
        ("x = 5\nreturn x", {"x": 5}),
        ("import asyncio\nx = await asyncio.sleep(0, 7)\ndel asyncio", {"x": 7}),
        ("__secret__ = 1\n_own = 2\n__all = 3", {"_own": 2, "__all": 3}),
        ("1 + 1", {}),
        ("", {}),
    ],
)
def test_what_the_top_level_binds_comes_and_nothing_else(port, code, names):
    assert bound(port, code, {"given": 1})[1] == names


def test_the_value_comes_as_ever(port):
    assert bound(port, "x = 20\nx + 1") == (21, {"x": 20})
    assert bound(port, "import asyncio\nx = asyncio.sleep(0, 3)\ndel asyncio\nx")[0] == 3


def test_globals_that_were_given_come_where_they_are_bound_anew(port):
    code = "same = same\ncount += 1"
    assert bound(port, code, {"same": 1, "count": 2, "unused": 3}) == (
        None,
        {"same": 1, "count": 3},
    )


def test_what_has_no_term_is_an_object(port):
    """Modules, functions and classes included: who passes them back has them again."""
    _value, names = bound(port, "import math as m\ndef f(): pass\nclass C: pass\no = object()")
    assert sorted(names) == ["C", "f", "m", "o"]
    assert names["m"].startswith("<module 'math'")
    assert names["C"] == "<class '__main__.C'>"
    port.settled(objects=0)


def test_what_comes_as_an_object_goes_back_as_it_was(port):
    _ok, (_value, names), ids = port.reply(port.eval("def f(): return 42", **GLOBALS))
    assert port.value(port.eval("f()", {"f": names[b"f"]})) == 42
    port.tell(Atom("release"), ids)
    port.settled(objects=0)


def test_a_value_that_cannot_be_written_is_an_object_and_spoils_nothing(port):
    code = "x = []\nx.append(x)\ny = {1: 1, '1': object()}\nz = '\\ud800'\nw = [object()]\n5"
    kind, (value, names), ids = port.reply(port.eval(code, **GLOBALS))
    assert (kind, value) == ("ok", 5)
    assert names[b"x"]["repr"].startswith(b"[[[")
    assert names[b"z"]["type"] == b"str"
    assert len(names[b"w"]) == 1
    # One for each handle that came, and none left over of the attempts before.
    assert len(ids) == 4
    port.tell(Atom("release"), ids)
    port.settled(objects=0)


def test_a_value_of_the_request_that_cannot_be_written_is_an_error(port):
    error = port.error(port.eval("x = []\nx.append(x)\nx", **GLOBALS))
    assert error["kind"] == "encode"
    assert error["message"].startswith(b"result[0]")
    port.settled(objects=0)


def test_all_together_are_held_to_the_limits_of_a_reply():
    with Port(init={"heartbeat_interval_ms": 0, "max_frame_bytes": 10_000}) as port:
        # Too large for a frame: an object. Too large only together: an error that says so.
        assert bound(port, "x = bytes(20_000)")[1]["x"].startswith("b'")
        error = port.error(port.eval("x = y = bytes(6_000)", **GLOBALS))
        assert error["kind"] == "encode"
        assert b"max_frame_bytes" in error["message"]
        port.settled(objects=0)


@pytest.mark.parametrize("head", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
def test_a_session_gives_what_this_request_has_bound(port, head):
    port.tell(Atom("open_session"), port.new_id(), b"s")
    assert bound(port, head + "x = 1; y = 2", session=b"s")[1].items() >= {"x": 1, "y": 2}.items()
    value, names = bound(port, head + "y = x + y\ny", session=b"s")
    assert (value, names["y"], "x" in names) == (3, 3, False)
    assert port.value(port.eval("y", session=b"s")) == 3


@pytest.mark.parametrize("head", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
def test_nothing_is_kept_of_a_namespace_that_was_returned(head):
    """What was not returned is dropped with the request, whose output its `__del__` is."""
    code = "class C:\n  def __del__(self): print('dropped')"
    with Port(init={"heartbeat_interval_ms": 0, "init_code": code}) as port:
        name = port.eval(head + "__hidden__ = C()\nx = 1", **GLOBALS)
        assert port.reply(name) == ("output", Atom("stdout"), b"dropped\n")
        assert port.value(name)[1][b"x"] == 1


def test_an_error_is_an_error_and_brings_no_globals(port):
    for code in ("x = object()\n1 / 0", "x = object()\nimport asyncio\nawait asyncio.sleep(1 / 0)"):
        assert port.error(port.eval(code, **GLOBALS))["type"] == b"ZeroDivisionError"
    port.settled(objects=0)


def test_calls_and_streams_have_no_globals(port):
    for name in (
        port.call("math:sqrt", [4.0], **GLOBALS),
        port.eval("yield 1", stream=True, credit=9, **GLOBALS),
    ):
        error = port.error(name)
        assert error["kind"] == "protocol"
        assert b"globals" in error["message"]
