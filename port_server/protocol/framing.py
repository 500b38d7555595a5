"""{packet, 4}: bytes in, frames out. No I/O: the shell reads, or reads right into `room()`.

Small frames are cut out of the bytes of one read. A frame that is not whole yet gets a buffer of
its own length, and later bytes are copied there once, so the cost is linear for reads of any size.
Tried and rejected: joining the remainder to the next read; 60 KiB arriving byte by byte cost 1.8 GB
of copying.
"""

from __future__ import annotations

from _struct import Struct
from sys import getrefcount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap
    from typing import TypeAlias

    Frame: TypeAlias = "bytes | memoryview"

HEADER_BYTES = 4
# Struct rather than int.from_bytes and to_bytes: half the time, once a message each way.
_HEADER = Struct(">I")
header = _HEADER.pack
length_at = _HEADER.unpack_from
# Largest body in a bytearray, which is cheaper for small ones. Larger ones use `mmap`: the kernel
# gives it pages as data arrives, so that a header that announces 900 MB takes no memory.
SMALL_BODY_BYTES = 1 << 16


class FramingError(ValueError):
    """The stream is out of step or asks for more than is allowed: nothing after it can be read."""


class FrameReader:
    """Cuts a stream into frames.

    `feed` takes what was read; or, where `room()` gives a buffer, the shell may read into that
    and call `filled`. Both return the frames that became whole, as bytes or, above 64 KiB and
    where they came in pieces, as a memoryview: such a frame stays valid as long as it is referred
    to, and its memory is used again when it no longer is.

    A header above `max_frame_bytes` is refused before a byte of it is allocated: the frames before
    it are still returned, then `refusal` is set, and more input raises it.

    Attributes:
        between: the same as `at_boundary`, for the shell's hot path.
    """

    __slots__ = (
        "_body",
        "_fill",
        "_head",
        "_idle_references",
        "_keep_bytes",
        "_kept",
        "between",
        "max_frame_bytes",
        "refusal",
    )

    def __init__(self, max_frame_bytes: int, keep_bytes: int = 0) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.between = True
        self.refusal: FramingError | None = None
        self._head = b""  # up to three bytes of a header
        self._body: memoryview | None = None  # the frame that is being filled
        self._fill = 0
        self._keep_bytes = keep_bytes
        self._kept: mmap | None = None
        self._idle_references = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, return the frames that they complete.

        Raises:
            FramingError: an overlong header was met before.
        """
        limit = self.max_frame_bytes
        size = len(data)
        # One whole frame and nothing else: what a client that waits for its answer sends.
        if self.between and size >= HEADER_BYTES:
            (length,) = length_at(data)
            if length + HEADER_BYTES == size and length <= limit:
                return [data[HEADER_BYTES:]]
        frames: list[Frame] = []
        if not self.between:
            data = self._resume(data, frames)
            size = len(data)
        at = 0
        while at != size:
            start = at + 4
            if start > size:
                self._head = data[at:]
                self.between = False
                return frames
            (length,) = length_at(data, at)
            if length > limit:
                self._refuse(length)
                return frames
            at = start + length
            if at > size:
                self._begin(length, data[start:])
                return frames
            frames.append(data[start:at])
        return frames

    def room(self) -> memoryview | None:
        """Give the buffer for the rest of the current frame, or None between frames."""
        return None if self._body is None else self._body[self._fill :]

    def filled(self, count: int) -> list[Frame]:
        """Say that `count` bytes were read into `room()`."""
        body = self._body
        assert body is not None, "filled() without room()"
        self._fill += count
        if self._fill < len(body):
            return []
        self._body = None
        self.between = True
        return [body if len(body) > SMALL_BODY_BYTES else bytes(body)]

    def refuse(self, error: FramingError) -> None:
        """Give no more frames: the next read raises this."""
        self.between = False
        self.refusal = error

    def limit(self, max_frame_bytes: int) -> None:
        """Refuse larger frames from now on."""
        self.max_frame_bytes = max_frame_bytes

    @property
    def missing(self) -> int:
        """How many bytes the current frame still lacks; 0 between frames or within a header."""
        return 0 if self._body is None else len(self._body) - self._fill

    @property
    def at_boundary(self) -> bool:
        """Whether the stream could end here without cutting a frame."""
        return self.between

    def _resume(self, data: bytes, frames: list[Frame]) -> bytes:
        """Finish what was begun; return the bytes that belong to later frames."""
        if self.refusal is not None:
            raise self.refusal
        if self._body is None:
            data = self._head + data
            self._head = b""
            self.between = True
            return data
        part = data[: self.missing]
        self._body[self._fill : self._fill + len(part)] = part
        frames += self.filled(len(part))
        return data[len(part) :]

    def _begin(self, length: int, first: bytes) -> None:
        self.between = False
        try:
            self._body = _small(length) if length <= SMALL_BODY_BYTES else self._large(length)
        except (MemoryError, OSError) as error:  # a memory limit; mmap raises OSError for it
            self.refuse(FramingError(f"no memory for a frame of {length} bytes: {error}"))
            return
        self._body[: len(first)] = first
        self._fill = len(first)

    def _refuse(self, length: int) -> None:
        self.refuse(
            FramingError(
                f"a frame of {length} bytes is announced, the limit is {self.max_frame_bytes} "
                f"(max_frame_bytes). Either it is too large, or something other than frames was "
                f"written to the port: read as text the header is {header(length)!r}"
            )
        )

    def _large(self, length: int) -> memoryview:
        from mmap import mmap  # noqa: PLC0415  not on the start path: most servers never need it

        kept_bytes = 0 if self._kept is None else len(self._kept)
        if kept_bytes >= length and self._references() == self._idle_references:
            assert self._kept is not None
            return memoryview(self._kept)[:length]
        # Powers of two, so that frames of slowly growing size share one buffer.
        capacity = 1 << (length - 1).bit_length()
        if capacity > self._keep_bytes:
            return memoryview(mmap(-1, length))
        self._kept = None  # freed before the new one is made
        self._kept = mmap(-1, capacity)
        self._idle_references = self._references()
        return memoryview(self._kept)[:length]

    def _references(self) -> int:
        # Counted in one place and compared with itself: how many the interpreter adds for the
        # call differs between Python versions. A memoryview of the buffer, and so any value that
        # was decoded by reference, adds one.
        return getrefcount(self._kept)


def _small(length: int) -> memoryview:
    return memoryview(bytearray(length))
