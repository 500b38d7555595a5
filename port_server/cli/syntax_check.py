"""The syntax check of Python sigils, for one compilation of Elixir code. Runs no code.

Questions and answers are {packet, 4} frames on two fds, as text, so that neither side needs a
codec: a question is source code; an answer is a word on its first line, and its details on the
lines that follow.

    names: the names that are bound, those that may be deleted again, those that are read
    error: line, column and end column (counted from 1; 0 if not known), then the message
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from port_server.runtime.syntax_check import names_of

if TYPE_CHECKING:
    from typing import BinaryIO


def answer(text: str) -> str:
    """Check `text`, and give the answer."""
    try:
        names = names_of(text)
    except SyntaxError as error:
        same_line = error.end_lineno == error.lineno
        place = (error.lineno or 0, error.offset or 0, (same_line and error.end_offset) or 0)
        return "\n".join(["error", *map(str, place), error.msg])
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        # A null byte; nesting beyond what the parser can do.
        return "\n".join(["error", "0", "0", "0", str(error) or type(error).__name__])
    return "\n".join(["names", *(" ".join(sorted(part)) for part in names)])


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more questions."""
    # Python repeats its warnings when the code runs.
    warnings.simplefilter("ignore")
    while len(header := requests.read(4)) == 4:
        text = requests.read(int.from_bytes(header, "big")).decode("utf-8", "surrogateescape")
        said = answer(text).encode("utf-8", "backslashreplace")
        answers.write(len(said).to_bytes(4, "big") + said)
        answers.flush()


def main(reads: int, writes: int) -> None:
    """Serve on these fds, and say first which Python this is."""
    with open(reads, "rb") as questions, open(writes, "wb") as answers:
        hello = b"%d.%d.%d" % sys.version_info[:3]
        answers.write(len(hello).to_bytes(4, "big") + hello)
        answers.flush()
        serve(questions, answers)
