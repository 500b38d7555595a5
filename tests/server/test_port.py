"""Reading and writing on real pipes: partial writes, held replies, a reader that is gone."""

import contextlib
import os
import threading

import pytest

from port_server.server.main_thread import MainThread
from port_server.server.port import Port
from port_server.server.scheduler import Scheduler
from port_server.server.status_page import StatusPage
from port_server.settings import Settings


class Pipes:
    def __init__(self, **changes):
        reads, self.feed = os.pipe()
        self.drain, writes = os.pipe()
        settings = Settings().replace(**changes)
        null, stdout = os.dup(0), os.dup(1)
        try:
            self.port = Port(settings, StatusPage(Scheduler(settings, MainThread())), reads, writes)
        finally:  # it has claimed these for good
            for fd, kept in ((0, null), (1, stdout)):
                os.dup2(kept, fd)
                os.close(kept)
        self.port.begin(b"hello")
        self.written(9)

    def written(self, size):
        data = b""
        while len(data) < size:
            data += os.read(self.drain, size - len(data))
        return data

    def close(self):
        for fd in (self.feed, self.drain, self.port.reads, self.port.writes):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def pipes():
    pipes = Pipes()
    yield pipes
    pipes.close()


def frame(body):
    return len(body).to_bytes(4, "big") + body


def test_held_replies_leave_together_and_in_order(pipes):
    """What is held before a frame is written before it."""
    pipes.port.hold([b"one"])
    pipes.port.hold([b"two"])
    pipes.port.send([b"three"])
    assert pipes.written(23) == frame(b"one") + frame(b"two") + frame(b"three")
    assert not pipes.port.held


def test_parts_are_one_frame(pipes):
    """Large values leave by reference, behind one header for all of them."""
    parts = [b"head", memoryview(bytearray(b"x" * 30_000)), b"tail"]
    pipes.port.send(parts)
    assert pipes.written(30_012) == frame(b"head" + b"x" * 30_000 + b"tail")


@pytest.mark.parametrize("sizes", [[5_000_000], [300_000, 1, 700_000], [10] * 3000])
def test_a_write_that_takes_a_part_goes_on_with_the_rest(pipes, sizes):
    """However slowly the other side reads, the bytes are those that were meant."""
    bodies = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    expected = b"".join(frame(body) for body in bodies)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipes.written(len(expected))))
    reader.start()
    for body in bodies:
        half = len(body) // 2
        pipes.port.hold([body[:half], memoryview(body)[half:]] if half else [body])
    pipes.port.flush()
    reader.join(20)
    assert got == [expected]


def test_a_non_blocking_pipe_is_waited_for(pipes):
    """Someone who shares the pipe may have made it so."""
    os.set_blocking(pipes.port.writes, False)
    os.set_blocking(pipes.port.reads, False)
    body = b"z" * 2_000_000
    got = []
    reader = threading.Thread(target=lambda: got.append(pipes.written(len(body) + 4)))
    threading.Timer(0.05, reader.start).start()
    pipes.port.send([body])
    threading.Timer(0.05, os.write, (pipes.feed, frame(b"late"))).start()
    assert pipes.port.read() == []
    assert pipes.port.read() == [b"late"]
    reader.join(10)
    assert got == [frame(body)]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_reader_that_is_gone_is_noted_and_nothing_is_raised(pipes, size):
    """Writes happen inside of prints of user code as well, which must not see it."""
    os.close(pipes.drain)
    pipes.port.send([b"x" * size])
    assert pipes.port.gone
    pipes.port.send([b"more"])
    pipes.port.hold([b"more"])
    pipes.port.flush()


def test_large_frames_are_read_into_a_buffer_that_is_used_again(pipes):
    """And small ones after them come out as ever."""
    first = frame(b"a" * 500_000)
    second = frame(b"b" * 600_000)
    writer = threading.Thread(
        target=lambda: [os.write(pipes.feed, d) for d in (first, second, frame(b"c"))]
    )
    writer.start()
    got = []
    while len(got) < 3:
        got += [bytes(body[:1]) + str(len(body)).encode() for body in pipes.port.read()]
    writer.join()
    assert got == [b"a500000", b"b600000", b"c1"]


def test_the_end_of_input_is_none(pipes):
    """Again and again."""
    os.close(pipes.feed)
    assert pipes.port.read() is None
    assert pipes.port.read() is None
