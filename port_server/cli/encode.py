"""`encode`: Erlang term text on standard input, a frame for each term on standard output."""

from __future__ import annotations

import codecs
import os

from port_server.cli import FAILED, MISUSED, OK
from port_server.cli.output import READ_BYTES, complain, write_all
from port_server.etf.text.reader import TermReader, TextError
from port_server.etf.text.verbatim import write
from port_server.protocol.framing import header

CONTEXT_CHARS = 60  # of a line, before the place of an error; half as many behind it


def run_encode() -> int:
    """Read Erlang terms on stdin, write a frame for each on stdout."""
    if os.isatty(1):
        complain(
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
            # The text before the error is valid.
            reader.feed(error.object[: error.start].decode())
            _write_terms(reader)
            at = count - (len(error.object) - len(data)) + error.start
            complain("encode", f"byte {at} of the input is not UTF-8; nothing after it is read")
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
            complain("encode", f"{error}{_pointed_at(error)}")
            continue
        if term is None:
            return fine
        body = write(term)
        # One write: a term goes out whole or not at all.
        write_all(1, header(len(body)) + body)


def _pointed_at(error: TextError) -> str:
    """The line with a caret below the place, cut on the left if the place is far to the right."""
    if not error.excerpt or error.column - 1 > len(error.excerpt):
        return ""
    before, behind = error.excerpt[: error.column - 1], error.excerpt[error.column - 1 :]
    if len(before) > CONTEXT_CHARS:
        before = "..." + before[3 - CONTEXT_CHARS :]
    blank = "".join("\t" if char == "\t" else " " for char in before)
    return f"\n    {before}{behind[: CONTEXT_CHARS // 2]}\n    {blank}^"
