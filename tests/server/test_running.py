"""The owner is told of a request that has run for long, once, if it has asked for that."""

import pytest
from raw_client import WITHOUT_C, Port

# Each goes on until the gate is there.
LONG = {
    "sleeps": "import os, time\nwhile not os.path.exists(gate): time.sleep(0.001)",
    "computes": "import os\nwhile not os.path.exists(gate): sum(range(1000))",
    "awaits": "import asyncio, os\nwhile not os.path.exists(gate): await asyncio.sleep(0.001)",
    "has a thread": (
        "import os, threading, time\n"
        "def wait():\n    while not os.path.exists(gate): time.sleep(0.001)\n"
        "thread = threading.Thread(target=wait)\nthread.start()\nthread.join()"
    ),
}
SLEEPS = "import time\ntime.sleep(0.1)"
AWAITS = "import asyncio\nawait asyncio.sleep(0.1)"


def told(port):
    """Give the ids of the requests that the owner was told of up to now."""
    port.status()
    found = []
    while not port.others.empty():
        message = port.others.get()
        if message[0] == "running":
            found.append(message[1])
    return found


@pytest.mark.parametrize("prelude", ["", WITHOUT_C], ids=["in C", "in Python"])
@pytest.mark.parametrize("how", LONG)
def test_a_long_request_is_told_of_once(tmp_path, prelude, how):
    """Wherever it runs."""
    with Port(init={"running_after_ms": 20}, prelude=prelude) as port:
        port.reply(port.eval("import asyncio\nawait asyncio.sleep(0)"))  # imports it
        told(port)
        for n in range(3):
            gate = tmp_path / str(n)
            name = port.eval(LONG[how], {"gate": str(gate)})
            assert port.others.get(timeout=10) == ("running", name)
            gate.touch()
            assert port.value(name) is None
            assert told(port) == []


@pytest.mark.parametrize("prelude", ["", WITHOUT_C], ids=["in C", "in Python"])
def test_a_short_request_is_not_told_of(prelude):
    """In main or on the event loop."""
    with Port(init={"running_after_ms": 2_000}, prelude=prelude) as port:
        for code in ("1", "import asyncio\nawait asyncio.sleep(0)"):
            for _ in range(20):
                port.reply(port.eval(code))
        assert told(port) == []


def test_two_that_follow_each_other_are_told_of_both():
    """The second one is not taken for the first."""
    with Port(init={"running_after_ms": 5}) as port:
        with port.at_once():
            names = [port.eval(SLEEPS) for _ in range(3)]
        assert [port.value(name) for name in names] == [None] * 3
        assert told(port) == names


def test_an_owner_that_has_not_asked_is_told_nothing():
    """It might not know the message."""
    with Port(init={}) as port:
        assert port.value(port.eval(SLEEPS)) is None
        assert port.value(port.eval(AWAITS)) is None
        assert told(port) == []
