"""The port: the only reader and writer of the two file descriptors that lead to the BEAM.

They are claimed before any user code runs: fd 0 becomes /dev/null, fd 1 becomes fd 2, and the port
moves to two numbers that no child inherits. So no print, C library or child process can touch a
frame. A forked child, which does inherit them, finds /dev/null there.

Reading is for the holder of the reader lock. Writing is for every thread: frames are put into a
deque, and the thread that gets the write lock writes all of it. A thread that does not get the lock
leaves, because the holder looks again after letting go. So a print in a signal handler or a
`__del__`, which may interrupt this very code, never waits for itself.
"""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _thread import allocate_lock, get_ident
from select import POLLIN, POLLOUT, poll

from port_server.protocol.framing import FrameReader, header

from .fds import claim, is_pipe, point_at_null

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.framing import Frame
    from port_server.protocol.requests import Options
    from port_server.settings import Settings

    from .status_page import StatusPage

    Part = bytes | memoryview
    # Of a request: its frame, whether it is a call, the term of its id, its options, and where
    # they end. Of an answer: its frame, the id of the call, and where the result begins.
    Envelope = tuple[bytes, bool, bytes, Options, int] | tuple[bytes, bytes, int]

try:
    from . import _fast
except ImportError:
    _fast = None  # type: ignore[assignment]

# From this size on the rest of a frame is read right into its buffer. Below it, one read that may
# bring the next frames as well is faster.
_DIRECT_BYTES: Final = 1 << 15
# Up to this size a header is joined to its frame: a copy is cheaper than one more buffer to write.
_JOINED_BYTES: Final = 1 << 14
# Most buffers of one writev on Linux.
_MOST_BUFFERS: Final = 1024
# With more than this unwritten a thread that adds to it waits: the other side is slow to read.
_MOST_UNWRITTEN_BYTES: Final = 1 << 20
# Longest wait of the last frame for a thread that is writing: that thread may be blocked for good.
_LAST_WRITE_S: Final = 1.0
# Parts gathered for one write; the rest goes with the next.
_MOST_GATHERED: Final = 512


class Port:
    """The connection to the owner of the port.

    Attributes:
        ended: whether the end of input was met.
        forked: whether this process is a forked child, and the port therefore not its own.
        gone: whether the other side no longer reads. No exception tells it, because writes also
            happen inside of a print of user code; the main loop looks here.
        held: frames that wait to be written, each as bytes or as a list of parts.
        reader: cuts input into frames.
        reads: the fd that frames come from.
        silent: whether nothing is written yet, see `begin`.
        writes: the fd that frames go to.
        writing: the lock that a writer holds.
    """

    def __init__(
        self, settings: Settings, page: StatusPage, reads: int = 0, writes: int = 1
    ) -> None:
        """Claim the fds. The first frame is written by `begin`.

        If `reads` or `writes` is no pipe, the port is on 0 and 1: a program between Elixir and
        Python has put it there (ssh, docker).

        Raises:
            OSError: the port is on none of these.
        """
        self.reads, self.writes = claim(settings.pipe_bytes, reads, writes)
        self.ended = False
        self.forked = False
        self.gone = False
        self.held: deque[bytes | list[Part]] = deque()
        self.reader = FrameReader(settings.max_frame_bytes, settings.kept_buffer_bytes)
        self.silent = True
        self.writing = allocate_lock()
        self.writing.acquire()  # until `begin`: a thread that finds it taken leaves the writing
        self._held_bytes = 0
        self._main = get_ident()
        self._most_held = settings.held_frames
        self._page = page
        self._read_bytes = settings.read_bytes
        # The thread that is in the midst of writing.
        self._writers: list[int] = []
        self._write_at_once = _never if _fast is None or not is_pipe(self.writes) else _fast.write
        os.register_at_fork(before=_expect_no_warning)

    def limit(self, settings: Settings) -> None:
        """Apply other settings to later frames."""
        self.reader.limit(settings.max_frame_bytes)

    # --- reading ----------------------------------------------------------------------------------

    def receive(self, kept: dict[bytes, Options]) -> Envelope | list[Frame] | None:
        """Wait for input as `read` does; give one request or answer, as most reads bring."""
        if _fast is None or not self.reader.between:
            return self.read()
        try:
            received = _fast.receive(self.reads, self.reader.max_frame_bytes, kept)
        except OSError as error:
            return [] if self._read_failed(error) else None
        if isinstance(received, tuple):
            return received
        if isinstance(received, bytes):
            return [received]
        if not received:
            self.ended = True
            return None
        return self.reader.feed(bytes(received))

    def read(self) -> list[Frame] | None:
        """Wait for input; give the frames that it completes, often none, and None at the end.

        Raises:
            FramingError: the stream cannot be read any further.
        """
        reader = self.reader
        if reader.refusal is not None:
            raise reader.refusal
        try:
            if reader.between or reader.missing < _DIRECT_BYTES:
                data = os.read(self.reads, self._read_bytes)
                self.ended = not data
                return reader.feed(data) if data else None
            room = reader.room()
            assert room is not None
            count = os.readv(self.reads, (room,))
            self.ended = not count
            return reader.filled(count) if count else None
        except OSError as error:
            return [] if self._read_failed(error) else None

    def _read_failed(self, error: OSError) -> bool:
        """Cope with a failed read; tell whether to read again."""
        if _is_foreign(error):
            raise error
        if type(error) is BlockingIOError:  # another process that shares the pipe made it so
            _wait_for(self.reads, POLLIN)
            return True
        # User code closed the fd, or the other side reset: in both cases the input has ended.
        self._lose()
        return False

    def readable(self) -> bool:
        """Tell whether `read` would return at once."""
        return _wait_for(self.reads, POLLIN, timeout_ms=0)

    def end_input(self) -> None:
        """Let the next read find the end of input; what was read before is not lost.

        Safe in a signal handler: a read that the signal interrupted is tried again by Python after
        the handler, and then reads from /dev/null. Raising from the handler instead could throw
        away bytes that the read had just returned.
        """
        point_at_null(self.reads)

    # --- writing ----------------------------------------------------------------------------------

    def begin(self, frame: bytes, *, alone: bool = False) -> None:
        """Write the first frame, and then, unless it is to be alone, the held frames."""
        if alone:
            self.held.clear()
        self.held.appendleft(header(len(frame)) + frame)
        self.silent = False
        self._drain()
        self.flush()

    def send(self, frame: bytes | list[Part]) -> None:
        """Write a small frame with its header, or one in parts, after what is held. For main."""
        if not isinstance(frame, bytes):
            if len(frame) > 1 or len(frame[0]) > _JOINED_BYTES:
                self.hold(frame)
                self.flush()
                return
            frame = header(len(frame[0])) + frame[0]
        if self.held or not self._write_at_once(self.writes, frame, self._writers):
            self.held.append(frame)
            self.flush()

    def hold(self, parts: list[Part]) -> None:
        """Take a frame, in parts, to be written with the next `flush`.

        A large one is written before this returns: its parts may be buffers that user code goes
        on to change.
        """
        if self.gone:
            return
        if len(parts) == 1 and (size := len(parts[0])) <= _JOINED_BYTES:
            self.held.append(header(size) + parts[0])
            self._held_bytes += size
            if self._held_bytes > _JOINED_BYTES or len(self.held) >= self._most_held:
                self.flush()
            return
        size = sum(map(len, parts))
        if self.silent or get_ident() in self._writers:  # the latter in the midst of our writing
            self.held.append([header(size), *map(bytes, parts)])
        else:
            self.held.append([header(size), *parts])
            self.writing.acquire()
            self._drain()
            self.flush()

    def flush(self) -> None:
        """Write everything that is held, or leave it to the thread that is writing just now."""
        while self.held:
            if not self.writing.acquire(blocking=False):
                few = self._held_bytes < _MOST_UNWRITTEN_BYTES
                if few or self.silent or get_ident() in self._writers:
                    return
                self.writing.acquire()
            self._drain()

    def write_all(self) -> None:
        """Write everything that is held, whichever thread writes: the server ends after this."""
        if self.writing.acquire(timeout=_LAST_WRITE_S):
            self._drain()

    def recover(self) -> None:
        """Let go of the write lock if main was struck by a stray exception while it had it."""
        if self.writing.acquire(timeout=1.0) or self._writers in ([], [self._main]):
            self._writers.clear()
            self.writing.release()

    def _drain(self) -> None:
        """Write everything that is held, with the lock taken; let go of it."""
        self._writers.append(get_ident())
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
                    self._held_bytes = 0
                # Small ones as one: a buffer costs a writev more than copying it.
                if small:
                    parts = [b"".join(small), *parts]
                self._write_rest(parts, 0)
            if self.gone:
                held.clear()
        except OSError as error:
            if _is_foreign(error):
                raise
            # EPIPE: the BEAM is gone. EBADF: user code closed everything.
            held.clear()
            self._lose()
        finally:
            self._writers.clear()
            self.writing.release()

    def _lose(self) -> None:
        self.gone = True
        self._page.lose()

    def _write_rest(self, parts: list[Part], count: int) -> None:
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
                count = os.writev(self.writes, parts[:_MOST_BUFFERS])
            except BlockingIOError:
                _wait_for(self.writes, POLLOUT)
                count = 0

    # --- a forked child ---------------------------------------------------------------------------

    def disown(self) -> None:
        """Become a forked child: neither fd leads to the port any more."""
        self.forked = self.gone = True
        self.writing = allocate_lock()  # another thread may have held it
        point_at_null(self.reads)
        point_at_null(self.writes)


def _wait_for(fd: int, event: int, timeout_ms: int | None = None) -> bool:
    waiting = poll()
    waiting.register(fd, event)
    return bool(waiting.poll(timeout_ms))


def _never(_fd: int, _data: bytes, _writers: list[int]) -> bool:
    """Write nothing: what `_fast.write` does where a pipe is full."""
    return False


def _expect_no_warning() -> None:
    """Before a fork: Python 3.12 and later warn of any process that has threads.

    The server's threads would make every fork of user code warn. They hold no lock that a child
    needs: the child never returns to the server's code.
    """
    import warnings  # noqa: PLC0415  not on the start path

    # If the filter exists, this moves it before the filters that were added since.
    warnings.filterwarnings(
        "ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning
    )


def _is_foreign(error: OSError) -> bool:
    """Tell whether a signal handler of user code raised it, not the system call that it cut short.

    Such an exception has passed through one frame more than the one that catches it.
    """
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename != __file__:
            return True
        traceback = traceback.tb_next
    return False
