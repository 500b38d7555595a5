"""sys.stdout and sys.stderr as text streams like any other, and a stdin that explains itself.

What is written goes to `Output`, which knows whose it is. Nothing is buffered here.
"""

from __future__ import annotations

import builtins
import io
import sys

from .output import PIECE_BYTES, STDERR_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final, NoReturn

    from .output import Output

NO_STDIN: Final = (
    "there is no stdin: input() has nobody to ask in a server. Pass what the code needs as globals"
)
# A character has four bytes at the most: a piece of text is cut before it is encoded, and whole.
_PIECE_CHARS: Final = PIECE_BYTES // 4


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: what is written as bytes, in order with what is written as text."""

    def __init__(self, output: Output, stream: str, fd: int) -> None:
        self._output = output
        self._stream = stream
        self._fd = fd
        self.mode = "wb"
        self.name = f"<{stream}>"

    def write(self, data: Any) -> int:
        # Not bytes(data) alone, which makes a million zeros of the number.
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


def explain_input() -> None:
    """Let input() say that there is nobody to ask, before it prints its prompt to somebody.

    A stdin that user code put in place of ours is read as ever.
    """
    original = builtins.input

    def input(prompt: object = "", /) -> str:  # noqa: A001  its name is seen in tracebacks
        if type(getattr(sys, "stdin", None)) is NoInput:
            raise EOFError(NO_STDIN)
        return original(prompt)

    input.__doc__ = original.__doc__
    input.__module__ = "builtins"
    builtins.input = input
