"""Requests in threads: many at once, each with its own output, and a cancel that meets no other."""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import time

import pytest
from raw_client import WITHOUT_C, Port

from port_server.etf import Atom

THREADS = {"threads": 8}
# How many cancels the storm has: PYPORT_CANCELS=100000 for all that the design promises.
CANCELS = int(os.environ.get("PYPORT_CANCELS", "3000"))

needs_strikes = pytest.mark.usefixtures("strikes")


@pytest.fixture
def strikes():
    if not hasattr(sys, "monitoring"):
        pytest.importorskip("port_server.server._fast", reason="on 3.11 C raises in threads")


@pytest.fixture(params=["", WITHOUT_C], ids=["with C", "without C"])
def port(request):
    with Port(init=THREADS, prelude=request.param) as port:
        yield port


def ending(port, name):
    """Take what a request still prints, and its last message. The end of a print may come alone."""
    text = b""
    while (message := port.reply(name))[0] == "output":
        text += message[2]
    return text, message


def cancel(port, name):
    port.tell(Atom("cancel"), name)


def test_requests_run_at_once(port):
    """Eight that wait for each other; one after another they would wait for ever."""
    code = (
        "import threading, builtins\n"
        "meeting = builtins.__dict__.setdefault('meeting', threading.Barrier(8))\n"
        "meeting.wait(5)\nthreading.get_ident()"
    )
    names = [port.eval(code) for _ in range(8)]
    assert len({port.value(name) for name in names}) == 8


def test_no_more_run_at_once_than_there_may(port, gate):
    """The others wait, and a cancel takes one of them out."""
    busy = [port.eval(gate.asleep + "1") for _ in range(8)]
    port.settled(tasks=8)
    late, dropped = port.eval("2"), port.eval("3")
    port.settled(queue=2)
    cancel(port, dropped)
    error = port.error(dropped)
    assert (error["kind"], error["begun"]) == ("cancelled", False)
    assert not port.answered(late)
    gate.open()
    assert [port.value(name) for name in [*busy, late]] == [1] * 8 + [2]


def test_output_belongs_to_its_request(port):
    """In the order of each, however they are mixed."""
    code = "import time\nfor n in range(20):\n  print(name, n)\n  time.sleep(0.001)"
    names = [port.eval(code, {"name": number}) for number in range(8)]
    for number, name in enumerate(names):
        text, message = ending(port, name)
        assert message[0] == "ok"
        assert text.decode() == "".join(f"{number} {n}\n" for n in range(20))


def test_text_that_is_printed_leaves_while_the_code_waits(port, gate):
    """Without a flush, as from the main thread; also after a pause."""
    time.sleep(0.3)
    name = port.eval("print('so far')\n" + gate.asleep + "1")
    assert port.reply(name, 0.5)[0] == "output"
    gate.open()
    assert ending(port, name)[1] == ("ok", 1)


def test_a_session_keeps_its_order(port):
    """One at a time, in the order of arrival, with one namespace."""
    port.tell(Atom("open_session"), port.new_id(), b"s")
    names = [port.eval("x = []", session=b"s")]
    code = "import time; time.sleep(0.002 * (n % 3)); x.append(n)"
    names += [port.eval(code, {"n": n}, session=b"s") for n in range(20)]
    last = port.eval("x", session=b"s")
    for name in names:
        port.value(name)
    assert port.value(last) == list(range(20))


def test_errors_are_those_of_the_request(port):
    names = [port.eval("1 / n", {"n": n % 2}) for n in range(40)]
    replies = [port.reply(name) for name in names]
    kinds = [reply[0] for reply in replies]
    assert kinds == ["error", "ok"] * 20, replies


def test_objects_and_calls_of_them(port):
    name = port.eval("class C:\n  def f(self, n): return n + 1\nC()", **{"return": Atom("object")})
    handle = port.value(name)
    names = [port.call((handle, "f"), [n]) for n in range(40)]
    assert [port.value(name) for name in names] == list(range(1, 41))


def test_calls_into_the_beam_wait_in_their_threads(port):
    """All at once, and a request that is made from within one runs in its thread."""
    ident = "__import__('_thread').get_ident()"
    code = f"import port_server\nport_server.call('M', 'f', [{ident}])"
    names = [port.eval(code) for _ in range(8)]
    invoked = [port.invoked() for _ in names]  # before the first answer frees a thread
    for _request, call, _function, (thread,) in invoked:
        within = port.eval(f"{ident} == thread", {"thread": thread}, parent=call)
        assert port.value(within) is True
        port.tell(Atom("answer"), call, (Atom("ok"), thread))
    assert len({port.value(name) for name in names}) == 8


def test_a_stream_sends_as_far_as_its_credit(port):
    """Sixteen streams on eight threads; those that wait for their consumer keep no thread."""
    names = [port.eval("(n for n in range(6))", stream=True, credit=2) for _ in range(16)]
    for name in names:
        assert [port.reply(name)[1] for _ in range(2)] == [0, 1]
    assert port.value(port.eval("7")) == 7
    for name in reversed(names):
        port.tell(Atom("credit"), name, 10)
    for name in names:
        assert [port.reply(name) for _ in range(5)] == [
            *(("yield", n) for n in range(2, 6)),
            ("ok", None),
        ]


def test_a_stream_that_waits_is_cancelled(port):
    """Its `finally` runs to its end, also if the stream has only just begun to wait."""
    code = "def f():\n  try:\n    while True: yield 1\n  finally: print('left')\nf()"
    for _ in range(20):
        name = port.eval(code, stream=True, credit=1)
        assert port.reply(name) == ("yield", 1)
        cancel(port, name)
        text, message = ending(port, name)
        assert (text, message[1]["kind"]) == (b"left\n", "cancelled")


def test_a_deadline_that_passes_in_the_queue(port, gate):
    busy = [port.eval(gate.asleep + "1") for _ in range(8)]
    port.settled(tasks=8)
    late = port.eval("2", deadline_ms=20)
    time.sleep(0.05)
    gate.open()
    assert port.error(late)["kind"] == "timeout"
    for name in busy:
        port.value(name)


def test_code_that_awaits_runs_on_the_loop(port):
    """Met in a thread first, as its value is not known before."""
    code = "import asyncio\nasync def f(): await asyncio.sleep(0.01); return n\nf()"
    names = [port.eval(code, {"n": n}) for n in range(40)]
    assert [port.value(name) for name in names] == list(range(40))


def test_too_much_memory_is_an_error_of_the_request(port):
    names = [port.eval("'x' * 10**15") for _ in range(8)]
    assert {port.error(name)["type"] for name in names} == {b"MemoryError"}
    assert port.value(port.eval("1")) == 1


def test_a_fork_in_a_thread_ends_where_the_code_ends(port):
    name = port.eval("import os\npid = os.fork()\nos.waitpid(pid, 0)[1] if pid else 1")
    assert port.value(name) == 0


def test_the_input_ends_while_requests_wait(port):
    """Those in threads and those in the queue are told so, and the server ends."""
    names = [port.eval("import time; time.sleep(0.05)") for _ in range(20)]
    port.settled(tasks=8)
    port.process.stdin.close()
    replies = [port.reply(name) for name in names]
    told = [reply[0] == "error" and b"port is gone" in reply[1]["message"] for reply in replies]
    assert all(told[8:])  # those that sleep can be told by C only
    port.ended_well()


def test_cpu_bound_code_leaves_room_for_short_requests(port, tmp_path):
    """A loop in Python; one in C that keeps the GIL, like `sum`, delays the others and no more."""
    long = f"import os\nwhile not os.path.exists({str(tmp_path / 'gate')!r}): sum(range(100))\n0"
    names = [port.eval(long), port.eval("sum(range(10**7))")]
    for n in range(20):
        assert port.value(port.eval("n", {"n": n})) == n
    (tmp_path / "gate").touch()
    assert [port.value(name) for name in names] == [0, sum(range(10**7))]


def test_fifty_callers_of_a_sleep_wait_once():
    """With 64 threads: all answers in under 0.5 s, and under 60 MiB."""
    with Port(init={"threads": 64}) as port:
        port.value(port.eval("import time"))
        began = time.monotonic()
        names = [port.eval("import time; time.sleep(0.2); n", {"n": n}) for n in range(50)]
        assert [port.value(name) for name in names] == list(range(50))
        assert time.monotonic() - began < 0.5
        assert port.status()["rss_bytes"] < 60 << 20


@needs_strikes
@pytest.mark.parametrize(
    "code",
    {
        "a loop": "while True: pass",
        "a catch": "n = 0\nwhile n < 3:\n  try:\n    while True: pass\n  except: n += 1\n1 / 0",
        "short sleeps": "import time\nwhile True: time.sleep(0.01)",
        "logging": "import logging\nwhile True: logging.getLogger('x').debug('%s', 1)",
        "prints": "while True: print(end='x' * 100)",
    }.values(),
)
def test_code_in_a_thread_is_stopped(code):
    with Port(init=THREADS) as port:
        name = port.eval(code)
        port.settled(tasks=1)
        cancel(port, name)
        while (message := port.reply(name))[0] == "output":
            pass
        assert message[1]["kind"] == "cancelled"
        assert [port.value(port.eval("n", {"n": n})) for n in range(20)] == list(range(20))


@needs_strikes
def test_an_import_is_not_cut_short(tmp_path, gate):
    """The cancel strikes once it is over."""
    (tmp_path / "slow_import.py").write_text(
        f"print('under way', flush=True)\n{gate.asleep}\nwhole = True\n"
    )
    with Port(init=THREADS) as port:
        code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport slow_import\n"
        name = port.eval(code + "while True: pass")
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        time.sleep(0.1)
        assert not port.answered(name)
        gate.open()
        assert port.error(name)["kind"] == "cancelled"
        assert port.value(port.eval("import slow_import; slow_import.whole")) is True


@needs_strikes
def test_cancels_at_random_moments_strike_no_other_request():
    """Cancels come around the end of requests; each other request gives its own value.

    The locks of the standard library are free at the end: a log record and a queue still work.
    """
    code = (
        "import time, logging, queue, threading\n"
        "end = time.perf_counter() + us / 1e6\n"
        "q = queue.Queue()\n"
        "while time.perf_counter() < end:\n"
        "  q.put(1); q.get(); logging.getLogger('storm').debug('x')\n"
        "n"
    )
    randomly = random.Random(11)
    with Port(init=THREADS) as port:
        struck = done = 0
        todo: queue.Queue = queue.Queue(16)
        lost = []

        def check():
            nonlocal struck, done
            while (item := todo.get()) is not None:
                name, number, victim = item
                kind, value = port.reply(name, 20)
                if kind == "ok":
                    done += 1
                    assert value == number
                elif victim and value["kind"] == "cancelled":
                    struck += 1
                else:
                    lost.append((number, victim, value))

        checker = threading.Thread(target=check)
        checker.start()
        for number in range(CANCELS):
            us = randomly.randrange(300)
            victim = port.eval(code, {"us": us, "n": number})
            other = port.eval(code, {"us": us, "n": -number})
            time.sleep(randomly.randrange(300) / 1e6)
            cancel(port, victim)
            todo.put((victim, number, True))
            todo.put((other, -number, False))
        todo.put(None)
        checker.join()
        assert not lost
        assert struck
        assert done > CANCELS
        held = (
            "import logging, threading, queue\n"
            "locks = [logging._lock, threading._active_limbo_lock]\n"
            "[lock.acquire(timeout=1) and not lock.release() for lock in locks]"
        )
        assert port.value(port.eval(held)) == [True] * 2
        assert port.settled(tasks=0)["queue"] == 0


@needs_strikes
def test_a_condition_is_never_left_taken():
    """A `with` block in Python code, whose exit is Python code as well."""
    code = (
        "import builtins, threading\n"
        "cond = builtins.__dict__.setdefault('cond', threading.Condition())\n"
        "while True:\n"
        "  with cond:\n"
        "    for n in range(20): pass"
    )
    randomly = random.Random(3)
    with Port(init=THREADS) as port:
        for _ in range(200):
            name = port.eval(code)
            port.settled(tasks=1)
            time.sleep(randomly.randrange(2000) / 1e6)
            cancel(port, name)
            assert port.error(name)["kind"] == "cancelled"
        free = "import builtins; builtins.cond.acquire(timeout=1) and not builtins.cond.release()"
        assert port.value(port.eval(free)) is True


@pytest.mark.parametrize("what", ["a print", "a log record", "a call into the BEAM"])
def test_a_request_ends_at_its_next_word(what, prelude):
    """Also where nothing can be raised at other places."""
    code = {
        "a print": "while True:\n  try: print('x' * 100, flush=True)\n  except Exception: pass",
        "a log record": "import logging\nwhile True: logging.warning('x' * 100)",
        "a call into the BEAM": "import port_server\nwhile True: port_server.call('A', 'b')",
    }[what]
    window = {"output_window_bytes": 1000, "delivery_window_bytes": 1000}
    with Port(init={**THREADS, **window}, prelude=prelude) as port:
        name = port.eval(code)
        port.settled(tasks=1)
        time.sleep(0.05)
        cancel(port, name)
        while (message := port.reply(name, 5))[0] == "output":
            pass
        assert message[1]["kind"] == "cancelled"


@pytest.fixture(params=["", WITHOUT_C], ids=["with C", "without C"])
def prelude(request):
    return request.param


def test_the_finally_of_a_stream_that_waits_takes_its_time(port):
    """It is not struck: the stream ends by itself."""
    code = (
        "import time\ndef f():\n  try: yield 1\n"
        "  finally:\n    time.sleep(0.2)\n    print('cleaned')\nf()"
    )
    name = port.eval(code, stream=True, credit=1)
    assert port.reply(name) == ("yield", 1)
    time.sleep(0.02)
    cancel(port, name)
    text, message = ending(port, name)
    assert (text, message[1]["kind"]) == (b"cleaned\n", "cancelled")


def test_an_import_of_asyncio_that_fails_is_an_error_of_the_request(tmp_path):
    """In every executor, and the server goes on."""
    (tmp_path / "asyncio.py").write_text("1 / 0")
    for init in ({}, {"threads": 2}):
        with Port(init=init, env={"PYTHONPATH": str(tmp_path)}) as port:
            port.tell(Atom("open_session"), port.new_id(), b"s")
            for _ in range(4):
                error = port.error(port.eval("async def f(): pass\nf()", session=b"s"))
                assert error["type"] == b"ZeroDivisionError"
            assert port.value(port.eval("1 + 1", session=b"s")) == 2
            assert port.settled(tasks=0)["queue"] == 0


def test_nothing_is_kept_of_sessions_that_ended(port):
    """Each was used once; what ended in a thread is settled by main."""
    count = "import gc\nsum(type(one).__name__ == 'Request' for one in gc.get_objects())"
    for number in range(100):
        session = b"%d" % number
        port.tell(Atom("open_session"), port.new_id(), session)
        port.value(port.eval("1", session=session))
        port.tell(Atom("close_session"), session)
    assert port.value(port.eval(count)) < 20


def test_a_deadline_passes_while_a_session_is_busy(port):
    port.tell(Atom("open_session"), port.new_id(), b"s")
    busy = port.eval("import time; time.sleep(0.4)", session=b"s")
    late = port.eval("1", session=b"s", deadline_ms=100)
    assert port.error(late)["kind"] == "timeout"
    port.value(busy)


def test_stdout_is_whole_after_requests_that_redirected_it(port):
    code = (
        "import contextlib, io, time\nwith contextlib.redirect_stdout(io.StringIO()): time.sleep(s)"
    )
    for name in [port.eval(code, {"s": 0.1}), port.eval(code, {"s": 0.2})]:
        port.value(name)
    name = port.eval("print('seen')")
    assert ending(port, name)[0] == b"seen\n"


def test_a_stream_within_a_call_does_not_keep_the_call(port):
    """The request below goes on when the call is answered, whether the stream is read or not."""
    outer = port.eval("import port_server\nport_server.call('A', 'b')")
    call = port.invoked()[1]
    stream = port.eval("iter(range(9))", stream=True, credit=1, parent=call)
    assert port.reply(stream) == ("yield", 0)
    port.tell(Atom("answer"), call, (Atom("ok"), 7))
    assert port.value(outer) == 7
    port.tell(Atom("credit"), stream, 100)
    assert [port.reply(stream)[0] for _ in range(9)] == ["yield"] * 8 + ["ok"]
