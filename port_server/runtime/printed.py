"""The output of one request, from the print to the frame; and fd 2 for output of no request."""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

STDERR_FD: Final = 2


class Printed:
    """The output of one request.

    Attributes:
        acked: bytes that the other side has acknowledged.
        busy: held by the thread that is handing on `parts`.
        ended: whether the request has ended; later prints go to fd 2.
        id_term: the request.
        muted: whether the output is thrown away.
        parts: the collected text, as (stream, text).
        sent: bytes that were handed on.
        since: when the first of `parts` was printed, 0 if there are none.
        size: bytes in `parts`, about.
        waiters: the locks on which prints wait for `acked`.
    """

    __slots__ = (
        "acked",
        "busy",
        "ended",
        "id_term",
        "muted",
        "parts",
        "sent",
        "since",
        "size",
        "waiters",
    )

    def __init__(self, id_term: bytes) -> None:
        self.id_term = id_term
        self.parts: deque[tuple[str, bytes]] = deque()
        self.busy = allocate_lock()
        self.ended = False
        self.muted = False
        self.size = 0
        self.since = 0.0
        # Counters with one writer each, because `-=` in two threads may lose a change.
        self.sent = 0
        self.acked = 0
        self.waiters: deque[Any] = deque()

    def lose(self) -> None:
        """Write to fd 2 what is collected: the request has ended."""
        while self.parts:
            try:
                _stream, text = self.parts.popleft()
            except IndexError:  # another thread was faster
                return
            write_to_stderr(text)

    def wake(self) -> None:
        """Wake the prints that wait."""
        while self.waiters:
            try:
                self.waiters.popleft().release()
            except IndexError:  # another thread was faster
                return


def write_to_stderr(text: bytes) -> None:
    """Write to fd 2, wherever it leads. If it is closed the text is lost."""
    try:
        while text:
            text = text[os.write(STDERR_FD, text) :]
    except OSError:
        pass
