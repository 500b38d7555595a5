"""Reads and writes frames on the private fds. Blocking; what the frames say is no matter here.

Replies are held and leave together, in one write for everything that is ready. Python retries what
a signal interrupted; a write that took only a part goes on with the rest.
"""

from __future__ import annotations

import os
from select import POLLIN, poll

from port_server.protocol.framing import HEADER_BYTES, FrameReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
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
            if reader.missing < _DIRECT_BYTES:
                data = os.read(self._stdio.reads, self._read_bytes)
                return reader.feed(data) if data else None
            room = reader.room()
            assert room is not None
            count = os.readv(self._stdio.reads, (room,))
            return reader.filled(count) if count else None
        except BlockingIOError:  # someone who shares the pipe's description made it non-blocking
            self._wait(None)
            return []
        except OSError:
            # User code closed the fd, or the other side reset: either way nothing more comes.
            self.gone = True
            return None

    def readable(self) -> bool:
        """Tell whether `read` would return at once."""
        return self._wait(0)

    def hold(self, parts: Sequence[Part]) -> None:
        """Take a frame, in parts, to be written with the next `write_out`."""
        first = parts[0]
        size = len(first) if len(parts) == 1 else sum(map(len, parts))
        if size == len(first) <= _JOINED_BYTES:
            self.held.append(size.to_bytes(HEADER_BYTES, "big") + first)
        else:
            self.held.append(size.to_bytes(HEADER_BYTES, "big"))
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
        fd = self._stdio.writes
        try:
            if len(parts) == 1:
                part = parts[0]
                count = os.write(fd, part)
                if count != len(part):
                    self._write_rest(fd, parts, count)
            else:
                self._write_rest(fd, parts, 0)
        except OSError:
            # EPIPE: the BEAM is gone. EBADF: user code closed everything. Nobody to tell.
            self.gone = True

    def _write_rest(self, fd: int, parts: list[Part], count: int) -> None:
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
                # One call takes at most 1,024 buffers.
                count = os.writev(fd, parts[:1024])
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
        from select import POLLOUT  # noqa: PLC0415  next to never needed

        waiting = poll()
        waiting.register(fd, POLLOUT)
        waiting.poll()
