"""Context variables: each request has its own, a session keeps them."""

import itertools
import sys

import pytest
from raw_client import WITHOUT_C, Port

from port_server.etf import Atom, Struct

INIT = """
import asyncio, contextvars, decimal, sys, types
user = contextvars.ContextVar("user", default="nobody")
site = contextvars.ContextVar("site")
site.set("ours")
decimal.getcontext().prec = 30
def bind(name):
    user.set(name)
    decimal.getcontext().prec = 5
def found():
    return [user.get(), site.get(), decimal.getcontext().prec]
class Binds:
    def __del__(self):
        bind("anna")
    def __await__(self):
        bind("anna")
        return iter(())
m = types.ModuleType("m")
m.bind, m.found = bind, found
sys.modules["m"] = m
"""
NOTHING = [b"nobody", b"ours", 30]
BOUND = [b"anna", b"ours", 5]


@pytest.fixture(scope="module", params=["", WITHOUT_C], ids=["in C", "in Python"])
def server(request):
    init = {"heartbeat_interval_ms": 0, "init_code": INIT}
    with Port(init=init, prelude=request.param) as port:
        yield port


@pytest.fixture
def port(server):
    yield server
    server.settled(streams=0, tasks=0, calls=0, queue=0)


numbers = itertools.count()


@pytest.fixture
def session(port):
    request, name = port.new_id(), b"session %d" % next(numbers)
    port.tell(Atom("open_session"), request, name)
    assert port.value(request) is None
    yield name
    port.tell(Atom("close_session"), name)


def first(port, name):
    """Take a stream to its end; give its first item."""
    message = last = port.reply(name)
    while last[0] == "yield":
        last = port.reply(name)
    assert last[0] == "ok", last
    return message[1]


STREAM = {"stream": True, "credit": 9}
# Each sets the variables, in one of the ways in which code runs.
BINDS = {
    "eval": ("bind('anna')", {}),
    "function": ("def f(): bind('anna')\nf()", {}),
    "return": ("return bind('anna')", {}),
    "object": ("bind('anna')", {"return": Atom("object")}),
    "globals": ("x = bind('anna')", {"return": Atom("globals")}),
    "bytes": ("bind('anna')", {"binary_as": Atom("bytes")}),
    "failure": ("bind('anna'); 1 / 0", {}),
    "__del__": ("x = Binds()\n1", {}),
    "await": ("await asyncio.sleep(0)\nbind('anna')", {}),
    "awaitable": ("Binds()", {}),
    "stream": ("bind('anna')\nyield 1\nyield 2", STREAM),
    "async stream": ("await asyncio.sleep(0)\nbind('anna')\nyield 1", STREAM),
}
# Each gives what it finds.
FINDS = {
    "eval": lambda port, options: port.value(port.eval("found()", **options)),
    "call": lambda port, options: port.value(port.call("m:found", **options)),
    "await": lambda port, options: port.value(
        port.eval("await asyncio.sleep(0)\nfound()", **options)
    ),
    "stream": lambda port, options: first(port, port.eval("yield found()", **STREAM, **options)),
}


def bind(port, way, **more):
    code, options = BINDS[way]
    name = port.eval(code, **options, **more)
    while port.reply(name)[0] == "yield":
        pass


@pytest.mark.parametrize("way", BINDS)
def test_no_request_sees_what_another_has_set(port, way):
    """In any way in which two requests run; all see the variables that init_code has set."""
    bind(port, way)
    assert [FINDS[next_way](port, {}) for next_way in FINDS] == [NOTHING] * len(FINDS)


@pytest.mark.parametrize("way", [way for way in BINDS if way != "__del__"])
def test_requests_of_a_session_see_what_others_of_it_have_set(port, session, way):
    """In any executor. No other session sees it, and no plain request."""
    bind(port, way, session=session)
    found = [FINDS[next_way](port, {"session": session}) for next_way in FINDS]
    assert found == [BOUND] * len(FINDS)
    assert port.value(port.eval("found()")) == NOTHING


def test_a_session_that_is_opened_anew_begins_anew(port, session):
    """Its name is all that it has in common with the one before."""
    bind(port, "eval", session=session)
    port.tell(Atom("close_session"), session)
    request = port.new_id()
    port.tell(Atom("open_session"), request, session)
    assert port.value(request) is None
    assert port.value(port.eval("found()", session=session)) == NOTHING


def test_what_a_stream_has_set_stays_with_it_from_slice_to_slice(port):
    """Although other requests run in between, and other streams."""
    code = "user.set(n)\nfor _ in range(3): yield user.get()"
    streams = [port.eval(code, {"n": n}, stream=True, credit=1) for n in (b"a", b"b")]
    for _ in range(3):
        assert [port.reply(name) for name in streams] == [("yield", b"a"), ("yield", b"b")]
        assert port.value(port.eval("found()")) == NOTHING
        for name in streams:
            port.tell(Atom("credit"), name, 1)
    assert [port.reply(name) for name in streams] == [("ok", None)] * 2


def test_tasks_that_run_side_by_side_keep_apart(port):
    """Each has its own from its first step to its last."""
    code = "user.set(n)\nawait asyncio.sleep(0.01)\nuser.get()"
    names = [port.eval(code, {"n": n}) for n in range(20)]
    assert [port.value(name) for name in names] == list(range(20))


@pytest.mark.parametrize("of_session", [True, False])
def test_a_request_made_from_within_another_keeps_what_it_sets(port, session, of_session):
    """It sees what the outer one has set where both are of one session, and else nothing."""
    options = {"session": session} if of_session else {}
    function = Struct("Elixir.PyPort.Callback", {Atom("index"): 0, Atom("arity"): 0})
    outer = port.eval("bind('anna')\nf()\nuser.get()", {"f": function}, **options)
    _request, call, _function, _args = port.invoked()
    within = port.eval("x = found(); user.set('otto'); x", parent=call, **options)
    assert port.value(within) == (BOUND if of_session else NOTHING)
    port.tell(Atom("answer"), call, (Atom("ok"), None))
    assert port.value(outer) == b"anna"
    assert port.value(port.eval("user.get()", **options)) == (b"anna" if of_session else b"nobody")


def test_a_print_belongs_to_its_own_request_in_a_session_as_well(port, session):
    """The context of a session that has run a task names no request that has ended."""
    assert port.value(port.eval("await asyncio.sleep(0)", session=session)) is None
    name = port.eval("print('here')", session=session)
    assert port.reply(name) == ("output", Atom("stdout"), b"here\n")
    assert port.value(name) is None


@pytest.mark.skipif(sys.version_info < (3, 14), reason="filters are global before Python 3.14")
def test_filters_of_warnings_are_kept_apart_where_python_can():
    """As docs/guide.md says, with an environment variable of Python's own."""
    function = Struct("Elixir.PyPort.Callback", {Atom("index"): 0, Atom("arity"): 0})
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("error")
    await f()
"""
    found = "import warnings\n'error' in [filter[0] for filter in warnings._get_filters()]"
    with Port(env={"PYTHON_CONTEXT_AWARE_WARNINGS": "1"}) as port:
        waiting = port.eval(code, {"f": function})
        _request, call, _function, _args = port.invoked()
        assert port.value(port.eval(found)) is False
        port.tell(Atom("answer"), call, (Atom("ok"), None))
        assert port.value(waiting) is None
