"""A stream sends its items as far as the credit reaches, and holds nobody up."""

import time

import pytest
from raw_client import Port

from port_server.etf import Atom

ENDLESS = "import itertools\nfor n in itertools.count(): yield n"


@pytest.fixture
def port():
    with Port(init={"heartbeat_interval_ms": 0}) as port:
        yield port
        port.settled(streams=0, tasks=0, objects=0)


def items(port, name):
    """Take everything up to the end: the items, and the last reply."""
    got = []
    while (message := port.reply(name))[0] == "yield":
        got.append(message[1])
    return got, message


@pytest.mark.parametrize(
    "code",
    [
        "yield from range(5)",
        "for n in range(5): yield n",
        "range(5)",
        "(n for n in range(5))",
        "iter([0, 1, 2, 3, 4])",
        "{n: n for n in range(5)}",
        "import asyncio\nfor n in range(5):\n  await asyncio.sleep(0)\n  yield n",
        "async def f():\n  for n in range(5): yield n\nf()",
        "async def f(): return range(5)\nf()",
    ],
)
def test_whatever_can_be_iterated_is_a_stream(port, code):
    assert items(port, port.eval(code, stream=True, credit=100)) == ([0, 1, 2, 3, 4], ("ok", None))


def test_the_return_value_comes_last(port):
    assert items(port, port.eval("yield 1\nreturn 2", stream=True, credit=9)) == ([1], ("ok", 2))


@pytest.mark.parametrize("head", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
def test_no_more_is_sent_than_there_is_credit_for(port, head):
    name = port.eval(head + ENDLESS, stream=True, credit=3)
    assert [port.reply(name)[1] for _ in range(3)] == [0, 1, 2]
    port.nothing(name)
    assert port.value(port.eval("7")) == 7  # parked, it holds nobody up
    port.tell(Atom("credit"), name, 2)
    assert [port.reply(name)[1] for _ in range(2)] == [3, 4]
    port.nothing(name)
    port.tell(Atom("cancel"), name)
    assert port.error(name)["kind"] == "cancelled"


@pytest.mark.parametrize("head", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
def test_cancel_lets_finally_run(port, head):
    code = "try:\n  for n in range(9): yield n\nfinally:\n  print('closed\\n', end='')"
    name = port.eval(head + code, stream=True, credit=2)
    assert [port.reply(name)[1] for _ in range(2)] == [0, 1]
    port.tell(Atom("cancel"), name)
    message = port.reply(name)
    assert message == ("output", Atom("stdout"), b"closed\n")
    assert port.error(name)["kind"] == "cancelled"


@pytest.mark.parametrize("value", ["iter(int, 1)", "asyncio.sleep(60, [])", "agen()"])
def test_a_cancel_while_the_value_is_made_ends_the_stream(port, value):
    """Nobody takes its items: it must not wait for credit for ever."""
    code = (
        "import asyncio, time\nasync def agen():\n  while True: yield 1\n"
        "print('began\\n', end='', flush=True)\ntime.sleep(0.2)\n"
    )
    name = port.eval(code + value, stream=True, credit=5)
    assert port.reply(name)[0] == "output"
    port.tell(Atom("cancel"), name)
    _got, (_kind, error) = items(port, name)
    assert error["kind"] == "cancelled"


def test_a_running_stream_gives_way_to_requests(port):
    code = (
        "import time\nwhile True:\n  end = time.monotonic() + 0.001\n"
        "  while time.monotonic() < end: pass\n  yield 1"
    )
    name = port.eval(code, stream=True, credit=1_000_000)
    port.reply(name)
    times = []
    for _ in range(20):
        began = time.monotonic()
        assert port.value(port.eval("1")) == 1
        times.append(time.monotonic() - began)
    assert sorted(times)[10] < 0.05
    port.tell(Atom("cancel"), name)
    _got, last = items(port, name)
    assert last[1]["kind"] == "cancelled"


def test_a_generator_that_raises_after_three_items_sends_them_first(port):
    name = port.eval("yield from range(3)\n1 / 0", stream=True, credit=100)
    got, (kind, error) = items(port, name)
    assert got == [0, 1, 2]
    assert (kind, error["type"]) == ("error", b"ZeroDivisionError")
    assert error["frames"][0]["line"] == 2


def test_an_item_that_cannot_be_written_ends_the_stream(port):
    name = port.eval("x = []\nx.append(x)\nyield 1\nyield x", stream=True, credit=9)
    got, (kind, error) = items(port, name)
    assert (got, kind, error["kind"]) == ([1], "error", "encode")


def test_what_cannot_be_iterated_is_an_error(port):
    assert port.error(port.eval("7", stream=True, credit=9))["type"] == b"TypeError"


def test_a_slow_item_does_not_keep_those_before_it(port, gate):
    code = f"for n in range(20): yield n\n{gate.asleep}yield 20"
    name = port.eval(code, stream=True, credit=100)
    assert [port.reply(name)[1] for _ in range(20)] == list(range(20))
    gate.open()
    assert items(port, name)[0] == [20]


def test_many_streams_at_once_are_each_in_order(port):
    names = [port.eval("yield from range(500)", stream=True, credit=1000) for _ in range(20)]
    for name in names:
        assert items(port, name) == (list(range(500)), ("ok", None))


def test_objects_in_items_are_told(port):
    name = port.eval("yield object()", stream=True, credit=9)
    kind, handle, ids = port.reply(name)
    assert (kind, [handle["id"]]) == ("yield", ids)
    port.reply(name)
    port.tell(Atom("release"), ids)


def test_streams_that_wait_for_credit_end_with_the_input():
    with Port() as other:
        name = other.eval(ENDLESS, stream=True, credit=1)
        other.reply(name)
        other.process.stdin.close()
        assert other.error(name)["kind"] == "exited"
        assert other.process.wait(3) == 0


def test_a_hundred_thousand_items_are_cheap(port):
    name = port.eval("yield from range(100_000)", stream=True, credit=200_000)
    began = time.monotonic()
    got, last = items(port, name)
    assert (len(got), last) == (100_000, ("ok", None))
    assert time.monotonic() - began < 10


@pytest.mark.main_thread  # the order of main; threads run the later request meanwhile
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("credit", [1, 1000])
def test_a_cancelled_stream_ends_before_later_requests(port, gate, busy, credit):
    """Whether main is free when the cancel comes, and whether the stream waits or goes on."""
    other = port.eval(ENDLESS, stream=True, credit=1000)
    code = (
        "import sys, time\nsys.left = False\ntry:\n"
        "    while True: yield time.sleep(0.001)\nfinally: sys.left = True"
    )
    name = port.eval(code, stream=True, credit=credit)
    assert port.reply(name)[0] == port.reply(other)[0] == "yield"
    running = port.eval(gate.asleep) if busy else None
    port.status()
    with port.at_once():
        port.tell(Atom("cancel"), name)
        later = port.eval("import sys\nsys.left")
    if running is not None:
        gate.open()
        assert port.value(running) is None
    assert port.value(later) is True
    port.tell(Atom("cancel"), other)
    assert items(port, name)[1][1]["kind"] == "cancelled"
    assert items(port, other)[1][1]["kind"] == "cancelled"


@pytest.mark.main_thread
def test_a_pong_says_whether_a_stream_waits_for_main(port, gate):
    """So that nobody takes it for one that does not end although it was told to."""

    def waits(name):
        port.tell(Atom("ping"), name)
        while (message := port.reply(name))[0] != "pong":
            pass
        return message[1]["waiting"]

    stream = port.eval(ENDLESS, stream=True, credit=1)
    assert port.reply(stream) == ("yield", 0)
    running = port.eval(gate.asleep)
    tasks = port.eval("import asyncio\nyield 1\nawait asyncio.sleep(60)", stream=True, credit=9)
    assert port.reply(tasks) == ("yield", 1)
    assert [waits(name) for name in (stream, running, tasks)] == [True, False, False]
    gate.open()
    assert port.value(running) is None
    assert waits(stream) is False  # main is free: it ends as soon as it is told to
    for name in (stream, tasks):
        port.tell(Atom("cancel"), name)
        assert port.error(name)["kind"] == "cancelled"


def test_a_second_cancel_does_not_cut_the_finally_short(port):
    """It has some time, as after a first signal. A busy machine may take longer, but not always."""
    code = (
        "import sys, time\n"
        "try: yield 1\n"
        "finally:\n"
        "    print('closing', flush=True)\n"
        "    time.sleep(0.02)\n"
        "    sys.closed = mark"
    )
    for mark in range(20):
        stream = port.eval(code, {"mark": mark}, stream=True, credit=1)
        assert port.reply(stream) == ("yield", 1)
        port.tell(Atom("cancel"), stream)
        assert port.reply(stream)[0] == "output"
        port.tell(Atom("cancel"), stream)
        assert port.error(stream)["kind"] == "cancelled"
        if port.value(port.eval("import sys; getattr(sys, 'closed', None)")) == mark:
            return
    pytest.fail("the finally was never run to its end")
