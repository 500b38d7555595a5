"""The port is read while user code runs, and handing it over loses nothing."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
import types

import pytest
from raw_client import Port, atoms

from port_server.etf import Atom, encode
from port_server.server.main_thread import MainThread
from port_server.server.scheduler import Scheduler
from port_server.settings import Settings

SLEEPS = "import time\ntime.sleep(seconds)\nname"
# How hard it is hammered: PYPORT_HAMMER_SEEDS="1 2 3" PYPORT_HAMMER_REQUESTS=20000 for more of it.
SEEDS = [int(seed) for seed in os.environ.get("PYPORT_HAMMER_SEEDS", "1 2").split()]
REQUESTS = int(os.environ.get("PYPORT_HAMMER_REQUESTS", "3000"))
SMALL_SWITCHES = "import sys; sys.setswitchinterval(1e-6); sys.setswitchinterval = lambda _: None; "


def begin(port, code):
    """Send an eval; wait until its code is under way.

    In one piece: the end that `print` adds is written by itself, and may leave by itself.
    """
    name = port.eval("print('under way\\n', end='', flush=True)\n" + code)
    assert port.reply(name)[0] == "output"
    return name


def pings(port):
    """Ping three times: the last status, and what the quickest took. Noise only ever adds."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        status = port.status()
        took.append(time.monotonic() - began)
    return status, min(took)


def test_ping_is_answered_while_code_sleeps(gate):
    with Port() as port:
        sent = time.monotonic()
        name = port.eval(gate.asleep + "1")
        port.settled(running=name)
        seen = time.monotonic()
        time.sleep(0.05)
        asked = time.monotonic()
        status, took = pings(port)
        told = time.monotonic()
        assert took < 0.1
        assert status["state"] == "busy"
        assert status["running"] == name
        # In whole ms; its begin was noticed at some time between the two.
        assert int((asked - seen) * 1000) - 1 <= status["running_ms"] <= (told - sent) * 1000
        gate.open()
        assert port.value(name) == 1
        assert port.status()["state"] == "idle"


def test_ping_is_answered_while_code_computes(gate):
    with Port() as port:
        name = begin(port, gate.busy)
        assert pings(port)[1] < 0.2
        gate.open()
        assert port.value(name) is None


def test_a_queued_request_is_cancelled_while_another_runs(gate):
    with Port() as port:
        first = begin(port, gate.asleep + "1")
        second = port.eval("2")
        third = port.eval("3")
        port.tell(Atom("cancel"), second)
        error = port.error(second)
        assert error["kind"] == "cancelled"
        assert error["begun"] is False
        gate.open()
        assert port.value(first) == 1
        assert port.value(third) == 3
        port.nothing(second)


def test_queued_requests_run_when_the_slow_one_is_done():
    with Port() as port:
        names = [
            port.eval("import time; time.sleep(0.1); 0"),
            *(port.eval("n", {"n": n}) for n in range(1, 500)),
        ]
        assert [port.value(name) for name in names] == list(range(500))
        assert port.status()["requests"] == 500


def test_beats_come_at_their_interval_idle_and_busy(gate):
    with Port(init={"heartbeat_interval_ms": 50}) as port:
        while len(port.beats) < 10:
            time.sleep(0.01)
        name = begin(port, gate.asleep)
        before = len(port.beats)
        while len(port.beats) < before + 10:
            time.sleep(0.01)
        gate.open()
        port.reply(name)
        beats = [beat for _at, beat in port.beats]
        assert [beat["sequence"] for beat in beats] == list(range(1, len(beats) + 1))
        assert {beat["state"] for beat in beats} == {"idle", "busy"}
        assert all(beat["rss_bytes"] > 1_000_000 for beat in beats)
        # By its own clock; one that comes late is made up for by nobody.
        for some in (beats[:10], beats[before : before + 10]):
            gaps = [b["monotonic_ms"] - a["monotonic_ms"] for a, b in itertools.pairwise(some)]
            assert 42 <= statistics.median(gaps) <= 71


def test_no_beats_when_asked_for_none():
    with Port(init={"heartbeat_interval_ms": 0}) as port:
        port.value(port.eval("import time; time.sleep(0.2)"))
        assert port.beats == []


def test_deadline_counts_the_time_in_the_queue():
    with Port() as port:
        with port.at_once():
            first = port.eval("import time; time.sleep(0.3)")
            late = port.eval("1", deadline_ms=100)
            in_time = port.eval("2", deadline_ms=5000)
        port.reply(first)
        error = port.error(late)
        assert error["kind"] == "timeout"
        assert error["begun"] is False
        assert port.value(in_time) == 2


def test_end_of_input_during_a_request_finishes_what_was_read():
    with Port() as port:
        first = begin(port, "import time; time.sleep(0.2); 1")
        second = port.eval("2")
        port.process.stdin.close()
        assert port.value(first) == 1
        assert port.value(second) == 2
        assert port.process.wait(5) == 0


def test_shutdown_during_a_request_finishes_what_was_read():
    with Port() as port:
        first = begin(port, "import time; time.sleep(0.2); 1")
        second = port.eval("2")
        port.tell(Atom("shutdown"), 2000)
        assert port.value(first) == 1
        assert port.value(second) == 2
        kinds = [port.others.get(timeout=5) for _ in range(2)]
        assert kinds[-1] == ("goodbye", "shutdown")
        assert port.process.wait(5) == 0


def test_a_signal_handler_that_raises_leaves_the_server_working():
    """Wherever it strikes: each request has one reply, that of the one it hit may be an error."""
    with Port() as port:
        port.value(
            port.eval(
                "import signal\n"
                "def handler(*_): raise ValueError('stray')\n"
                "signal.signal(signal.SIGALRM, handler)"
            )
        )
        hit = 0
        for n in range(200):
            names = [
                port.eval(
                    "import signal; signal.setitimer(signal.ITIMER_REAL, after); None",
                    {"after": 0.00001 + n * 0.00001},
                )
            ]
            # It may strike the very request that sets the timer, or any behind it.
            names += [port.eval("1") for _ in range(20)]
            # No round's timer strikes in the next: two at once make one error with two reasons.
            names.append(port.eval("import signal; signal.setitimer(signal.ITIMER_REAL, 0); None"))
            for name in names:
                kind, value, *_ = port.reply(name)
                if kind == "error":
                    hit += 1
                    assert value["type"] == b"ValueError", value
                    assert value["message"] == b"stray"
        assert 0 < hit <= 200
        assert port.doubled == []
        # The last of the timers may be still to come: it strikes this one, or nobody.
        port.reply(port.eval("import time; time.sleep(0.1)"))
        assert port.value(port.eval("1 + 1")) == 2


@pytest.mark.parametrize("prelude", ["", SMALL_SWITCHES], ids=["usual", "switching all the time"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_doubled_or_cancelled_wrongly(prelude, seed):
    """Thousands of requests, pings, cancels and large frames, in bursts and one by one."""
    dice = random.Random(seed)
    with Port(prelude=prelude, init={"heartbeat_interval_ms": 10}) as port:
        expected = {}
        may_be_cancelled = set()
        pings = []
        large = bytes(300_000)
        slept = 0.0
        while len(expected) < REQUESTS:
            burst = []
            for _ in range(dice.choice((1, 1, 2, 5, 40))):
                name = port.new_id()
                shape = dice.random()
                if shape < 0.03 and slept < REQUESTS * 0.0005:
                    seconds = dice.choice((0.001, 0.004, 0.006, 0.012, 0.03, 0.1, 0.3))
                    slept += seconds
                    code, given = SLEEPS, {"seconds": seconds, "name": len(expected)}
                    expected[name] = len(expected)
                elif shape < 0.05:
                    code, given = "len(data)", {"data": large}
                    expected[name] = len(large)
                elif shape < 0.06:
                    code, given = "'x' * 200_000", {}
                    expected[name] = b"x" * 200_000
                else:
                    code, given = "n + 1", {"n": len(expected)}
                    expected[name] = len(expected) + 1
                options = {Atom("binary_as"): Atom("bytes")} if "data" in given else {}
                burst.append(encode((Atom("eval"), name, options, code, atoms(given))))
                if dice.random() < 0.05:
                    pings.append(port.new_id())
                    burst.append(encode((Atom("ping"), pings[-1])))
                if dice.random() < 0.05:
                    target = dice.choice(list(expected)[-50:])
                    may_be_cancelled.add(target)
                    burst.append(encode((Atom("cancel"), target)))
            port.write(*burst)
            if dice.random() < 0.1:
                time.sleep(dice.random() * 0.01)
        cancelled = 0
        for name, value in expected.items():
            kind, got, *_ = port.reply(name, timeout=30)
            if kind == "error":
                assert got["kind"] == "cancelled", got
                assert name in may_be_cancelled
                cancelled += 1
            else:
                assert got == value
        for name in pings:
            assert port.reply(name)[0] == "pong"
        assert port.doubled == []
        status = port.status()
        assert status["queue"] == 0
        assert status["requests"] == len(expected) - cancelled


def test_a_request_whose_time_is_up_costs_nobody_else_the_answer(gate):
    """Both are read in one go, while main runs code: the first has expired by then."""
    with Port(init={"heartbeat_interval_ms": 0}) as port:
        slow = begin(port, gate.asleep)
        expired, other = port.new_id(), port.new_id()
        port.write(
            encode((Atom("eval"), expired, {Atom("deadline_ms"): 0}, "1", {})),
            encode((Atom("eval"), other, {Atom("deadline_ms"): 9000}, "2", {})),
        )
        port.settled(queue=2)
        gate.open()
        assert port.error(expired)["kind"] == "timeout"
        assert port.value(other) == 2
        port.value(slow)


def test_the_queue_may_grow_while_it_is_measured():
    """A print that waits for its reader measures it, and whoever reads the port fills it."""
    scheduler = Scheduler(Settings().replace(max_queue_bytes=9), MainThread())

    class Frame:
        def __len__(self):
            scheduler.queue.append(types.SimpleNamespace(frame=b"more"))
            return 1

    scheduler.queue.append(types.SimpleNamespace(frame=Frame()))
    assert not scheduler.full
