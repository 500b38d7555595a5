"""Reads and writes frames on the private fds. Blocking; what the frames say is no matter here.

Replies are held and leave together, in one write for everything that is ready. Python retries what
a signal interrupted; a write that took only a part goes on with the rest.
"""

from __future__ import annotations

import os
from select import POLLIN, POLLOUT, poll

from port_server.protocol.framing import FrameReader, header

TYPE_CHECKING = False
if TYPE_CHECKING:
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


class Channel:
    """One connection to the owner of the port.

    Attributes:
        gone: whether the other side no longer reads. Nothing is raised for it, because writes also
            happen inside of a print of user code; whoever runs the loop looks here.
        held: whether replies wait to be written.
        reader: cuts what comes into frames.
    """

    __slots__ = (
        "_held_bytes",
        "_most_held",
        "_poll",
        "_read_bytes",
        "_stdio",
        "gone",
        "held",
        "reader",
    )

    def __init__(self, stdio: Stdio, settings: Settings) -> None:
        self.gone = False
        self.held: list[Part] = []
        self.reader = FrameReader(settings.max_frame_bytes, settings.kept_buffer_bytes)
        self._held_bytes = 0
        self._most_held = settings.held_replies
        self._read_bytes = settings.read_bytes
        self._stdio = stdio
        self._poll: poll | None = None

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
            if _is_foreign(error):
                raise
            if type(error) is BlockingIOError:  # who shares the pipe made it non-blocking
                self._wait(None)
                return []
            # User code closed the fd, or the other side reset: either way nothing more comes.
            self.gone = True
            return None

    def readable(self) -> bool:
        """Tell whether `read` would return at once."""
        return self._wait(0)

    def send(self, parts: list[Part]) -> None:
        """Write a frame, in parts, and everything that is held before it."""
        if len(parts) == 1 and not self.held and len(parts[0]) <= _JOINED_BYTES:
            part = parts[0]
            frame = header(len(part)) + part
            if self.gone:
                return
            try:
                count = os.write(self._stdio.writes, frame)
                if count != len(frame):
                    self._write_rest([frame], count)
            except OSError as error:
                self._lose(error)
            return
        self.hold(parts)
        self.write_out()

    def hold(self, parts: list[Part]) -> None:
        """Take a frame, in parts, to be written with the next `write_out`."""
        size = sum(map(len, parts))
        if len(parts) == 1 and size <= _JOINED_BYTES:
            self.held.append(header(size) + parts[0])
        else:
            self.held.append(header(size))
            self.held += parts
        self._held_bytes += size
        # A large frame leaves at once: its parts may be buffers that user code goes on to change.
        if self._held_bytes > _JOINED_BYTES or len(self.held) >= self._most_held:
            self.write_out()

    def write_out(self) -> None:
        """Write everything that is held."""
        parts, self.held, self._held_bytes = self.held, [], 0
        if self.gone or not parts:
            return
        try:
            self._write_rest(parts, 0)
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if _is_foreign(error):
            raise error
        # EPIPE: the BEAM is gone. EBADF: user code closed everything. Nobody to tell.
        self.gone = True
        self.held = []

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
