"""The status page: what can be known of a server without its help."""

from __future__ import annotations

import os
import signal
import time

import pytest
from gate import Gate
from port_client import Client
from raw_client import Port

from port_server.etf import Atom

GIL_HELD = "sum(range(60_000_000)) and 1"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "page"
    path.write_bytes(bytes(64))
    return path


@pytest.fixture
def port(file):
    with Port(init={"status_page": str(file), "heartbeat_interval_ms": 20}) as found:
        yield found


def running(file):
    """Give the id of the request on the page, or None."""
    page = file.read_bytes()
    return page[16 : 16 + page[15]] if page[15] else None


def elsewhere(file):
    return int.from_bytes(file.read_bytes()[5:7], "little")


def beats(file):
    return int.from_bytes(file.read_bytes()[48:56], "little")


def until(condition, seconds=5.0):
    """Wait for what is to come true soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.usefixtures("port")
def test_it_begins_with_its_name_and_the_phase(file):
    """Whoever finds a file can tell that it was mapped, and by what."""
    assert file.read_bytes()[:5] == b"PYP1\x01"
    assert len(file.read_bytes()) == 64
    assert running(file) is None


def test_the_running_request_stands_on_it(port, file, gate):
    """From its begin to its reply, and nobody after that."""
    name = port.eval(gate.asleep)
    until(lambda: running(file) == name)
    gate.open()
    port.value(name)
    until(lambda: running(file) is None)


def test_it_can_be_read_while_the_gil_is_held(port, file):
    """The id is there, the beats stand still: nobody had to be asked."""
    name = port.eval(GIL_HELD)
    until(lambda: running(file) == name)
    before, began = beats(file), time.monotonic()
    while running(file) == name:
        seen, took = beats(file), time.monotonic() - began
        time.sleep(0.002)
    # A beat is due every 20 ms; there is one before it holds the GIL, and one after that.
    assert took > 0.2
    assert seen - before <= 2
    assert port.value(name, timeout=60) == 1
    until(lambda: beats(file) > before + 2)


def test_it_can_be_read_of_a_stopped_server(port, file, gate):
    """SIGSTOP takes nothing away."""
    name = port.eval(gate.asleep + "1")
    until(lambda: running(file) == name)
    os.kill(port.process.pid, signal.SIGSTOP)
    try:
        assert running(file) == name
    finally:
        os.kill(port.process.pid, signal.SIGCONT)
    gate.open()
    assert port.value(name) == 1


def test_it_says_who_was_at_it_when_the_server_died(port, file):
    """A segfault leaves the id on the page."""
    name = port.eval("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    port.process.wait(10)
    assert running(file) == name


def test_when_replies_are_lost_it_does_not_say_that_nothing_had_begun(port, file):
    """One that ran to its end, its reply unwritten, must not look like one that never began."""
    port.tell(Atom("eval"), b"1", {}, "import os; os.closerange(3, 4096)", {})
    port.process.wait(10)
    assert elsewhere(file) == 0xFFFF


@pytest.mark.parametrize("size", [1, 8, 31, 32, 33, 255])
def test_an_id_of_any_length_is_shown_as_far_as_there_is_room(port, file, gate, size):
    """Its length is the true one: at most 32 bytes of it are there."""
    name = bytes(range(1, size + 1)) if size < 256 else b""
    port.tell(Atom("eval"), name, {}, gate.asleep, {})
    until(lambda: file.read_bytes()[15] == size)
    assert file.read_bytes()[16 : 16 + min(size, 32)] == name[:32]
    gate.open()
    port.reply(name)
    until(lambda: file.read_bytes()[15] == 0)
    port.value(port.eval("1"))


def test_beats_and_requests_are_counted(port, file):
    """As in the heartbeats."""
    for _ in range(10):
        port.value(port.eval("1"))
    until(lambda: int.from_bytes(file.read_bytes()[56:64], "little") == 10)
    before = beats(file)
    until(lambda: beats(file) > before)


def test_requests_of_other_executors_are_counted(port, file):
    """Tasks and streams are not in main, and not on the page by name."""
    tasks = [port.eval("import asyncio; await asyncio.sleep(60)") for _ in range(3)]
    until(lambda: elsewhere(file) == 3)
    stream = port.eval("yield from range(10)", stream=True, credit=2)
    until(lambda: elsewhere(file) == 4)
    for name in (*tasks, stream):
        port.tell(Atom("cancel"), name)
    until(lambda: elsewhere(file) == 0)


def test_a_request_on_top_of_another_takes_its_place_for_a_while(port, file, tmp_path):
    """What main runs is what stands there."""
    below, above = Gate(tmp_path / "below"), Gate(tmp_path / "above")
    outer = port.eval("from port_server import call\ncall(':m', 'f')\n" + below.asleep)
    _request, call, *_what = port.invoked()
    inner = port.eval(above.asleep, parent=call)
    until(lambda: running(file) == inner)
    above.open()
    port.value(inner)
    port.tell(Atom("answer"), call, (Atom("ok"), None))
    until(lambda: running(file) == outer)
    below.open()
    port.value(outer)


@pytest.mark.parametrize("options", [{}, {"stream": True, "credit": 9}])
def test_a_request_that_goes_on_waiting_for_a_call_has_its_place_again(port, file, options):
    """Whoever dies then has begun, whatever ran on top of it meanwhile."""
    outer = port.eval("from port_server import call\ncall(':m', 'f')")
    _request, call, *_what = port.invoked()
    code = "yield 1" if options else "1"
    inner = port.eval(code, parent=call, **options)
    while port.reply(inner)[0] != "ok":
        pass
    until(lambda: running(file) == outer)
    port.tell(Atom("answer"), call, (Atom("ok"), None))
    port.value(outer)
    until(lambda: running(file) is None)


@pytest.mark.parametrize("kind", ["task", "thread"])
def test_a_request_elsewhere_is_counted_until_its_reply_is_written(file, kind):
    """An owner that reads slowly is never told that the request has not begun."""
    size = 50_000_000  # far more than any pipe holds
    with Client({"status_page": str(file)}) as client:
        if kind == "task":
            client.send_eval(f"import asyncio\nasync def f(): return b'x' * {size}\nawait f()")
        else:
            client.value(
                "import threading\nfrom port_server import call\n"
                "threading.Thread(target=call, args=(':m', 'f'), daemon=True).start()"
            )
            invoke = client.receive(lambda frame: frame[0] == "invoke")
            client.send_eval(f"b'x' * {size}", options={"parent": invoke[2]})
        until(lambda: elsewhere(file) == 1)
        time.sleep(0.3)
        assert elsewhere(file) == 1
        assert len(client.receive(lambda frame: frame[0] == "ok", 30)[2]) == size
        until(lambda: elsewhere(file) == 0)


def test_a_forked_child_does_not_write_on_it(port, file):
    """It is the parent's."""
    name = port.eval("import os\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)[1]")
    assert port.value(name) == 0
    assert file.read_bytes()[:4] == b"PYP1"


def test_draining_is_a_phase(port, file, gate):
    """The owner that asked for it can see it."""
    port.eval(gate.awaiting)
    until(lambda: elsewhere(file) == 1)
    port.tell(Atom("shutdown"), 20_000)
    until(lambda: file.read_bytes()[4] == 2)
    gate.open()
    assert port.process.wait(10) == 0


@pytest.mark.parametrize("what", ["missing", "too short", "a directory"])
def test_without_a_page_the_server_works(tmp_path, what):
    """It is a help, not a condition."""
    path = tmp_path / "page"
    if what == "too short":
        path.write_bytes(b"")
    elif what == "a directory":
        path.mkdir()
    with Port(init={"status_page": str(path)}) as port:
        assert port.value(port.eval("1 + 1")) == 2


def test_a_page_that_is_no_path_is_refused():
    """With a sentence that says what it should be."""
    with Client(init=False) as client:
        client.tell(Atom("init"), 1, {Atom("status_page"): 7})
        goodbye = client.next_frame()
        assert goodbye[0] == "goodbye"
        assert b"status_page of init is a path" in goodbye[1]["message"]
