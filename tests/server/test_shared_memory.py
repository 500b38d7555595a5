"""The server's half of the shared memory, by what the page in it says."""

import os
import sys

import pytest

from port_server.etf import Atom, encode
from port_server.protocol.framing import FramingError
from port_server.protocol.messages import Segment as Place
from port_server.server import shared_memory
from port_server.server.shared_memory import SharedMemory
from port_server.settings import Settings

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shared_memory.Segment is None, reason="it is Linux's, and needs C"
)

STRIDE = 12_288


@pytest.fixture
def shared():
    return SharedMemory(Settings(max_frame_bytes=5000, shared_memory=True))


def write(shared, slot, data):
    os.pwrite(shared.info["fd"], data, 4096 + slot * STRIDE)


def done(shared, slot):
    return int.from_bytes(os.pread(shared.info["fd"], 4, 64 + 4 * slot), sys.byteorder)


def test_the_owner_is_told_what_there_is(shared):
    assert shared.info["stride"] == STRIDE
    assert os.pread(shared.info["fd"], 16, 0) == shared.info["token"]
    assert SharedMemory(Settings()).info is None


def test_a_frame_is_there_until_nothing_refers_to_it(shared):
    write(shared, 2, b"abcdef")
    frame = shared.frame(Place(2, 7, 0, 6))
    assert bytes(frame) == b"abcdef"
    part = frame[2:4]
    del frame
    assert (bytes(part), done(shared, 2), shared.status["shm_frames"]) == (b"cd", 0, 1)
    del part
    assert (done(shared, 2), shared.status["shm_frames"]) == (7, 0)


def test_a_larger_frame_in_a_slot_is_whole(shared):
    write(shared, 0, b"a" * 10)
    assert bytes(shared.frame(Place(0, 1, 0, 10))) == b"a" * 10
    write(shared, 0, b"a" * 64 + b"b" * 5000)
    assert bytes(shared.frame(Place(0, 2, 64, 5000))) == b"b" * 5000
    assert done(shared, 0) == 2


@pytest.mark.parametrize(("slot", "size"), [(64, 1), (0, STRIDE + 1)])
def test_a_frame_elsewhere_is_an_error(shared, slot, size):
    with pytest.raises(FramingError, match=f"no frame of {size} bytes in slot {slot}"):
        shared.frame(Place(slot, 1, 0, size))


def test_a_slot_is_given_back_unless_its_frame_has_come(shared):
    write(shared, 1, b"a" * 5000)
    frame = shared.frame(Place(1, 1, 0, 5000))
    shared.give_back(1, 1)
    assert (bytes(frame), done(shared, 1)) == (b"a" * 5000, 0)
    del frame
    before = shared.status["shm_bytes"]
    shared.give_back(1, 2)
    assert done(shared, 1) == 2
    assert shared.status["shm_bytes"] == before - 8192
    shared.give_back(3, 1)  # where no frame was ever
    assert done(shared, 3) == 1
    shared.give_back(64, 1)


def test_a_segment_does_not_go_beyond_its_memory():
    memory, released = bytearray(10), memoryview(bytearray(8)).cast("I")
    assert len(memoryview(shared_memory.Segment(memory, 10, released, 1, 5))) == 10
    assert list(released) == [0, 5]
    for size, slot in ((11, 0), (1, 2), (-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="does not fit"):
            shared_memory.Segment(memory, size, released, slot, 1)
    with pytest.raises(BufferError):
        shared_memory.Segment(b"read-only", 1, released, 0, 1)
    assert list(released) == [0, 5]


def test_a_server_reads_a_request_from_there(start):
    server = start(init=(Atom("init"), 1, {Atom("shared_memory"): True}))
    info = server.hello[2][Atom("shared_memory")]
    path = f"/proc/{server.hello[2][Atom('os_pid')]}/fd/{info[Atom('fd')]}"
    request = encode((Atom("eval"), b"\0" * 8, {}, "len(x)", {"x": "a" * 100_000}))
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        os.pwrite(file.fileno(), request, 4096)
    server.send((Atom("segment"), 0, 1, 0, len(request)))
    assert server.receive()[:3] == ("ok", b"\0" * 8, 100_000)
