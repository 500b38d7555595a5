"""sys.stdout and sys.stderr per request, and a stdin that explains itself.

What the running request prints in the main thread is collected, and handed on in batches through
`emit`, which the server provides; everything else goes to fd 2. Where a print belongs is decided
in `Output.write` alone: threads, tasks and a window come later, and there.
"""

from __future__ import annotations

import io
import os
import sys
from _thread import get_ident
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Final, NoReturn

    from port_server.settings import Settings

    # (stream name, text); True where it must leave now.
    Emit = Callable[[str, bytes, bool], None]

STDERR_FD: Final = 2

NO_STDIN: Final = (
    "there is no stdin: input() has nobody to ask in a server. Pass what the code needs as globals"
)


class Output:
    """Collects what is printed for the request that is running.

    Attributes:
        open: whether a request is running, to which the printing belongs.
        parts: what is collected; looked at before every reply.
    """

    __slots__ = ("_emit", "_limit_bytes", "_limit_s", "_since", "_size", "_thread", "open", "parts")

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self.open = False
        self._emit = emit
        self._limit_bytes = settings.output_batch_bytes
        self._limit_s = settings.output_delay_ms / 1000
        self._thread = get_ident()
        self.parts: list[tuple[str, bytes]] = []
        self._size = 0
        self._since = 0.0

    def write(self, stream: str, text: bytes) -> None:
        """Take what was printed to `stream`."""
        if not text:
            return
        if not self.open or get_ident() != self._thread:
            write_to_stderr(text)
            return
        # No lock: printing happens in signal handlers and in __del__ as well, which interrupt
        # exactly this; appending to a list is atomic enough, a lock would be held by ourselves.
        self.parts.append((stream, text))
        self._size += len(text)
        if self._size > self._limit_bytes:
            self.hand_on(now=False)
            return
        now = monotonic()
        if len(self.parts) == 1:
            self._since = now
        elif now - self._since > self._limit_s:
            self.hand_on(now=True)

    def hand_on(self, *, now: bool) -> None:
        """Emit what is collected, neighbours of one stream joined; with `now` it leaves at once."""
        parts, self.parts, self._size = self.parts, [], 0
        if not self.open:
            for _stream, text in parts:
                write_to_stderr(text)
            return
        at = 0
        while at < len(parts):
            stream = parts[at][0]
            end = at + 1
            while end < len(parts) and parts[end][0] == stream:
                end += 1
            self._emit(stream, b"".join([text for _stream, text in parts[at:end]]), now)
            at = end


def write_to_stderr(text: bytes) -> None:
    """Write to fd 2, whoever has it. If it is closed the text is lost: there is no one to tell."""
    try:
        while text:
            text = text[os.write(STDERR_FD, text) :]
    except OSError:
        pass


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: what is written as bytes, in order with what is written as text."""

    def __init__(self, output: Output, stream: str, fd: int) -> None:
        self._output = output
        self._stream = stream
        self._fd = fd
        self.mode = "wb"
        self.name = f"<{stream}>"

    def write(self, data: Any) -> int:
        text = bytes(data)
        self._output.write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        output = self._output
        if output.open:
            output.hand_on(now=True)

    def close(self) -> None:
        """Stay open: the next request prints, too."""

    @property
    def closed(self) -> bool:
        return False

    @property
    def raw(self) -> _Bytes:
        return self

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd


class TextStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr`: a text stream like any other, that cannot be closed.

    `fileno()` is the real fd, which leads to the server's stderr, so that a child process that
    gets it as its stdout writes where output outside of requests goes.
    """

    errors = "backslashreplace"  # a lone surrogate in a print is no reason to fail
    encoding = "utf-8"
    newlines = None
    line_buffering = False
    write_through = False
    mode = "w"

    def __init__(self, output: Output, stream: str, fd: int) -> None:
        self.buffer = _Bytes(output, stream, fd)
        self.name = f"<{stream}>"
        self._output = output
        self._stream = stream
        self._fd = fd

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._output.write(self._stream, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.buffer.flush()

    def close(self) -> None:
        """Stay open: the next request prints, too."""

    @property
    def closed(self) -> bool:
        return False

    def reconfigure(self, **_options: Any) -> None:
        """Accept and ignore: encoding and buffering belong to the wire."""

    def detach(self) -> NoReturn:
        raise io.UnsupportedOperation("the server's stdout and stderr cannot be detached")

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    def __repr__(self) -> str:
        return f"<port_server stream {self._stream}>"


class NoInput(io.TextIOBase):
    """`sys.stdin`: reading from it says that there is nobody to ask."""

    encoding = "utf-8"
    errors = "strict"
    newlines = None
    mode = "r"
    name = "<stdin>"

    def read(self, _size: int | None = -1) -> NoReturn:
        raise EOFError(NO_STDIN)

    def readline(self, _size: int = -1) -> NoReturn:  # type: ignore[override]
        raise EOFError(NO_STDIN)

    def __next__(self) -> NoReturn:
        raise EOFError(NO_STDIN)

    def close(self) -> None:
        """Stay as it is: multiprocessing closes stdin in its children."""

    @property
    def closed(self) -> bool:
        return False

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return 0  # /dev/null


class Streams:
    """The three streams of a server, put in place and, if a request replaced them, put back."""

    __slots__ = ("stderr", "stdin", "stdout")

    def __init__(self, output: Output) -> None:
        self.stdin: Any = NoInput()
        self.stdout: Any = TextStream(output, "stdout", 1)
        self.stderr: Any = TextStream(output, "stderr", STDERR_FD)

    def install(self) -> None:
        """Make them sys.stdin, sys.stdout and sys.stderr."""
        sys.stdin, sys.stdout, sys.stderr = self.stdin, self.stdout, self.stderr

    def adopt(self) -> None:
        """Take what is in place for the rest of the server's life: init_code may have its own."""
        self.stdin, self.stdout, self.stderr = sys.stdin, sys.stdout, sys.stderr
