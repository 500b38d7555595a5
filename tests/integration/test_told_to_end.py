"""A server that is told to end by SIGTERM: what it cannot finish is told why, truthfully."""

import signal

import pytest
from port_client import Client

from port_server.etf import Atom

CALLBACK = {
    Atom("__struct__"): Atom("Elixir.PyPort.Callback"),
    Atom("index"): 0,
    Atom("arity"): 0,
}
IN_A_THREAD = """
import threading
said = []
def ask():
    try: f()
    except BaseException as error: said.append(error)
thread = threading.Thread(target=ask)
thread.start(); thread.join()
raise said[0]
"""
CALLS = {"main": "f()", "thread": IN_A_THREAD, "async": "import asyncio\nawait f()"}
STREAMS = {
    "main": "for n in range(10): yield n",
    "async": "import asyncio\nfor n in range(10):\n    await asyncio.sleep(0)\n    yield n",
}


@pytest.fixture
def server():
    with Client() as client:
        yield client


@pytest.mark.parametrize("where", CALLS)
def test_code_that_waits_for_a_call_is_told_why_no_answer_comes(server, where):
    """An exception that it can catch, which names the signal."""
    request = server.send_eval(CALLS[where], {"f": CALLBACK})
    server.receive(lambda frame: frame[0] == "invoke")
    server.process.send_signal(signal.SIGTERM)
    error = server.reply(request)[2]
    assert (error["kind"], error["type"]) == ("python", b"RuntimeError")
    assert b"told to end by SIGTERM" in error["message"]
    assert server.receive(lambda frame: frame[0] == "goodbye") == ("goodbye", "sigterm")
    assert server.process.wait(10) == 0


@pytest.mark.parametrize("where", STREAMS)
def test_a_stream_that_waits_for_its_consumer_is_told_why_it_ends(server, where):
    """It was not cancelled."""
    request = server.send_eval(STREAMS[where], options={"stream": True, "credit": 2})
    for n in range(2):
        assert server.receive(lambda frame: frame[0] == "yield")[2] == n
    server.process.send_signal(signal.SIGTERM)
    error = server.reply(request)[2]
    assert (error["kind"], error["begun"]) == ("exited", True)
    assert b"told to end by SIGTERM" in error["message"]


def test_what_does_not_end_within_the_grace_of_a_shutdown_is_told_that(server):
    """A task, a stream and a call."""
    task = server.send_eval("import asyncio\nawait asyncio.sleep(60)")
    stream = server.send_eval(STREAMS["main"], options={"stream": True, "credit": 1})
    call = server.send_eval("import asyncio\nawait f()", {"f": CALLBACK})
    server.receive(lambda frame: frame[0] == "invoke")
    server.receive(lambda frame: frame[0] == "yield")
    server.tell(Atom("shutdown"), 200)
    for request in (task, stream, call):
        error = server.reply(request)[2]
        assert error["kind"] == "exited"
        assert b"its grace is over" in error["message"]


def test_a_cancel_that_came_before_is_a_cancel(server):
    """The client that cancelled it knows why it ends."""
    request = server.send_eval(STREAMS["main"], options={"stream": True, "credit": 1})
    server.receive(lambda frame: frame[0] == "yield")
    server.tell(Atom("cancel"), request)
    assert server.reply(request)[2]["kind"] == "cancelled"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
