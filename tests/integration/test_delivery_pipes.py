"""Log records and messages to processes: with much of them on its way the code waits."""

import pytest
from port_client import Client

from port_server.etf import Atom, decode, encode

WINDOW = 100_000
PID = decode(
    bytes.fromhex("8358770d6e6f6e6f6465406e6f686f7374") + (85).to_bytes(4, "big") + bytes(8)
)

LOG = "import logging, sys\nfor n in range(1000): logging.warning('x' * 999)\n'done'"
SEND = "import port_server\nfor n in range(1000): port_server.send(to, b'x' * 999)\n'done'"
THREADS = """
import logging, port_server, threading
def log():
    for n in range(250): logging.warning('x' * 999)
def send():
    for n in range(250): port_server.send(to, b'x' * 999)
threads = [threading.Thread(target=run) for run in (log, send, log, send)]
for thread in threads: thread.start()
for thread in threads: thread.join()
'done'
"""
ASYNC = "import asyncio\nawait asyncio.sleep(0)\n" + LOG
NOBODY = b""


@pytest.fixture
def careful():
    """A server whose owner acknowledges."""
    with Client({"delivery_window_bytes": WINDOW}) as client:
        client.value("import asyncio, logging")
        yield client


def size_of(frame):
    return len(encode(frame))


def take(careful, patience_s):
    """The next log record, message or reply."""
    while True:
        frame = careful.next_frame(patience_s)
        if frame[0] in {"log", "send", "ok", "error"}:
            return frame


def fill(careful):
    """Take what comes until nothing more does; give its size."""
    taken = 0
    while True:
        try:
            frame = take(careful, 0.2)
        except AssertionError:  # nothing more comes
            return taken
        assert frame[0] in {"log", "send"}, "ended without waiting"
        taken += size_of(frame)


@pytest.mark.parametrize("code", [LOG, SEND, THREADS, ASYNC])
def test_code_waits_until_what_it_has_said_is_acknowledged(careful, code):
    """It goes on when enough was, and all of it arrives."""
    request = careful.send_eval(code, {"to": PID})
    count = taken = acked = quiet = 0
    while True:
        try:
            frame = take(careful, 0.1)
        except AssertionError:  # nothing more comes
            quiet += 1
            assert quiet < 300, "it does not go on"
            if taken == acked:  # it has not gone on yet
                continue
            # A thread may have one of its own on its way.
            assert taken <= acked + WINDOW + 5_000
            careful.tell(Atom("ack"), NOBODY, taken - acked)
            acked = taken
            continue
        if frame[0] == "ok":
            assert frame[1:] == (request, b"done")
            break
        count += 1
        taken += size_of(frame)
    assert count == 1000
    assert acked > 500_000


def test_one_of_any_size_passes(careful):
    """The code goes on when it was acknowledged."""
    code = "import port_server; port_server.send(to, b'x' * 10**6); 'done'"
    request = careful.send_eval(code, {"to": PID})
    assert fill(careful) > 10**6
    careful.tell(Atom("ack"), NOBODY, 10**6)
    assert careful.reply(request)[2] == b"done"


def test_the_largest_acknowledgement_means_all(careful):
    """And the window is as large as before."""
    for _ in range(2):
        request = careful.send_eval(LOG)
        assert fill(careful) <= WINDOW + 5_000
        careful.tell(Atom("cancel"), request)
        assert careful.reply(request)[2]["kind"] == "cancelled"
        # In logging it is not struck at once; it goes slowly until it is.
        assert len([frame for frame in careful.others if frame[0] == "log"]) < 200
        careful.tell(Atom("ack"), NOBODY, 0x7FFFFFFF)
        careful.others.clear()


def test_a_request_that_waits_for_it_can_be_cancelled(careful):
    """At once, and the next one runs."""
    request = careful.send_eval(SEND, {"to": PID})
    fill(careful)
    careful.tell(Atom("cancel"), request)
    error = careful.reply(request)[2]
    assert (error["kind"], error["begun"]) == ("cancelled", True)
    assert careful.value("6 * 7") == 42


def test_where_nobody_could_read_the_acknowledgement_nothing_waits():
    """In init_code, and in a __del__ that runs between two requests."""
    init = {"delivery_window_bytes": WINDOW, "init_code": LOG.encode()}
    with Client(init) as client:
        code = """
import logging
class Loud:
    def __del__(self):
        for n in range(1000): logging.warning('x' * 999)
Loud()
"""
        reply = client.eval(code)
        client.others.clear()
        client.tell(Atom("release"), reply[3])
        assert client.value("6 * 7") == 42
        assert len([frame for frame in client.others if frame[0] == "log"]) == 1000


def test_without_a_window_nothing_waits():
    """An owner that never acknowledges is not waited for."""
    with Client() as client:
        assert client.value(LOG) == b"done"
