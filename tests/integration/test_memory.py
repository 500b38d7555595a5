"""A memory limit: too much is an error of that request, and the server goes on."""

from __future__ import annotations

import sys

import pytest
from port_client import Client
from raw_client import Port

from port_server.etf import Atom

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux holds a process to RLIMIT_AS"
)

LIMIT_BYTES = 512 << 20

GREEDY = {
    "piece by piece": "x = []\nwhile True: x.append(bytes(10**6))",
    "in small pieces": "x = []\nwhile True: x.append([1.5 * len(x)] * 10)",
    "at once": "bytes(10**10)",
    "one integer": "x = 1 << (1 << 34)",
    "text": "x = 'abc'\nwhile True: x += x",
    "in a function": "def f(x):\n    while True: x.append(bytes(10**6))\nf([])",
    "in a session": "x = []\nwhile True: x.append(bytes(10**6))",
    "an error that holds on to it": (
        "x = []\n"
        "try:\n"
        "    while True: x.append(bytes(10**6))\n"
        "except MemoryError as error:\n"
        "    raise MemoryError('mine') from error"
    ),
}


def error_of(port, name):
    """Skip output: without memory Python itself prints the errors that it can raise nowhere."""
    while (message := port.reply(name, timeout=60))[0] == "output":
        pass
    assert message[0] == "error", message
    return message[1]


@pytest.mark.parametrize("how", GREEDY)
@pytest.mark.slow
def test_too_much_memory_is_a_memory_error(how):
    """With a traceback; afterwards the memory is there again, three times over."""
    with Port(init={"memory_limit_bytes": LIMIT_BYTES}) as port:
        options = {}
        if how == "in a session":
            for name in (b"a", b"b", b"c"):
                port.tell(Atom("open_session"), name, name)
                port.value(name)
        before = port.status()["rss_bytes"]
        for name in (b"a", b"b", b"c"):
            if how == "in a session":
                options["session"] = name
            error = error_of(port, port.eval(GREEDY[how], **options))
            assert error["kind"] == "python"
            assert error["type"] == b"MemoryError"
            assert b"MemoryError" in error["traceback"]
            if how != "in small pieces":  # there Python has no room left to note where it was
                assert error["frames"][0]["function"] == b"<module>"
            assert port.value(port.eval("1 + 1")) == 2 or how == "in a session"
            if how == "in a session":
                port.tell(Atom("close_session"), name)
        assert port.value(port.eval("len(bytes(10**8))")) == 10**8
        assert port.status()["rss_bytes"] - before < 64 << 20
        assert port.doubled == []


def test_a_value_that_is_too_large_to_be_written_is_an_error():
    """Encoding takes memory as well."""
    with Port(init={"memory_limit_bytes": LIMIT_BYTES}) as port:
        kind, _error = port.reply(port.eval("['x' * 10_000] * 100_000"), timeout=60)
        assert kind == "error"
        assert port.value(port.eval("1 + 1")) == 2


def test_a_task_meets_the_same_limit():
    """It is the process that is held to it."""
    with Port(init={"memory_limit_bytes": LIMIT_BYTES}) as port:
        name = port.eval(
            "import asyncio\nawait asyncio.sleep(0)\nx = []\nwhile True: x.append(bytes(10**6))"
        )
        assert port.error(name, timeout=60)["type"] == b"MemoryError"
        assert port.value(port.eval("import asyncio; await asyncio.sleep(0); 1")) == 1


@pytest.mark.parametrize("value", [1, "much", 1 << 20])
def test_a_limit_that_cannot_be_is_refused(value):
    """With what would do."""
    with Client(init=False) as client:
        client.tell(Atom("init"), 1, {Atom("memory_limit_bytes"): value})
        goodbye = client.next_frame()
        assert goodbye[0] == "goodbye"
        assert b"memory_limit_bytes" in goodbye[1]["message"]


def test_without_one_there_is_none():
    """The limit that the process had stays."""
    with Port(init={"heartbeat_interval_ms": 0}) as port:
        name = port.eval("import resource as r; r.getrlimit(r.RLIMIT_AS)[0] == r.RLIM_INFINITY")
        assert port.value(name) is True
