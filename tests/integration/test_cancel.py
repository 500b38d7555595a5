"""Cancelling code that runs: it ends, says where it was, and nobody else is hit."""

from __future__ import annotations

import random
import signal
import time
from collections import deque

import pytest
from raw_client import Port, atoms

from port_server.etf import Atom, encode

SMALL_SWITCHES = "import sys; sys.setswitchinterval(1e-6); sys.setswitchinterval = lambda _: None; "
# Said once the code is under way, so that no test depends on how fast the machine is.
UNDER_WAY = "print('under way', flush=True)\n"


def begin(port, code, given=None, **options):
    """Send an eval; wait until its code is under way."""
    name = port.eval(UNDER_WAY + code, given, **options)
    assert port.reply(name)[0] == "output"
    return name


def cancel(port, name):
    port.tell(Atom("cancel"), name)


def outcome(port, name, timeout=5.0):
    """Give the terminal reply: what the code printed meanwhile is of no interest."""
    while True:
        message = port.reply(name, timeout)
        if message[0] in {"ok", "error"}:
            return message


def cancelled(port, name, timeout=5.0):
    kind, error = outcome(port, name, timeout)
    assert kind == "error", error
    assert error["kind"] == "cancelled", error
    assert error["begun"] is True
    return error


def is_well(port):
    """The server works, and nothing was answered twice."""
    assert port.value(port.eval("1 + 1")) == 2
    assert port.doubled == []
    status = port.status()
    assert status["state"] == "idle"
    assert status["queue"] == 0


LOOPS = {
    "a loop": "while True: pass",
    "a sleep": "import time; time.sleep(60)",
    "a lock": "import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\nlock.acquire()",
    "a call": "def f(n):\n    while True: n += 1\nf(0)",
    "many calls": "def f(): pass\nwhile True: f()",
    "a generator": "sum(1 for _ in iter(int, 1))",
    "a comprehension": "[0 for _ in iter(lambda: 0, 1)]",
    "C that calls back": "all(map(lambda n: True, iter(int, 1)))",
    "reading a pipe": "import os\nr, w = os.pipe()\nos.read(r, 1)",
    "a subprocess": "import subprocess\nsubprocess.run(['sleep', '60'])",
    "the garbage collector": "import gc\nwhile True: gc.collect()",
    "printing": "while True: print('x' * 100)",
    "printing to stderr": "import sys\nwhile True: print('x', file=sys.stderr, flush=True)",
    "logging": "import logging\nwhile True: logging.warning('again')",
    "a thread that is waited for": (
        "import threading\n"
        "done = threading.Event()\n"
        "thread = threading.Thread(target=done.wait, daemon=True)\n"
        "thread.start()\n"
        "try: thread.join()\n"
        "finally: done.set()"
    ),
    "asyncio in main": "import asyncio\nasyncio.run(asyncio.sleep(60)); None",
    "one exception after another": (
        "while True:\n    try: raise ValueError\n    except ValueError: pass"
    ),
    "a session": "while True: n = 1",
    "a return": "while True: pass\nreturn 1",
}


@pytest.mark.parametrize("kind", LOOPS)
def test_code_that_runs_is_stopped(kind):
    """Soon, with kind `cancelled`, and the server goes on."""
    with Port() as port:
        options = {}
        if kind == "a session":
            name = port.new_id()
            port.tell(Atom("open_session"), name, b"s")
            port.value(name)
            options["session"] = b"s"
        name = begin(port, LOOPS[kind], **options)
        time.sleep(0.05)
        began = time.monotonic()
        cancel(port, name)
        error = cancelled(port, name)
        assert time.monotonic() - began < 1.0
        assert error["type"] == b"port_server.Cancelled"
        is_well(port)


def test_the_error_says_where_the_code_was():
    """As a traceback, and as frames, without ours."""
    with Port() as port:
        name = begin(port, "def stuck():\n    while True:\n        pass\nstuck()")
        cancel(port, name)
        error = cancelled(port, name)
        assert [frame["function"] for frame in error["frames"]] == [b"<module>", b"stuck"]
        assert error["frames"][-1]["line"] in {3, 4}
        assert error["traceback"].startswith(b"Traceback (most recent call last):")
        assert error["traceback"].rstrip().endswith(b"port_server.Cancelled: cancelled")
        assert b"cancel.py" not in error["traceback"]


def test_what_takes_long_to_describe_is_described():
    """Later tries leave the description alone, for a second."""
    with Port() as port:
        name = begin(
            port,
            "import time\n"
            "class Slow(Exception):\n"
            "    def __str__(self):\n"
            "        time.sleep(0.1)\n"
            "        return 'slow'\n"
            "try: raise Slow\n"
            "except Slow:\n"
            "    while True: pass",
        )
        cancel(port, name)
        error = cancelled(port, name)
        assert error["frames"][-1]["line"] in {8, 9}
        assert b"Slow: slow" in error["traceback"]


def test_what_takes_for_ever_to_describe_is_not():
    """The reply comes all the same."""
    with Port() as port:
        name = begin(
            port,
            "class Endless(Exception):\n"
            "    def __str__(self):\n"
            "        while True: pass\n"
            "try: raise Endless\n"
            "except Endless:\n"
            "    while True: pass",
        )
        cancel(port, name)
        cancelled(port, name, timeout=10)
        is_well(port)


def test_cleaning_up_is_done():
    """`finally` and `with` run, and may take longer than nothing."""
    with Port() as port:
        name = begin(
            port,
            "import time\n"
            "try:\n"
            "    while True: pass\n"
            "finally:\n"
            "    import builtins; builtins.cleaned = True",
        )
        cancel(port, name)
        cancelled(port, name)
        assert port.value(port.eval("import builtins; builtins.cleaned")) is True


def test_code_may_answer_all_the_same():
    """Whoever catches it decides what becomes of the request."""
    with Port() as port:
        name = begin(
            port,
            "import port_server\n"
            "try:\n"
            "    while True: pass\n"
            "except port_server.Cancelled:\n"
            "    value = 'as far as it got'\n"
            "value",
        )
        cancel(port, name)
        assert outcome(port, name) == ("ok", b"as far as it got")
        is_well(port)


def test_code_that_catches_everything_is_struck_again():
    """Until it ends."""
    with Port() as port:
        name = begin(
            port,
            "caught = 0\n"
            "while caught < 4:\n"
            "    try:\n"
            "        while True: pass\n"
            "    except BaseException: caught += 1\n"
            "caught",
        )
        began = time.monotonic()
        cancel(port, name)
        assert outcome(port, name) == ("ok", 4)
        assert 0.1 < time.monotonic() - began < 1.0
        is_well(port)


def test_code_in_a_destructor_is_stopped():
    """What is raised there is lost, so it takes one more try."""
    with Port() as port:
        name = begin(
            port,
            "class Stubborn:\n"
            "    def __del__(self):\n"
            "        while True: pass\n"
            "thing = Stubborn()\n"
            "del thing\n"
            "while True: pass",
        )
        cancel(port, name)
        cancelled(port, name)
        is_well(port)


def test_a_namespace_that_is_dropped_does_not_hold_the_reply_for_ever():
    """The value was made: it arrives."""
    with Port() as port:
        name = begin(
            port,
            "class Stubborn:\n"
            "    def __del__(self):\n"
            "        print('dropping', flush=True)\n"
            "        while True: pass\n"
            "thing = Stubborn()\n"
            "1",
        )
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        assert outcome(port, name)[0] in {"ok", "error"}
        is_well(port)


def test_a_failure_that_cannot_be_described_is_cut_short():
    """Formatting is the request's time as well."""
    with Port() as port:
        name = port.eval(
            "class Endless(Exception):\n"
            "    def __str__(self):\n"
            "        print('formatting', flush=True)\n"
            "        while True: pass\n"
            "raise Endless"
        )
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        assert outcome(port, name)[0] == "error"
        is_well(port)


def test_an_encoding_without_an_end_is_cut_short():
    """That of a value which asks code of its own; and no object beside it is left behind."""
    with Port() as port:
        name = port.eval(
            "import datetime\n"
            "class Endless(datetime.tzinfo):\n"
            "    def utcoffset(self, _time):\n"
            "        print('asked', flush=True)\n"
            "        while True: pass\n"
            "[object(), datetime.datetime(2024, 1, 1, tzinfo=Endless())]"
        )
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        cancelled(port, name)
        assert port.status()["objects"] == 0
        is_well(port)


def test_the_import_of_a_call_ends_before_the_call_is_stopped(tmp_path):
    """The module is whole; its function is never called."""
    gate = tmp_path / "gate"
    (tmp_path / "slow_module.py").write_text(
        "import os\n"
        "print('under way', flush=True)\n"
        f"while not os.path.exists({str(gate)!r}): pass\n"
        "called = []\n"
        "def f(): called.append(1)\n"
    )
    with Port(env={"PYTHONPATH": str(tmp_path)}) as port:
        name = port.call("slow_module:f")
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        time.sleep(0.2)  # some tries
        gate.touch()
        cancelled(port, name)
        assert port.value(port.eval("import slow_module; slow_module.called")) == []
        is_well(port)


def test_a_large_reply_arrives_whole_or_not_at_all():
    """A cancel while 100 MiB are encoded or written never cuts a frame."""
    with Port() as port:
        for delay in (0.0, 0.01, 0.05, 0.1, 0.2):
            name = begin(port, "'x' * (100 << 20)", binary_as=Atom("bytes"))
            time.sleep(delay)
            cancel(port, name)
            message = outcome(port, name, timeout=20)
            assert message[0] == "error" or len(message[1]) == 100 << 20
            name = begin(port, "list(range(1_000_000))")
            time.sleep(delay)
            cancel(port, name)
            message = outcome(port, name, timeout=20)
            assert message[0] == "error" or len(message[1]) == 1_000_000
        is_well(port)


def test_a_stream_is_stopped_within_an_item():
    """The generator sees it where it computes, not at its next item."""
    with Port() as port:
        name = port.eval(
            "try:\n"
            "    yield 1\n"
            "    while True: pass\n"
            "finally:\n"
            "    import builtins; builtins.cleaned = True",
            stream=True,
            credit=10,
        )
        assert port.reply(name) == ("yield", 1)
        time.sleep(0.05)
        cancel(port, name)
        cancelled(port, name)
        assert port.value(port.eval("import builtins; builtins.cleaned")) is True
        is_well(port)


def test_a_stream_that_catches_everything_ends():
    """It is not asked for another item."""
    with Port() as port:
        name = port.eval(
            "yield 1\n"
            "while True:\n"
            "    try:\n"
            "        while True: pass\n"
            "    except BaseException: yield 2",
            stream=True,
            credit=100,
        )
        assert port.reply(name) == ("yield", 1)
        time.sleep(0.05)
        cancel(port, name)
        while (message := port.reply(name))[0] == "yield":
            pass
        assert message[1]["kind"] == "cancelled"
        is_well(port)


NESTED = "from port_server import call\ncall(':m', 'f')"


def test_cancelling_an_outer_request_raises_at_every_level():
    """Python that waits for Elixir, which waits for Python."""
    with Port() as port:
        outer = port.eval(NESTED)
        call = port.invoked()[1]
        inner = begin(port, "while True: pass", parent=call)
        cancel(port, outer)
        cancelled(port, inner)
        cancelled(port, outer)
        is_well(port)


def test_cancelling_an_inner_request_leaves_the_outer_one_alone():
    """It gets its answer."""
    with Port() as port:
        outer = port.eval(NESTED)
        call = port.invoked()[1]
        inner = begin(port, "while True: pass", parent=call)
        cancel(port, inner)
        cancelled(port, inner)
        port.tell(Atom("answer"), call, (Atom("ok"), 7))
        assert port.value(outer) == 7
        is_well(port)


def test_a_queued_request_behind_it_is_served():
    """It never knows."""
    with Port() as port:
        name = begin(port, "while True: pass")
        behind = [port.eval("n", {"n": n}) for n in range(10)]
        cancel(port, name)
        cancelled(port, name)
        assert [port.value(one) for one in behind] == list(range(10))
        is_well(port)


def test_a_recalled_request_is_given_back_if_it_has_not_begun():
    """What runs, what awaits and what waits behind it go on."""
    with Port() as port:
        awaits = begin(port, "import asyncio\nawait asyncio.sleep(0.2)\n5")
        runs = begin(port, "import os, time\nwhile n: time.sleep(0.01); n -= 1\n6", {"n": 30})
        behind = [port.eval("n", {"n": n}) for n in range(3)]
        for name in (awaits, runs, behind[1], "of none"):
            port.tell(Atom("recall"), name)
        kind, error = port.reply(behind[1])
        assert (kind, error["kind"], error["begun"]) == ("error", "cancelled", False)
        assert [port.value(name) for name in (runs, awaits)] == [6, 5]
        assert [port.value(behind[n]) for n in (0, 2)] == [0, 2]
        is_well(port)


TAKEN = {
    "a handler": "signal.signal(signal.SIGURG, lambda *_: seen.append(1))",
    "ignored": "signal.signal(signal.SIGURG, signal.SIG_IGN)",
    "default": "signal.signal(signal.SIGURG, signal.SIG_DFL)",
    "for asyncio": (
        "import asyncio\n"
        "async def main(): asyncio.get_running_loop().add_signal_handler(signal.SIGURG, print)\n"
        "asyncio.run(main())"
    ),
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_signal_handler_of_user_code_does_not_disable_it(how):
    """Whatever is done with SIGURG, in this request or an earlier one."""
    with Port() as port:
        port.value(port.eval(f"import signal\nseen = []\n{TAKEN[how]}\nNone"))
        for _ in range(2):
            name = begin(port, f"import signal\nseen = []\n{TAKEN[how]}\nwhile True: pass")
            cancel(port, name)
            cancelled(port, name)
        is_well(port)


def test_a_signal_handler_of_user_code_works():
    """And is what `getsignal` gives: the server's own is nowhere to be seen."""
    with Port() as port:
        assert (
            port.value(
                port.eval(
                    "import signal\n"
                    "assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL\n"
                    "seen = []\n"
                    "def take(*_): seen.append(1)\n"
                    "assert signal.signal(signal.SIGURG, take) is signal.SIG_DFL\n"
                    "assert signal.getsignal(signal.SIGURG) is take\n"
                    "signal.raise_signal(signal.SIGURG)\n"
                    "assert signal.signal(signal.SIGURG, signal.SIG_DFL) is take\n"
                    "len(seen)"
                )
            )
            == 1
        )
        error = port.error(port.eval("import signal\nsignal.signal(signal.SIGURG, 'nonsense')"))
        assert error["type"] == b"TypeError"


def test_logging_is_not_left_locked():
    """Its locks are taken in Python code: a signal just there would leave them so."""
    with Port() as port:
        for n in range(30):
            name = begin(port, "import logging\nwhile True: logging.info('again')")
            time.sleep(0.003 * (n % 7))
            cancel(port, name)
            cancelled(port, name)
        name = port.eval(
            "import logging, threading\n"
            "thread = threading.Thread(target=logging.warning, args=('still here',))\n"
            "thread.start()\n"
            "thread.join(5)\n"
            "thread.is_alive()"
        )
        assert outcome(port, name) == ("ok", False)


def test_cancel_of_a_request_that_has_ended_is_nobody_elses():
    """Nothing is pending for the next one."""
    with Port() as port:
        name = port.eval("1")
        assert port.value(name) == 1
        cancel(port, name)
        slow = port.eval("import time; time.sleep(0.3); 2")
        cancel(port, name)
        assert port.value(slow) == 2
        port.nothing(name)


def test_a_cancelled_task_says_where_it_was():
    """The asyncio executor cancels the task; the code sees CancelledError."""
    with Port() as port:
        name = port.eval(
            "import asyncio\n"
            "async def stuck():\n"
            "    print('at it', flush=True)\n"
            "    await asyncio.sleep(60)\n"
            "await stuck()"
        )
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        error = cancelled(port, name)
        functions = [frame["function"] for frame in error["frames"]]
        assert functions[:2] == [b"<module>", b"stuck"]


def test_a_task_that_swallows_its_cancellation_is_cancelled_again():
    """Like code in main."""
    with Port() as port:
        name = port.eval(
            "import asyncio\n"
            "caught = 0\n"
            "while caught < 3:\n"
            "    try:\n"
            "        print('at it', flush=True)\n"
            "        await asyncio.sleep(60)\n"
            "    except asyncio.CancelledError: caught += 1\n"
            "caught"
        )
        assert port.reply(name)[0] == "output"
        cancel(port, name)
        assert outcome(port, name) == ("ok", 3)
        is_well(port)


@pytest.mark.parametrize("prelude", ["", SMALL_SWITCHES], ids=["usual", "switching all the time"])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.slow
def test_nothing_is_lost_doubled_or_cancelled_wrongly(prelude, seed):
    """Short requests, one by one and in bursts; a cancel for a third of them, at any moment."""
    dice = random.Random(seed)
    count = 3000
    codes = (
        "n",
        "sum(range(m)); n",
        "for _ in range(m): pass\nn",
        "for _ in range(m): f = lambda: 0; f()\nn",
        "print(n); n",
        "for i in range(m // 100): print(i)\nn",
        "import time; time.sleep(m / 1e7); n",
        "import logging; logging.info(n); n",
    )
    with Port(prelude=prelude) as port:
        expected = {}
        waiting = deque()
        cancels = set()
        struck = 0

        def take_in(most):
            nonlocal struck
            while len(waiting) > most:
                name = waiting.popleft()
                kind, value = outcome(port, name, timeout=30)
                if kind == "ok":
                    assert value == expected[name]
                else:
                    assert value["kind"] == "cancelled", value
                    assert name in cancels
                    struck += value["begun"]

        # Which cancels strike is the machine's dice: it goes on until some have.
        while len(expected) < count or (struck < 10 and len(expected) < 10 * count):
            burst = []
            for _ in range(dice.choice((1, 1, 1, 2, 10))):
                name = port.new_id()
                code = dice.choice(codes)
                n = expected[name] = len(expected)
                given = {"n": n, "m": int(10 ** (5.5 * dice.random()))}
                burst.append(encode((Atom("eval"), name, {}, code, atoms(given))))
                waiting.append(name)
            port.write(*burst)
            if dice.random() < 0.5:
                target = dice.choice(waiting) if dice.random() < 0.8 else name
                time.sleep(dice.random() * 0.012)
                cancels.add(target)
                cancel(port, target)
            take_in(dice.choice((0, 1, 12)))
        take_in(0)
        assert struck >= 10
        is_well(port)


def test_the_stacks_are_dumped_on_request():
    """SIGUSR2, while the GIL is held: faulthandler's, for a process that is about to be killed."""
    with Port() as port:
        name = port.eval(
            "def compute():\n"
            "    print('at it', flush=True)\n"
            "    return sum(range(150_000_000)) and 1\n"
            "compute()"
        )
        assert port.reply(name)[0] == "output"
        port.process.send_signal(signal.SIGUSR2)
        assert outcome(port, name, timeout=60) == ("ok", 1)
        port.process.stdin.close()
        assert b"in compute" in port.process.stderr.read()
        assert port.process.wait(5) == 0


def test_a_handler_of_user_code_for_the_dump_comes_after_it():
    """Both do what they are for."""
    with Port() as port:
        assert (
            port.value(
                port.eval(
                    "import signal\n"
                    "seen = []\n"
                    "def take(*_): seen.append(1)\n"
                    "assert signal.signal(signal.SIGUSR2, take) is signal.SIG_DFL\n"
                    "assert signal.getsignal(signal.SIGUSR2) is take\n"
                    "signal.raise_signal(signal.SIGUSR2)\n"
                    "assert signal.signal(signal.SIGUSR2, signal.SIG_DFL) is take\n"
                    "signal.raise_signal(signal.SIGUSR2)\n"
                    "len(seen)"
                )
            )
            == 1
        )
        port.process.stdin.close()
        assert port.process.stderr.read().count(b"Current thread") == 2


@pytest.mark.slow
def test_the_import_lock_is_never_left_taken():
    """300 cancels of code that imports the same modules again and again."""
    code = (
        "import sys\n"
        "while True:\n"
        "    for name in list(sys.modules):\n"
        "        if name.partition('.')[0] == 'json': del sys.modules[name]\n"
        "    import json, json.tool\n"
    )
    dice = random.Random(4)
    begun = []
    with Port() as port:
        for _ in range(300):
            name = port.eval("print(end='under way', flush=True)\n" + code)
            assert port.reply(name)[0] == "output"
            time.sleep(0.006 * dice.random())
            cancel(port, name)
            kind, error = outcome(port, name)
            assert (kind, error["kind"]) == ("error", "cancelled")
            begun.append(error["begun"])
        assert begun.count(True) > 100  # a busy machine does not begin all of them in time
        assert port.value(port.eval("import _imp; _imp.lock_held()")) is False
        done = (
            "import threading, sys\n"
            "sys.modules.pop('json', None)\n"
            "thread = threading.Thread(target=__import__, args=('json',))\n"
            "thread.start()\n"
            "thread.join(10)\n"
            "thread.is_alive()"
        )
        assert port.value(port.eval(done)) is False
        is_well(port)


def test_a_pong_names_the_module_that_a_request_imports(tmp_path):
    """The outermost one, while it goes on; nothing before and after."""
    gate = tmp_path / "gate"
    (tmp_path / "outer.py").write_text("import inner\n")
    (tmp_path / "inner.py").write_text(
        "import os, time\n"
        "print('under way', flush=True)\n"
        f"while not os.path.exists({str(gate)!r}): time.sleep(0.001)\n"
    )
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport outer\nwhile True: pass"
    with Port() as port:
        name = port.eval(code)
        assert port.reply(name)[0] == "output"
        port.tell(Atom("ping"), name)
        kind, status = port.reply(name)
        assert (kind, status["importing"]) == ("pong", b"outer")
        cancel(port, name)
        gate.touch()
        assert cancelled(port, name)["frames"][-1]["line"] in {3, 4}
        port.tell(Atom("ping"), name)
        assert port.reply(name)[1]["importing"] is None
        assert port.value(port.eval("1 + 1")) == 2


def test_stacks_are_told_while_code_runs():
    """By the control thread, which leaves itself out."""
    with Port() as port:
        name = begin(port, "def busy():\n    while True: pass\nbusy()")
        asked = port.new_id()
        port.tell(Atom("stacks"), asked)
        kind, text = port.reply(asked)
        assert kind == "ok"
        text = text if isinstance(text, str) else text.decode()
        assert "in busy" in text.split("\n\n")[0]
        assert "_tick_on" not in text
        cancel(port, name)
        cancelled(port, name)
        is_well(port)


def test_a_tracer_of_user_code_stays_in_place():
    """A cancel inside of an import leaves it alone, and strikes all the same."""
    code = (
        "import sys, time\n"
        "def tracer(*_): return None\n"
        "sys.settrace(tracer)\n"
        "for name in list(sys.modules):\n"
        "    if name.partition('.')[0] == 'json': del sys.modules[name]\n"
        "while True:\n"
        "    import json\n"
        "    del sys.modules['json']\n"
        "    time.sleep(0.001)\n"
    )
    with Port() as port:
        name = begin(port, code)
        cancel(port, name)
        cancelled(port, name)
        assert port.value(
            port.eval("import sys\nfound = sys.gettrace()\nsys.settrace(None)\nfound is not None")
        )
        is_well(port)
