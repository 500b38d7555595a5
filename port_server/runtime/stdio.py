"""sys.stdout and sys.stderr as ordinary text streams, and a stdin that explains why it is empty.

Written text goes to `Output`, which finds its request. The streams do not buffer.
"""

from __future__ import annotations

import builtins
import io
import sys

from .output import PIECE_BYTES
from .printed import STDERR_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final, NoReturn

    from .output import Output

NO_STDIN: Final = (
    "a server has no stdin, so input() cannot read. Pass the values that the code needs as globals"
)
# A character has at most four bytes: text is cut before it is encoded, so characters stay whole.
_PIECE_CHARS: Final = PIECE_BYTES // 4


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes keep their order with text written to `sys.stdout`."""

    def __init__(self, output: Output, stream: str, fd: int) -> None:
        self._output = output
        self._stream = stream
        self._fd = fd
        self.mode = "wb"
        self.name = f"<{stream}>"

    def write(self, data: Any) -> int:
        # Not bytes(data) alone: bytes(1000000) is a million zeros.
        text = data if type(data) is bytes else bytes(memoryview(data))
        at = 0
        while len(text) - at > PIECE_BYTES:
            end = at + PIECE_BYTES
            while end > at + PIECE_BYTES - 3 and text[end] & 0xC0 == 0x80:  # inside of a character
                end -= 1
            self._output.write(self._stream, text[at:end])
            at = end
        self._output.write(self._stream, text[at:] if at else text)
        return len(text)

    def flush(self) -> None:
        self._output.flush()

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
    """`sys.stdout` or `sys.stderr`: an ordinary text stream that cannot be closed.

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
        self._write = output.write
        self.flush = output.flush  # type: ignore[method-assign]  # print(flush=True)
        self._stream = stream
        self._fd = fd

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        size = len(text)
        if size <= _PIECE_CHARS:
            try:
                data = text.encode()
            except UnicodeEncodeError:
                data = text.encode("utf-8", "backslashreplace")
            self._write(self._stream, data)
        else:
            for at in range(0, size, _PIECE_CHARS):
                piece = text[at : at + _PIECE_CHARS]
                self._write(self._stream, piece.encode("utf-8", "backslashreplace"))
        return size

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

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
    """`sys.stdin`: reading from it raises an EOFError that names the alternatives."""

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


class Stdio:
    """The three streams of a server, put in place and, if a request replaced them, put back."""

    __slots__ = ("stderr", "stdin", "stdout")

    def __init__(self, output: Output) -> None:
        self.stdin: Any = NoInput()
        self.stdout: Any = TextStream(output, "stdout", 1)
        self.stderr: Any = TextStream(output, "stderr", STDERR_FD)

    def install(self) -> None:
        """Make them sys.stdin, sys.stdout and sys.stderr."""
        sys.stdin, sys.stdout, sys.stderr = self.stdin, self.stdout, self.stderr

    def repair(self) -> None:
        """Put them in place again, where user code has left others."""
        try:
            whole = sys.stdout is self.stdout and sys.stderr is self.stderr
            whole = whole and sys.stdin is self.stdin
        except AttributeError:  # `del sys.stdout`
            whole = False
        if not whole:
            self.install()

    def adopt(self) -> None:
        """Keep the current streams for the rest of the server's life: init_code may set its own."""
        self.stdin, self.stdout, self.stderr = sys.stdin, sys.stdout, sys.stderr


def explain_input() -> None:
    """Make input() raise before it prints its prompt.

    A stdin that user code has set is read as usual.
    """
    original = builtins.input

    def input(prompt: object = "", /) -> str:  # noqa: A001  its name is seen in tracebacks
        if type(getattr(sys, "stdin", None)) is NoInput:
            raise EOFError(NO_STDIN)
        return original(prompt)

    input.__doc__ = original.__doc__
    input.__module__ = "builtins"
    builtins.input = input
