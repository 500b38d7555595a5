"""Code that awaits runs beside plain code, many at once."""

import time

import pytest
from gate import Gate
from raw_client import Port

from port_server.etf import Atom

SLEEP = "import asyncio\nawait asyncio.sleep(seconds)\nseconds"


NO_UVLOOP = "import sys; sys.modules['uvloop'] = None; "


@pytest.fixture(params=["asyncio", "uvloop"])
def port(request):
    """A server whose loop is that of the standard library, or uvloop's."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    prelude = NO_UVLOOP if request.param == "asyncio" else ""
    with Port(init={"heartbeat_interval_ms": 0}, prelude=prelude) as port:
        port.loop = request.param
        yield port


def test_the_loop_is_uvloops_where_the_environment_has_it(port):
    code = "import asyncio\ntype(asyncio.get_running_loop()).__module__"
    name = port.eval("async def f():\n  return 0\nawait f()\n" + code)
    assert port.value(name).split(b".")[0] == port.loop.encode()


def test_asyncio_is_not_imported_before_it_is_needed(port):
    code = "import sys; 'asyncio' in sys.modules"
    assert port.value(port.eval(code)) is False
    port.value(port.eval(SLEEP, {"seconds": 0}))
    assert port.value(port.eval(code)) is True


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("import asyncio\nawait asyncio.sleep(0, 7)", 7),
        ("import asyncio\nasyncio.sleep(0, 7)", 7),
        ("async def f(): return 7\nf()", 7),
        ("async def f():\n  for n in range(3): yield n\nx = 0\nasync for n in f(): x += n\nx", 3),
        (
            "from contextlib import AsyncExitStack\nasync with AsyncExitStack() as c:\n  x = 5\nx",
            5,
        ),
        (
            "import asyncio\nreturn await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))",
            [1, 2],
        ),
    ],
)
def test_what_may_be_awaited_is(port, code, value):
    assert port.value(port.eval(code)) == value


def test_a_coroutine_function_may_be_called(port):
    for _ in range(3):
        assert port.value(port.call("asyncio:sleep", [0, 5])) == 5


def sleep_200(port):
    names = [port.eval(SLEEP, {"seconds": 0.1}) for _ in range(200)]
    assert [port.value(name) for name in names] == [0.1] * 200


def test_two_hundred_sleeps_take_as_long_as_one(port):
    port.value(port.eval(SLEEP, {"seconds": 0}))
    assert quickest(lambda: sleep_200(port)) < 0.5
    port.settled(tasks=0)


def quickest(ask):
    """Give what the quickest of three takes: what else the machine does only ever adds."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        ask()
        took.append(time.monotonic() - began)
    return min(took)


def test_a_busy_main_thread_does_not_delay_them(port, gate):
    port.value(port.eval(SLEEP, {"seconds": 0}))
    blocked = port.eval(gate.asleep)
    port.settled(running=blocked)
    sleep_200(port)  # answered before the gate is open
    assert quickest(lambda: sleep_200(port)) < 0.5
    gate.open()
    port.value(blocked)


def test_what_was_read_together_with_blocking_code_is_not_delayed_by_it(port, gate):
    """A request of the asyncio executor leaves main's queue when a request before it takes long."""
    port.value(port.eval(SLEEP, {"seconds": 0}))
    with port.at_once():
        blocked = port.eval(gate.asleep + "'opened'")
        plain = port.eval("'plain'")
        names = [port.eval(SLEEP, {"seconds": 0.01}) for _ in range(50)]
    assert [port.value(name) for name in names] == [0.01] * 50
    assert not port.answered(plain)
    gate.open()
    assert port.value(blocked) == b"opened"
    assert port.value(plain) == b"plain"


def test_a_busy_main_thread_does_not_delay_awaitables_that_were_seen_before(port, gate):
    assert port.value(port.call("asyncio:sleep", [0, 1])) == 1
    blocked = port.eval(gate.asleep)
    port.settled(running=blocked)
    ask = lambda: port.value(port.call("asyncio:sleep", [0.01, 2]))  # noqa: E731  said once
    assert quickest(ask) < 0.5
    gate.open()
    port.value(blocked)


def test_waiting_does_not_delay_plain_code(port, gate):
    names = [port.eval(gate.awaiting) for _ in range(50)]
    port.settled(tasks=50)
    assert quickest(lambda: port.value(port.eval("1"))) < 0.25
    gate.open()
    for name in names:
        port.value(name)


def test_an_exception_is_an_error_with_the_users_frames_only(port):
    error = port.error(port.eval("import asyncio\nawait asyncio.sleep(0)\n1 / 0"))
    assert (error["kind"], error["type"]) == ("python", b"ZeroDivisionError")
    assert [frame["line"] for frame in error["frames"]] == [3]


def test_what_was_answered_while_it_ran_in_main_leaves_when_it_goes_on_elsewhere(port):
    """A pong of the control thread, which main takes the reader lock from before it is written."""
    port.value(port.eval(SLEEP, {"seconds": 0}))
    pong = port.new_id()
    code = (
        "import asyncio, gc\n"
        "from port_server.protocol import messages\n"
        "from port_server.server.port import Port\n"
        "[port] = [one for one in gc.get_objects() if type(one) is Port]\n"
        "port.hold([messages.pong(messages.id_term_of(pong), {})])\n"
        "asyncio.sleep(60)"
    )
    port.eval(code, {"pong": pong}, binary_as=Atom("bytes"))
    assert port.reply(pong, timeout=2) == ("pong", {})


def test_cancel_cancels_the_task(port):
    code = (
        "import asyncio\n"
        "try:\n"
        "  print('open\\n', end='', flush=True)\n"
        "  await asyncio.sleep(60)\n"
        "finally:\n"
        "  print('closed\\n', end='')"
    )
    name = port.eval(code)
    # A task that has not begun has nothing to close.
    assert port.reply(name)[0] == "output"
    port.tell(Atom("cancel"), name)
    assert port.reply(name)[0] == "output"
    assert port.error(name)["kind"] == "cancelled"
    port.settled(tasks=0)
    port.nothing(name)


@pytest.mark.parametrize(
    "code", ["raise SystemExit(3)", "raise KeyboardInterrupt", "raise asyncio.CancelledError"]
)
def test_no_exception_ends_the_executor(port, code):
    error = port.error(port.eval("import asyncio\nawait asyncio.sleep(0)\n" + code))
    assert error["kind"] == "python"
    assert port.value(port.eval(SLEEP, {"seconds": 0})) == 0


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nasync def f(): sys.exit(3)\nawait asyncio.create_task(f())",
        "async def f(): raise KeyboardInterrupt\nawait asyncio.gather(f())",
        "def f(): raise SystemExit\nasyncio.get_running_loop().call_soon(f)\nawait f",
    ],
)
def test_no_exception_of_a_task_or_a_callback_ends_the_executor(port, code):
    """These two kinds leave the loop itself, which then ends."""
    assert port.error(port.eval("import asyncio\n" + code))["kind"] == "python"
    assert port.value(port.eval(SLEEP, {"seconds": 0})) == 0


def test_an_exception_that_cannot_be_looked_at_is_an_error_all_the_same(port):
    code = (
        "import asyncio\nclass E(Exception):\n  __class__ = property(lambda self: 1 / 0)\n"
        "await asyncio.sleep(0)\nraise E"
    )
    error = port.error(port.eval(code))
    assert (error["kind"], error["type"]) == ("python", b"E")
    port.settled(tasks=0)


def test_code_that_stops_the_loop_stops_nobody_else(port):
    code = "import asyncio\nasyncio.get_running_loop().stop()\nawait asyncio.sleep(0, 1)"
    assert port.value(port.eval(code)) == 1
    assert port.value(port.eval(SLEEP, {"seconds": 0})) == 0


def test_what_a_task_prints_comes_before_its_reply(port):
    name = port.eval("import asyncio\nprint('a')\nawait asyncio.sleep(0.01)\nprint('b')\n1")
    text = b""
    while (message := port.reply(name))[0] == "output":
        text += message[2]
    assert text == b"a\nb\n"
    assert message == ("ok", 1)


def test_requests_of_one_session_run_one_at_a_time_across_executors(port):
    port.tell(Atom("open_session"), port.new_id(), b"s")
    slow = port.eval("import asyncio\nx = 0\nawait asyncio.sleep(0.2)\nx = 1", session=b"s")
    quick = port.eval("x", session=b"s")
    slow_again = port.eval("await asyncio.sleep(0.1)\nx = 2", session=b"s")
    last = port.eval("x", session=b"s")
    assert port.value(port.eval("3")) == 3
    assert port.value(quick) == 1
    assert port.value(last) == 2
    port.value(slow)
    port.value(slow_again)
    port.settled(tasks=0, queue=0)


@pytest.mark.parametrize("handed_on", [False, True])
def test_no_request_of_a_session_overtakes_one_that_waits_for_the_main_thread(
    port, tmp_path, gate, handed_on
):
    """While main is busy the second could begin on the event loop, but its names are not defined.

    Both come while main is busy and their session is free; or they have waited for another request
    of it, which ends while main is busy, and are handed on together.
    """
    blocking = Gate(tmp_path / "blocking")
    port.tell(Atom("open_session"), port.new_id(), b"s")

    def send_both():
        first = port.eval("x = ['first']", session=b"s")
        return first, port.eval(
            "import asyncio\nx.append('second')\nawait asyncio.sleep(0)\nx", session=b"s"
        )

    if handed_on:
        holder = port.eval(gate.awaiting, session=b"s")
        port.settled(tasks=1)
        both = send_both()
        port.settled(queue=2)
    busy = port.eval(blocking.asleep + "'open'")
    port.settled(running=busy)
    if handed_on:
        gate.open()
        port.value(holder)
    else:
        both = send_both()
    port.settled(queue=2, tasks=0, running=busy)
    blocking.open()
    assert port.value(busy) == b"open"
    assert port.value(both[0]) is None
    assert port.value(both[1]) == [b"first", b"second"]


def test_a_request_that_waits_for_its_session_can_be_cancelled(port, gate):
    port.tell(Atom("open_session"), port.new_id(), b"s")
    slow = port.eval(gate.awaiting, session=b"s")
    waiting = port.eval("1", session=b"s")
    port.settled(tasks=1, queue=1)
    port.tell(Atom("cancel"), waiting)
    error = port.error(waiting)
    assert (error["kind"], error["begun"]) == ("cancelled", False)
    gate.open()
    assert port.value(slow) is None


@pytest.mark.parametrize("init", [None, {"threads": 2}], ids=["main", "threads"])
def test_the_main_thread_is_the_main_thread_whoever_imports_threading(init, gate):
    """The loop may be made by another thread, while main runs code. And Python ends by itself."""
    ident = "threading.get_ident() == threading.main_thread().ident"
    with Port(init=init) as port:
        slow = port.eval(gate.asleep + "import threading\n" + ident)
        aside = port.eval("import asyncio, threading\nawait asyncio.sleep(0)\n1")
        assert port.value(aside) == 1
        gate.open()
        assert port.value(slow) is (init is None)
        port.tell(Atom("shutdown"), 1000)
        port.ended_well()


def test_shutdown_waits_for_tasks(port):
    name = port.eval(SLEEP, {"seconds": 0.3})
    port.tell(Atom("shutdown"), 3000)
    assert port.value(name) == 0.3
    port.ended_well()


def test_the_end_of_an_owned_server_cancels_tasks(port):
    port.eval(SLEEP, {"seconds": 60})
    port.settled(tasks=1)
    port.process.stdin.close()
    port.ended_well()


@pytest.mark.parametrize(
    "rest", ["pid", "if pid: await asyncio.sleep(0)\npid", "await asyncio.tasks.__sleep0()\npid"]
)
def test_a_child_that_is_forked_in_async_code_ends_with_it(port, rest):
    """It shares the loop's descriptors: if it went on it would take what is meant for the loop."""
    pid = port.value(
        port.eval("import asyncio, os\nawait asyncio.sleep(0)\npid = os.fork()\n" + rest)
    )
    assert port.value(port.eval("import os\nos.waitpid(pid, 0)[1]", {"pid": pid}), 3) == 0


def test_the_time_that_a_request_waits_for_its_session_counts(port):
    port.value(port.eval(SLEEP, {"seconds": 0}))  # the loop is made, asyncio imported
    port.tell(Atom("open_session"), port.new_id(), b"s")
    with port.at_once():
        slow = port.eval("import asyncio\nawait asyncio.sleep(0.3)", session=b"s")
        late = port.eval("1", session=b"s", deadline_ms=100)
    error = port.error(late)
    assert (error["kind"], error["begun"]) == ("timeout", False)
    assert port.value(slow) is None


@pytest.mark.parametrize(
    ("given", "options", "kind"),
    [
        ({"x": b"\xff"}, {}, "decode"),
        ({"not a name": 1}, {}, "decode"),
        ({}, {"session": b"none"}, "unavailable"),
    ],
)
def test_what_cannot_be_begun_beside_a_busy_main_is_answered(port, tmp_path, given, options, kind):
    """In the asyncio executor, which reads it for the first time."""
    gate = Gate(tmp_path / "gate")
    busy = port.eval(gate.asleep)
    port.settled(state="busy")
    name = port.eval(SLEEP, {"seconds": 0} | given, **options)
    assert port.error(name)["kind"] == kind
    gate.open()
    port.value(busy)
    port.settled(tasks=0)


def test_an_id_that_is_used_twice_at_once_leaves_nothing_behind(port):
    """A cancel ends one of two, and the server can still leave."""
    name = port.new_id()
    code = "import asyncio\nawait asyncio.sleep(0.05)"
    with port.at_once():
        for _ in range(4):
            port.tell(Atom("eval"), name, {}, code, {})
            port.tell(Atom("cancel"), name)
    port.settled(tasks=0)
