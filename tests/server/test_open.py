"""A ping says whether the request of its id is under way, wherever that is."""

import pytest
from gate import Gate
from raw_client import Port

from port_server.etf import Atom, Struct

F = Struct("Elixir.PyPort.Callback", {Atom("index"): 0, Atom("arity"): 1})
IN_A_THREAD = """
import threading
thread = threading.Thread(target=f, args=(0,))
thread.start()
thread.join()
"""


@pytest.fixture
def port():
    with Port(init={"heartbeat_interval_ms": 0}) as port:
        yield port


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def is_open(port, name):
    port.tell(Atom("ping"), name)
    kind, status = port.reply(name)
    assert kind == "pong"
    return status["open"]


def answer(port, call):
    port.tell(Atom("answer"), call, (Atom("ok"), None))


@pytest.mark.parametrize("code", ["asleep", "awaiting"])
def test_a_running_request_is_open_until_its_reply(port, gate, code):
    name = port.eval(getattr(gate, code))
    while port.status()["state"] == "idle":
        pass
    assert is_open(port, name) is True
    assert is_open(port, port.new_id()) is False
    gate.open()
    port.value(name)
    assert is_open(port, name) is False


def test_a_stream_that_waits_for_credit_is_open(port):
    name = port.eval("yield 1\nyield 2", stream=True, credit=1)
    assert port.reply(name) == ("yield", 1)
    assert is_open(port, name) is True
    port.tell(Atom("credit"), name, 2)
    assert port.reply(name) == ("yield", 2)
    port.value(name)
    assert is_open(port, name) is False


@pytest.mark.parametrize("code", ["f(0)", IN_A_THREAD])
def test_one_that_waits_below_another_is_open_and_so_is_that(port, gate, code):
    outer = port.eval(code, {"f": F})
    call = port.invoked()[1]
    inner = port.eval(gate.asleep, parent=call)
    if code == "f(0)":
        port.settled(running=inner)
    else:
        port.settled(tasks=1)
    assert is_open(port, outer) is True
    assert is_open(port, inner) is True
    gate.open()
    port.value(inner)
    answer(port, call)
    port.value(outer)
    port.settled(tasks=0, running=None)
    assert is_open(port, outer) is is_open(port, inner) is False


def test_one_that_was_cancelled_before_it_began_has_been_answered_by_then(port, gate):
    first = port.eval(gate.asleep)
    waiting = port.eval("1")
    port.tell(Atom("cancel"), waiting)
    port.tell(Atom("ping"), waiting)
    assert port.error(waiting)["begun"] is False
    assert port.reply(waiting)[1]["open"] is False
    gate.open()
    port.value(first)
