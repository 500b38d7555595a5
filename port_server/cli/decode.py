"""`decode`: frames on standard input, the term of each as text on standard output."""

from __future__ import annotations

import os

from port_server.cli import FAILED, MISUSED, OK
from port_server.cli.output import READ_BYTES, complain, write_all
from port_server.etf.text.elixir import format_elixir
from port_server.etf.text.erlang import format_erlang
from port_server.etf.text.verbatim import VerbatimError, read
from port_server.protocol.framing import HEADER_BYTES, FrameReader
from port_server.settings import Settings

SHOWN_BYTES = 32  # of a frame that is no term


def run_decode(*, elixir: bool = False) -> int:
    """Read frames on stdin, print the term of each on stdout."""
    if os.isatty(0):
        complain(
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
                complain("decode", _no_term(bytes(frame), count, offset, error))
                status = FAILED
            else:
                write_all(1, text.encode() + b"\n")
            offset += HEADER_BYTES + len(frame)
        if reader.refusal is not None:
            complain("decode", f"frame {count + 1}, at byte {offset}: {reader.refusal}")
            return FAILED
    if not reader.at_boundary:
        complain("decode", f"frame {count + 1}, at byte {offset}: {_cut_short(reader)}")
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
