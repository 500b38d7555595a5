"""The status page: what can be known of a server without its help."""

from __future__ import annotations

import os
import signal
import time

import pytest
from lanes_client import Port
from port_client import Client

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


def test_the_running_request_stands_on_it(port, file):
    """From its begin to its reply, and nobody after that."""
    name = port.eval("import time; time.sleep(0.3)")
    until(lambda: running(file) == name)
    port.value(name)
    until(lambda: running(file) is None)


def test_it_can_be_read_while_the_gil_is_held(port, file):
    """The id is there, the beats stand still: nobody had to be asked."""
    name = port.eval(GIL_HELD)
    until(lambda: running(file) == name)
    time.sleep(0.05)
    before = beats(file)
    time.sleep(0.1)
    assert beats(file) - before <= 1
    assert running(file) == name
    assert port.value(name, timeout=60) == 1
    until(lambda: beats(file) > before + 2)


def test_it_can_be_read_of_a_stopped_server(port, file):
    """SIGSTOP takes nothing away."""
    name = port.eval("import time; time.sleep(0.3); 1")
    until(lambda: running(file) == name)
    os.kill(port.process.pid, signal.SIGSTOP)
    try:
        assert running(file) == name
    finally:
        os.kill(port.process.pid, signal.SIGCONT)
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
def test_an_id_of_any_length_is_shown_as_far_as_there_is_room(port, file, size):
    """Its length is the true one: at most 32 bytes of it are there."""
    name = bytes(range(1, size + 1)) if size < 256 else b""
    port.tell(Atom("eval"), name, {}, "import time; time.sleep(0.2)", {})
    until(lambda: file.read_bytes()[15] == size)
    assert file.read_bytes()[16 : 16 + min(size, 32)] == name[:32]
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


def test_what_other_lanes_do_is_counted(port, file):
    """Tasks and streams are not in main, and not on the page by name."""
    tasks = [port.eval("import asyncio; await asyncio.sleep(60)") for _ in range(3)]
    until(lambda: elsewhere(file) == 3)
    stream = port.eval("yield from range(10)", stream=True, credit=2)
    until(lambda: elsewhere(file) == 4)
    for name in (*tasks, stream):
        port.tell(Atom("cancel"), name)
    until(lambda: elsewhere(file) == 0)


def test_a_request_on_top_of_another_takes_its_place_for_a_while(port, file):
    """What main runs is what stands there."""
    outer = port.eval("from port_server import call\ncall(':m', 'f')\nimport time; time.sleep(0.3)")
    while (message := port.others.get(timeout=5))[0] != "invoke":
        pass
    inner = port.eval("import time; time.sleep(0.3)", parent=message[2])
    until(lambda: running(file) == inner)
    port.value(inner)
    port.tell(Atom("answer"), message[2], (Atom("ok"), None))
    until(lambda: running(file) == outer)
    port.value(outer)


def test_a_forked_child_does_not_write_on_it(port, file):
    """It is the parent's."""
    name = port.eval("import os\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)[1]")
    assert port.value(name) == 0
    assert file.read_bytes()[:4] == b"PYP1"


def test_draining_is_a_phase(port, file):
    """The owner that asked for it can see it."""
    port.eval("import asyncio; await asyncio.sleep(0.5)")
    until(lambda: elsewhere(file) == 1)
    port.tell(Atom("shutdown"), 2000)
    until(lambda: file.read_bytes()[4] == 2)
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
