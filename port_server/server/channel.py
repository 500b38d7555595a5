"""Reads and writes frames on the private fds. Blocking; what the frames say is no matter here.

Reading is for whoever holds the baton. Writing is for every thread: frames are put into a deque,
and whoever gets the write lock writes all of it; who does not get it leaves, because the holder
looks again after letting go. So a print in a signal handler or a `__del__`, which may interrupt
this very code, never waits for itself. Frames leave together, in one write for everything that is
ready. Python retries what a signal interrupted; a write that took a part goes on with the rest.
"""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _thread import allocate_lock, get_ident
from select import POLLIN, POLLOUT, poll

from port_server.protocol.framing import FrameReader, header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from port_server.protocol.framing import Frame
    from port_server.settings import Settings

    from .stdio import Stdio

    Part = bytes | memoryview

# From here on the rest of a frame is read right into its buffer; below, one read that may
# bring the next frames as well is the better one.
_DIRECT_BYTES: Final = 1 << 15
# Up to here a header is joined to its frame: copying is cheaper than one more buffer to write.
_JOINED_BYTES: Final = 1 << 14
# What one writev takes on Linux.
_MOST_BUFFERS: Final = 1024


# More than this unwritten, and who adds to it waits: the other side is slow to read.
_MOST_UNWRITTEN_BYTES: Final = 1 << 20
# How long the last frame waits for a thread that is writing; one that cannot never ends.
_LAST_WRITE_S: Final = 1.0
# Parts gathered for one write; what is over goes with the next.
_MOST_GATHERED: Final = 512


def _is_foreign(error: OSError) -> bool:
    """Tell whether a signal handler of user code raised it, not the call of ours that it cut short.

    Such an exception has come through a frame more than the one that catches it.
    """
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename != __file__:
            return True
        traceback = traceback.tb_next
    return False


def _nobody() -> None:
    """Nobody wants to know."""


class Channel:
    """One connection to the owner of the port.

    Attributes:
        gone: whether the other side no longer reads. Nothing is raised for it, because writes also
            happen inside of a print of user code; whoever runs the loop looks here.
        held: frames that wait to be written, each as bytes or as a list of parts.
        held_bytes: how much of that is small frames.
        lost: told when that becomes so; replies are lost from then on.
        reader: cuts what comes into frames.
        silent: whether nothing is written yet, see `keep_silent`.
        writing: the lock that a writer holds.
    """

    __slots__ = (
        "_acquire",
        "_main",
        "_most_held",
        "_poll",
        "_read_bytes",
        "_release",
        "_stdio",
        "_writer",
        "gone",
        "held",
        "held_bytes",
        "lost",
        "reader",
        "silent",
        "writing",
    )

    def __init__(self, stdio: Stdio, settings: Settings) -> None:
        self.gone = False
        self.lost: Callable[[], None] = _nobody
        self.held: deque[bytes | list[Part]] = deque()
        self.reader = FrameReader(settings.max_frame_bytes, settings.kept_buffer_bytes)
        self.silent = False
        self.writing = allocate_lock()
        self._acquire = self.writing.acquire
        self._release = self.writing.release
        self.held_bytes = 0
        self._main = get_ident()
        self._writer = 0
        self._most_held = settings.held_replies
        self._read_bytes = settings.read_bytes
        self._stdio = stdio
        self._poll: poll | None = None

    def keep_silent(self) -> None:
        """Hold whatever is to be written until `begin`. For the main thread.

        To have the lock is all it takes: who finds it taken leaves writing to who has it.
        """
        self._acquire()
        self._writer = self._main
        self.silent = True

    def begin(self, frame: bytes, *, alone: bool = False) -> None:
        """Write the first frame of all, and then, unless it is to be alone, what was held."""
        if alone:
            self.held.clear()
        self.held.appendleft(header(len(frame)) + frame)
        self.silent = False
        self._drain()
        self.write_out()

    def receive(self) -> bytes | None:
        """Wait for bytes, between frames; give them as they came, and None at the end.

        For main's loop, which may know what they are without `FrameReader.feed`.
        """
        try:
            return os.read(self._stdio.reads, self._read_bytes) or None
        except OSError as error:
            return b"" if self._failed(error) else None

    def read(self) -> list[Frame] | None:
        """Wait for bytes; give the frames they complete, often none, and None at the end.

        Raises:
            FramingError: the stream cannot be read any further.
        """
        reader = self.reader
        if reader.refusal is not None:
            raise reader.refusal
        try:
            if reader.between or reader.missing < _DIRECT_BYTES:
                data = os.read(self._stdio.reads, self._read_bytes)
                return reader.feed(data) if data else None
            room = reader.room()
            assert room is not None
            count = os.readv(self._stdio.reads, (room,))
            return reader.filled(count) if count else None
        except OSError as error:
            return [] if self._failed(error) else None

    def _failed(self, error: OSError) -> bool:
        """Cope with what a read raised; tell whether to read again."""
        if _is_foreign(error):
            raise error
        if type(error) is BlockingIOError:  # who shares the pipe made it non-blocking
            self._wait(None)
            return True
        # User code closed the fd, or the other side reset: either way nothing more comes.
        self.gone = True
        self.lost()
        return False

    def readable(self) -> bool:
        """Tell whether `read` would return at once."""
        return self._wait(0)

    def send(self, parts: list[Part]) -> None:
        """Write a frame, in parts, and everything that is held before it. For the main thread."""
        if (
            len(parts) == 1
            and not self.held
            and len(parts[0]) <= _JOINED_BYTES
            and self._acquire(False)
        ):
            part = parts[0]
            self.finish(header(len(part)) + part, 0)
            if self.held:  # another thread came meanwhile
                self.write_out()
            return
        self.hold(parts)
        self.write_out()

    def finish(self, data: bytes, count: int) -> None:
        """Write what is left of `data`, `count` bytes of which are written. For the main thread.

        With the lock taken; lets go of it.
        """
        self._writer = self._main
        try:
            if not self.gone:
                self._write_rest([data], count)
        except OSError as error:
            self._lose(error)
        finally:
            self._writer = 0
            self._release()

    def hold(self, parts: list[Part]) -> None:
        """Take a frame, in parts, to be written with the next `write_out`.

        A large one is written before this returns: its parts may be buffers that user code goes
        on to change.
        """
        if self.gone:
            return
        if len(parts) == 1 and (size := len(parts[0])) <= _JOINED_BYTES:
            self.held.append(header(size) + parts[0])
            self.held_bytes += size
            if self.held_bytes > _JOINED_BYTES or len(self.held) >= self._most_held:
                self.write_out()
            return
        size = sum(map(len, parts))
        if self.silent or self._writer == get_ident():  # the latter in the midst of our writing
            self.held.append([header(size), *map(bytes, parts)])
        else:
            self.held.append([header(size), *parts])
            self._acquire()
            self._drain()
            self.write_out()

    def write_out(self) -> None:
        """Write everything that is held, or leave it to the thread that is writing just now."""
        while self.held:
            if not self._acquire(blocking=False):
                few = self.held_bytes < _MOST_UNWRITTEN_BYTES
                if few or self.silent or self._writer == get_ident():
                    return
                self._acquire()
            self._drain()

    def write_all(self) -> None:
        """Write everything that is held, whichever thread writes: the server ends after this."""
        if self.writing.acquire(timeout=_LAST_WRITE_S):
            self._drain()

    def recover(self) -> None:
        """Let go of the write lock if main was struck by a stray exception while it had it."""
        if self.writing.acquire(timeout=1.0) or self._writer in {0, self._main}:
            self._writer = 0
            self._release()

    def _drain(self) -> None:
        """Write everything that is held, with the lock taken; let go of it."""
        self._writer = get_ident()
        held = self.held
        try:
            while held and not self.gone:
                parts: list[Part] = []
                small: list[bytes] = []
                while held and len(small) < _MOST_GATHERED:
                    frame = held.popleft()
                    if type(frame) is bytes:
                        small.append(frame)
                    else:  # with small frames before it, which it must not overtake
                        parts = frame
                        break
                if not held:
                    self.held_bytes = 0
                # Small ones as one: a buffer costs a writev more than copying it.
                if small:
                    parts = [b"".join(small), *parts]
                self._write_rest(parts, 0)
            if self.gone:
                held.clear()
        except OSError as error:
            self._lose(error)
        finally:
            self._writer = 0
            self._release()

    def _lose(self, error: OSError) -> None:
        if _is_foreign(error):
            raise error
        # EPIPE: the BEAM is gone. EBADF: user code closed everything. Nobody to tell.
        self.gone = True
        self.held.clear()
        self.lost()

    def _write_rest(self, parts: list[Part], count: int) -> None:
        fd = self._stdio.writes
        while True:
            done = 0
            while done < len(parts) and count >= len(parts[done]):
                count -= len(parts[done])
                done += 1
            parts = parts[done:]
            if not parts:
                return
            if count:
                parts[0] = memoryview(parts[0])[count:]
            try:
                count = os.writev(fd, parts[:_MOST_BUFFERS])
            except BlockingIOError:
                self._wait_writable(fd)
                count = 0

    def _wait(self, timeout_ms: int | None) -> bool:
        waiting = self._poll
        if waiting is None:
            waiting = self._poll = poll()
            waiting.register(self._stdio.reads, POLLIN)
        return bool(waiting.poll(timeout_ms))

    @staticmethod
    def _wait_writable(fd: int) -> None:
        waiting = poll()
        waiting.register(fd, POLLOUT)
        waiting.poll()
