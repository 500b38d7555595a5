"""Objects through a real server: what has no counterpart stays in Python, a handle travels."""

import re

import pytest
from port_client import TOKEN, Client, atoms

from port_server.etf import Atom, Struct

HANDLE = "Elixir.PyPort.Object"
# The objects that are held, as the server itself counts them.
COUNT = """
import gc
from port_server.runtime.objects import Objects
sum(len(table) for table in gc.get_objects() if type(table) is Objects)
"""


@pytest.fixture
def server():
    with Client() as client:
        yield client


def test_a_value_without_counterpart_comes_back_as_a_handle(server):
    """The reply tells by its arity that handles are inside, and lists their ids."""
    ok, _id, handle, ids = server.eval("object()")
    assert ok == "ok"
    assert type(handle) is Struct
    assert handle.module == HANDLE
    assert handle["token"] == TOKEN.encode()
    assert handle["type"] == b"object"
    assert handle["repr"].startswith(b"<object object at 0x")
    assert ids == [handle["id"]]
    assert set(handle) == {"server", "token", "id", "type", "repr", "ref"}


def test_a_plain_value_has_a_plain_reply(server):
    """Three elements, as ever."""
    assert len(server.eval("1 + 1")) == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("(x for x in [1])", b"generator"),
        ("import math; math", b"module"),
        ("def f(): pass\nf", b"function"),
        ("class A: pass\nA", b"type"),
        ("class A: pass\nA()", b"A"),
        ("len", b"builtin_function_or_method"),
        ("1j", b"complex"),
        ("import re; re.compile('a')", b"re.Pattern"),
        ("import threading; threading.Lock()", b"_thread.lock"),
        ("open('/dev/null')", b"_io.TextIOWrapper"),
        ("import asyncio; asyncio.Queue()", b"asyncio.queues.Queue"),
        ("ValueError('no')", b"ValueError"),
        ("iter([])", b"list_iterator"),
        ("...", b"ellipsis"),
    ],
)
def test_anything_can_come_back(server, code, kind):
    """Whatever it is, its handle says its type."""
    assert server.value(code)["type"] == kind


def test_objects_stand_inside_of_containers_too(server):
    """Each has an id of its own, the same object twice as well."""
    _ok, _id, value, ids = server.eval("o = object()\n{'a': [o, 1], 'b': (o,), 'c': {o}}")
    handles = [value[b"a"][0], value[b"b"][0], *value[b"c"]]
    assert [handle["id"] for handle in handles] == ids
    assert len(set(ids)) == 3


def test_a_handle_is_the_very_same_object(server):
    """In globals, however deep, in arguments and in keyword arguments, also as bytes."""
    handle = server.value("import sys\nsys.kept = o = object()\no")
    code = "import sys\na is sys.kept and [*b[0].values()][0][0] is sys.kept"
    as_bytes = {"binary_as": Atom("bytes")}
    assert server.value(code, {"a": handle, "b": [{"x": (handle,)}]}) is True
    assert server.value(code, {"a": handle, "b": [{"x": (handle,)}]}, **as_bytes)
    assert server.call("operator:is_", [handle, handle])[2] is True
    assert server.call("builtins:dict", [], {"a": handle})[2][b"a"]["type"] == b"object"


def test_methods_are_called_without_eval_strings(server):
    """`{Handle, Name}` names an attribute, dots included; a handle alone is called itself."""
    handle = server.value("[3, 1, 2]", **{"return": Atom("object")})
    assert server.call((handle, "__len__"))[2] == 3
    assert server.call((handle, "sort"), [], {"reverse": True})[2] is None
    assert server.call((handle, Atom("copy")))[2] == [3, 2, 1]
    assert server.call("builtins:getattr", [handle, "pop"])[2]["type"] == (
        b"builtin_function_or_method"
    )
    assert server.call("operator:getitem", [handle, 0])[2] == 3
    adder = server.value("lambda a, b=0: a + b")
    assert server.call(adder, [1], {"b": 2})[2] == 3
    holder = server.value("type('Holder', (), {'a': type('A', (), {'b': len})})")
    assert server.call((holder, "a.b"), ["four"])[2] == 4


def test_a_handle_of_a_str_is_no_target_by_name(server):
    """What the object is does not change what a handle as a target means: it is called."""
    handle = server.value("'math:sqrt'", **{"return": Atom("object")})
    assert server.call(handle, [9.0])[2]["type"] == b"TypeError"
    handle = server.value("(1, 'x')", **{"return": Atom("object")})
    assert server.call((handle, "index"), ["x"])[2] == 1
    assert server.call(handle)[2]["message"] == b"'tuple' object is not callable"


@pytest.mark.parametrize(
    "target", [5, None, [], (1, "a"), ({}, "a"), {}, (Struct("Elixir.URI", {}), "a")]
)
def test_a_target_of_the_wrong_shape_is_told_apart(server, target):
    """The error says what a target is."""
    reply = server.call(target)
    assert reply[0] == "error"
    assert reply[2]["kind"] == "protocol"
    assert b"object" in reply[2]["message"]


@pytest.mark.parametrize("name", ["", ".", "a.", 5, ["a"]])
def test_a_name_of_the_wrong_shape_is_told_apart(server, name):
    """So does the one about an attribute's name."""
    handle = server.value("object()")
    assert server.call((handle, name))[2]["kind"] == "protocol"


def test_an_attribute_that_is_missing_is_pythons_own_error(server):
    """With its class and its words."""
    handle = server.value("object()")
    error = server.call((handle, "nothing"))[2]
    assert error["type"] == b"AttributeError"
    assert error["message"] == b"'object' object has no attribute 'nothing'"


def test_any_value_can_be_asked_for_as_an_object(server):
    """`return: object` forces it, for None as well."""
    for code, kind in [("1", b"int"), ("None", b"NoneType"), ("{'a': 1}", b"dict")]:
        ok, _id, handle, ids = server.eval(code, **{"return": Atom("object")})
        assert (ok, handle["type"], ids) == ("ok", kind, [handle["id"]])
    assert server.call("builtins:list", [[1]], **{"return": Atom("object")})[2]["type"] == b"list"
    assert server.value("1", **{"return": Atom("value")}) == 1


def test_an_unknown_way_to_return_is_an_error(server):
    """It names the ones there are."""
    error = server.error("1", **{"return": Atom("handle")})
    assert error["kind"] == "protocol"
    assert b"return is value, object or globals" in error["message"]


@pytest.mark.parametrize(
    "body",
    ["raise ValueError", "raise SystemExit", "return 5", "time.sleep(20)", "print('asked')"],
)
@pytest.mark.parametrize("code", ["A()", "await asyncio.sleep(0); A()", "[A(), {A(): A()}]"])
def test_no_repr_of_user_code_is_asked(server, body, code):
    """So none can cost its request the time, or fail it; and none prints."""
    define = f"import asyncio, time\nclass A:\n  def __repr__(self): {body}\n"
    request = server.send_eval(define + code, options={"return": Atom("object")})
    handle = server.reply(request)[2]
    assert re.search(rb"<__main__.A object at 0x[0-9a-f]+>", handle["repr"])
    assert server.output(request) == []


def test_a_hostile_metaclass_is_survived(server):
    """Even the type's name may be code."""
    handle = server.value(
        "class M(type):\n"
        "  @property\n"
        "  def __module__(cls): raise OSError\n"
        "class A(metaclass=M): pass\n"
        "A()"
    )
    assert handle["type"] == b"A"
    assert b"A object at 0x" in handle["repr"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("list(range(10**7))", b"[0, 1, 2, 3, 4,"),
        ("'a' * 10**8", b"'aaaaaa"),
        ("10**10000", b"<int of 33220 bits>"),
        ("a = []\na.append(a)\na", "[[[[[…]]]]]".encode()),
        ("{'k': {'l': (1,)}, 's': {2}}", b"{'k': {'l': (1,)}, 's': {2}}"),
        ("[[0] * 10**6] * 10**6", b"[[0, 0, 0"),
    ],
)
def test_the_repr_of_a_large_container_costs_what_it_shows(server, code, text):
    """Not what the container is worth."""
    handle = server.value(code, **{"return": Atom("object")})
    assert handle["repr"].startswith(text)
    assert len(handle["repr"].decode()) <= 200


def test_a_released_object_is_gone(server):
    """Its `__del__` runs then, and a handle of it says what happened."""
    handle = server.value(
        "import sys\nclass A:\n  def __del__(self): sys.gone = True\nsys.gone = False\nA()"
    )
    assert server.value("import sys; sys.gone") is False
    before = server.value(COUNT)
    server.tell(Atom("release"), [handle["id"], 10**9, -1])
    assert server.value(COUNT) == before - 1
    assert server.value("import sys; sys.gone") is True
    error = server.error("x", {"x": [handle]})
    assert error["kind"] == "decode"
    assert error["message"].startswith(b'globals["x"][0]: the object 1 (A) was released')
    reply = server.call((handle, "f"))
    assert b"was released" in reply[2]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"token": "another"},
        {"token": None},
        {"id": "1"},
        {"id": True},
        {"id": 1.0},
        {},
        {"type": 5, "token": [{}]},
    ],
)
def test_an_invented_handle_is_refused(server, fields):
    """A handle of another server, or made by hand, is one clear error and harms nothing."""
    handle = server.value("object()")
    invented = Struct(HANDLE, {**(handle if fields else {}), **atoms(fields)})
    error = server.error("x", {"x": invented})
    assert error["kind"] == "decode"
    assert b"belongs to another server" in error["message"]
    assert server.call(invented)[0] == "error"
    assert server.value("x is not None", {"x": handle}) is True


def test_nothing_is_kept_of_a_reply_that_failed(server):
    """Whether encoding fails half-way, or the reply is too large, or a conversion raises."""
    before = server.value(COUNT)
    a_cycle = "a = [object() for _ in range(100)]\na.append(a)\na"
    assert server.error(a_cycle)["kind"] == "encode"
    assert server.error("[object(), '\\ud800']")["kind"] == "encode"
    assert server.error(
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n  x: int = 1\n"
        "d = D()\ndel d.x\nD.x = property(lambda self: 1 / 0)\n[object(), d]"
    )
    assert server.error("o = object()\n1 / 0")["type"] == b"ZeroDivisionError"
    assert server.value(COUNT) == before


def test_the_number_of_objects_is_limited():
    """The error says so, and keeps nothing of the reply it belongs to."""
    with Client({"max_objects": 10}) as server:
        handles = server.value("[object() for _ in range(8)]")
        error = server.error("[object() for _ in range(3)]")
        assert error["kind"] == "encode"
        assert b"result[2]: this object would be object 11" in error["message"]
        assert b"max_objects" in error["message"]
        assert server.value(COUNT) == 8
        server.tell(Atom("release"), [handles[0]["id"]])
        assert server.value("[object() for _ in range(3)]")


def test_ten_thousand_objects_come_and_go(server):
    """What is released is not kept anywhere."""
    before = server.value(COUNT)
    for _ in range(10):
        ids = server.eval("[object() for _ in range(1000)]")[3]
        assert len(ids) == 1000
        server.tell(Atom("release"), ids)
    assert server.value(COUNT) == before


def test_a_malformed_release_is_logged_and_ignored(server):
    """It carries no id that could be answered."""
    server.tell(Atom("release"), [Atom("a")])
    assert server.value("1") == 1
    assert "release takes a list of integers" in server.end()


def test_a_server_without_init_has_objects_as_well():
    """Whoever pipes frames by hand names no token."""
    with Client(init=False) as server:
        handle = server.value("object()")
        assert (handle["token"], handle["server"]) == (b"", None)
        assert server.value("type(x).__name__", {"x": handle}) == b"object"


def test_a_released_object_is_gone_when_its_method_was_the_last_that_was_called(server):
    """Also when nobody asks for anything afterwards."""
    code = "class C:\n  def m(self): pass\n  def __del__(self): print('gone')\nC()"
    _ok, _id, handle, ids = server.eval(code)
    server.call((handle, "m"))
    server.tell(Atom("release"), ids)
    server.status()
    assert "gone" in server.stderr()


def test_a_child_that_is_forked_when_an_object_goes_ends_there(server):
    """No request runs then, at whose end a child would be noticed."""
    code = "import builtins, os\nclass C:\n  def __del__(self): builtins.child = os.fork()\nC()"
    _ok, _id, _handle, ids = server.eval(code)
    server.tell(Atom("release"), ids)
    assert server.value("os.waitpid(child, 0)[1]", {"os": server.eval("import os\nos")[2]}) == 0
