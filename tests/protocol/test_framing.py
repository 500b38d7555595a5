"""The frame reader: every case whole, byte by byte, in odd pieces and with trailing data."""

import tracemalloc
import weakref

import pytest

from port_server.protocol.framing import FrameReader, FramingError, header

LIMIT = 1 << 20
CASES = {
    "empty": [b""],
    "small": [b"a"],
    "several": [b"one", b"two", b"", b"three"],
    "as long as a read": [b"x" * 65_532],
    "a little longer than a read": [b"x" * 65_537],
    "large among small": [b"before", b"y" * 200_000, b"after"],
    "two large": [b"p" * 100_000, b"q" * 150_000],
    "up to the limit": [b"z" * LIMIT],
}


def stream(frames):
    return b"".join(header(len(frame)) + frame for frame in frames)


def feed(reader, data, step):
    frames = []
    for at in range(0, len(data), step):
        frames += [bytes(frame) for frame in reader.feed(data[at : at + step])]
    return frames


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
@pytest.mark.parametrize("step", [1, 3, 4, 5, 1000, 65_536, 1 << 30])
def test_frames_come_out_as_they_went_in(frames, step):
    """However the bytes arrive, the frames are the same, and the reader ends between frames."""
    data = stream(frames)
    if step < 5 and len(data) > 400_000:
        step = 4093
    reader = FrameReader(LIMIT)
    assert feed(reader, data, step) == frames
    assert reader.between


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
@pytest.mark.parametrize("extra", [1, 3, 4, 6])
def test_trailing_bytes_are_the_beginning_of_the_next_frame(frames, extra):
    """What stands behind the last whole frame is kept, and joined with what follows."""
    tail = stream([b"trailing"])
    reader = FrameReader(LIMIT)
    assert [bytes(f) for f in reader.feed(stream(frames) + tail[:extra])] == frames
    assert not reader.between
    assert reader.feed(tail[extra:]) == [b"trailing"]


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
def test_reading_into_the_frames_own_buffer_gives_the_same(frames):
    """A shell that reads into `room()` gets the same frames as one that feeds."""
    data = memoryview(stream(frames))
    reader = FrameReader(LIMIT, keep_bytes=1 << 24)
    got, at = [], 0
    while at < len(data):
        room = reader.room()
        if room is None:
            piece = bytes(data[at : at + 10])
            got += [bytes(frame) for frame in reader.feed(piece)]
        else:
            piece = data[at : at + min(len(room), 50_000)]
            room[: len(piece)] = piece
            got += [bytes(frame) for frame in reader.filled(len(piece))]
        at += len(piece)
    assert got == frames


def test_a_header_above_the_limit_is_refused_before_it_is_allocated():
    """2 GiB are announced, nothing is allocated, and the frames before it still come out."""
    reader = FrameReader(LIMIT)
    tracemalloc.start()
    try:
        assert reader.feed(stream([b"good"]) + b"\x7f\xff\xff\xff" + b"x" * 100) == [b"good"]
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert "max_frame_bytes" in str(reader.refusal)
    with pytest.raises(FramingError, match="2147483647"):
        reader.feed(b"more")


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_refusal_does_not_depend_on_how_the_header_arrived(step):
    """Byte by byte an overlong header is refused just the same."""
    reader = FrameReader(10)
    data = stream([b"ok"]) + header(11)
    frames = feed(reader, data, step)
    assert frames == [b"ok"]
    assert reader.refusal is not None


def test_a_stray_print_is_named_in_the_refusal():
    """Text where a header should be is shown as the text it is."""
    reader = FrameReader(LIMIT)
    reader.feed(b"hello world\n")
    assert "b'hell'" in str(reader.refusal)


def test_the_limit_itself_is_allowed():
    """A frame of exactly max_frame_bytes passes."""
    reader = FrameReader(8)
    assert reader.feed(stream([b"12345678"])) == [b"12345678"]


def test_a_large_buffer_is_used_again_when_it_is_free():
    """Page faults are what a large frame costs; the next one finds its pages."""
    reader = FrameReader(LIMIT, keep_bytes=LIMIT)
    data = stream([b"x" * 300_000])
    (first,) = reader.feed(data[:1000]) + reader.feed(data[1000:])
    memory = weakref.ref(first.obj)
    del first
    (second,) = reader.feed(data[:1000]) + reader.feed(data[1000:])
    assert second.obj is memory()


def test_a_large_buffer_is_never_used_again_while_someone_refers_to_it():
    """A value that was decoded by reference keeps its bytes, whatever comes next."""
    reader = FrameReader(LIMIT, keep_bytes=LIMIT)
    one, two = stream([b"x" * 300_000]), stream([b"y" * 300_000])
    (first,) = reader.feed(one[:1000]) + reader.feed(one[1000:])
    held = first[1000:2000]
    del first
    (second,) = reader.feed(two[:1000]) + reader.feed(two[1000:])
    assert bytes(held) == b"x" * 1000
    assert bytes(second[:3]) == b"yyy"


def test_a_promise_of_much_data_costs_nothing_until_it_is_kept():
    """A header of 900 MB within the limit takes no memory of its own."""
    reader = FrameReader(1 << 30)
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        before = int(statm.read().split()[1])
        reader.feed(header(900_000_000) + b"a little")
        statm.seek(0)
        assert int(statm.read().split()[1]) - before < 1000  # pages
