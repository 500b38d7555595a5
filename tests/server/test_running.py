"""The owner is told of a request that has run for long, once, if it has asked for that."""

import pytest
from lanes_client import WITHOUT_C, Port

LONG = {
    "sleeps": "import time\ntime.sleep(0.1)",
    "computes": "import time\nend = time.monotonic() + 0.1\nwhile time.monotonic() < end: pass",
    "awaits": "import asyncio\nawait asyncio.sleep(0.1)",
    "has a thread": (
        "import threading, time\nthread = threading.Thread(target=time.sleep, args=(0.1,))\n"
        "thread.start()\nthread.join()"
    ),
}


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
def test_a_long_request_is_told_of_once(prelude, how):
    """Wherever it runs; a short one is not."""
    with Port(init={"running_after_ms": 20}, prelude=prelude) as port:
        port.reply(port.eval("import asyncio\nawait asyncio.sleep(0)"))  # imports it
        told(port)
        for _ in range(3):
            name = port.eval(LONG[how])
            assert port.value(name) is None
            assert told(port) == [name]
        for code in ("1", "import asyncio\nawait asyncio.sleep(0)"):
            for _ in range(20):
                port.reply(port.eval(code))
        assert told(port) == []


def test_two_that_follow_each_other_are_told_of_both():
    """The second one is not taken for the first."""
    with Port(init={"running_after_ms": 5}) as port:
        with port.at_once():
            names = [port.eval(LONG["sleeps"]) for _ in range(3)]
        assert [port.value(name) for name in names] == [None] * 3
        assert told(port) == names


def test_an_owner_that_has_not_asked_is_told_nothing():
    """It might not know the message."""
    with Port(init={}) as port:
        assert port.value(port.eval(LONG["sleeps"])) is None
        assert port.value(port.eval(LONG["awaits"])) is None
        assert told(port) == []
