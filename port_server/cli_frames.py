"""`encode` and `decode`: Erlang term text on one side, frames on the other.

File descriptors are read and written directly: what has been read must leave at once, and Python's
buffers would hold it back.
"""

from __future__ import annotations

import codecs
import os
import sys

from port_server.cli import FAILED, MISUSED, OK
from port_server.etf.elixir_text import format_elixir
from port_server.etf.erlang_text import format_erlang
from port_server.etf.text import TermReader, TextError
from port_server.etf.verbatim import VerbatimError, read, write
from port_server.protocol.framing import HEADER_BYTES, FrameReader, header
from port_server.settings import Settings

READ_BYTES = 1 << 16
CONTEXT_CHARS = 60  # of a line, before the place of an error; half as many behind it
SHOWN_BYTES = 32  # how much of a frame that is no term is shown


def write_all(fd: int, data: bytes) -> None:
    """Write everything; a pipe may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _complain(command: str, text: str) -> None:
    sys.stderr.write(f"port-server {command}: {text}\n")
    sys.stderr.flush()


def run_encode() -> int:
    """Read Erlang terms on stdin, write a frame for each on stdout."""
    if os.isatty(1):
        _complain(
            "encode",
            "the frames are binary and standard output is a terminal. Send them on:\n"
            "  port-server encode < terms | port-server serve | port-server decode",
        )
        return MISUSED
    reader = TermReader()
    decoder = codecs.getincrementaldecoder("utf-8")()
    status, count = OK, 0
    while True:
        data = os.read(0, READ_BYTES)
        try:
            reader.feed(decoder.decode(data, final=not data))
        except UnicodeDecodeError as error:
            # What stands before it is still good.
            reader.feed(error.object[: error.start].decode())
            _write_terms(reader)
            at = count - (len(error.object) - len(data)) + error.start
            _complain("encode", f"byte {at} of the input is not UTF-8; nothing after it is read")
            return FAILED
        count += len(data)
        if not data:
            reader.close()
        if not _write_terms(reader):
            status = FAILED
        if not data:
            return status


def _write_terms(reader: TermReader) -> bool:
    """Write the terms that are whole; False if one of them had a mistake."""
    fine = True
    while True:
        try:
            term = reader.next_term()
        except TextError as error:
            fine = False
            _complain("encode", f"{error}{_pointed_at(error)}")
            continue
        if term is None:
            return fine
        body = write(term)
        # One write: a term goes out whole or not at all.
        write_all(1, header(len(body)) + body)


def _pointed_at(error: TextError) -> str:
    """The line with a caret below the place, cut on the left where that is far to the right."""
    if not error.excerpt or error.column - 1 > len(error.excerpt):
        return ""
    before, behind = error.excerpt[: error.column - 1], error.excerpt[error.column - 1 :]
    if len(before) > CONTEXT_CHARS:
        before = "..." + before[3 - CONTEXT_CHARS :]
    blank = "".join("\t" if char == "\t" else " " for char in before)
    return f"\n    {before}{behind[: CONTEXT_CHARS // 2]}\n    {blank}^"


def run_decode(*, elixir: bool = False) -> int:
    """Read frames on stdin, print the term of each on stdout."""
    if os.isatty(0):
        _complain(
            "decode",
            "it reads binary frames, and standard input is a terminal. Pipe them in:\n"
            "  echo '{ping, <<\"1\">>}.' | port-server encode | port-server serve | port-server"
            " decode",
        )
        return MISUSED
    form = format_elixir if elixir else format_erlang
    limit = Settings().max_frame_bytes
    reader = FrameReader(limit)
    status, count, offset = OK, 0, 0
    while True:
        data = os.read(0, READ_BYTES)
        if not data:
            break
        for frame in reader.feed(data):
            count += 1
            try:
                text = form(read(bytes(frame)))
            except VerbatimError as error:
                _complain("decode", _no_term(bytes(frame), count, offset, error))
                status = FAILED
            else:
                write_all(1, text.encode() + b"\n")
            offset += HEADER_BYTES + len(frame)
        if reader.refusal is not None:
            _complain("decode", f"frame {count + 1}, at byte {offset}: {reader.refusal}")
            return FAILED
    if not reader.at_boundary:
        _complain("decode", f"frame {count + 1}, at byte {offset}: {_cut_short(reader)}")
        return FAILED
    return status


def _cut_short(reader: FrameReader) -> str:
    if not reader.missing:
        return "the input ends within the four bytes of a frame's length"
    return f"the input ends within the frame; still missing of it: {reader.missing} bytes"


def _no_term(frame: bytes, number: int, offset: int, error: VerbatimError) -> str:
    shown = repr(frame[:SHOWN_BYTES])[2:-1] + ("..." if len(frame) > SHOWN_BYTES else "")
    return (
        f"frame {number}, at byte {offset}, {len(frame)} bytes, holds no term: {error}\n"
        f"    it begins {shown}"
    )
