"""The status page: the running request, in 64 bytes of a file of the owner, readable at any time.

Heartbeats need the GIL and a pipe with room. The page can be read while the GIL is held, under
SIGSTOP and after a segfault. This module only stores; it never reads, waits or fails. The layout
stands in docs/protocol.md.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap
    from typing import Final

    from .scheduler import Scheduler

PAGE_BYTES: Final = 64
_MAGIC: Final = b"PYP1"
_MAGIC_AT: Final = slice(0, 4)
_PHASE_AT: Final = 4
_ELSEWHERE_AT: Final = slice(5, 7)
_SENT_AT: Final = slice(7, 11)
LENGTH_AT: Final = 15
_BEATS_AT: Final = slice(48, 56)
_REQUESTS_AT: Final = slice(56, 62)
_THREADS_AT: Final = slice(62, 64)
_MOST_ELSEWHERE: Final = 0xFFFF
_MOST_ID_BYTES: Final = 32

SERVING: Final = 1
DRAINING: Final = 2

# An id as the bytes of its term is `m`, four bytes of length, the id. Stored whole and so that the
# last byte of the length falls on LENGTH_AT, it needs no slicing: 80 ns. The usual id has 8 bytes.
USUAL_TERM_BYTES: Final = 13
USUAL_AT: Final = slice(LENGTH_AT - 4, LENGTH_AT - 4 + USUAL_TERM_BYTES)


class StatusPage:
    """The status page of one server, or none.

    Attributes:
        map: the page itself, which the hot path stores into; None without one.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Begin without a page; the scheduler counts the requests elsewhere than in main."""
        self._beats = 0
        self._lost = False
        self._scheduler = scheduler
        self._sent = 0
        self.map: mmap | None = None

    def open(self, path: str | bytes) -> None:
        """Map the file, if that succeeds. A server without a page works as well."""
        try:
            from mmap import mmap  # noqa: PLC0415  only here, and not everywhere there

            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self.map = mmap(fd, PAGE_BYTES)
            finally:
                os.close(fd)
            self.map[_MAGIC_AT] = _MAGIC
        except (ImportError, OSError, ValueError):
            self.map = None

    def close(self) -> None:
        """Write no more: in a forked child the page is its parent's."""
        self.map = None

    def enter(self, phase: int) -> None:
        """Show that the server is SERVING or DRAINING."""
        if self.map is not None:
            self.map[_PHASE_AT] = phase

    def show(self, id_term: bytes) -> None:
        """Show which request main runs. The hot path does this in place for ids of 8 bytes."""
        page = self.map
        if page is None:
            return
        shown = id_term[: 5 + _MOST_ID_BYTES]
        page[LENGTH_AT - 4 : LENGTH_AT - 4 + len(shown)] = shown

    def clear(self) -> None:
        """Show that main runs none."""
        if self.map is not None:
            self.map[LENGTH_AT] = 0

    def lose(self) -> None:
        """Show that replies can no longer be written, so that the page is no proof any more.

        A request that has ended would look as if it had never begun. The highest count of requests
        elsewhere tells the owner that either may be true.
        """
        self._lost = True
        self.count()

    def count(self) -> None:
        """Show how many requests are under way elsewhere. For any thread.

        Two threads that count at once may leave the older number; the next heartbeat corrects it.
        """
        if self.map is not None:
            number = _MOST_ELSEWHERE if self._lost else len(self._scheduler.elsewhere)
            self.map[_ELSEWHERE_AT] = min(number, _MOST_ELSEWHERE).to_bytes(2, "little")

    def occupy(self, threads: int) -> None:
        """Show in how many of its threads the server runs a request. For any thread, as `count`."""
        if self.map is not None:
            self.map[_THREADS_AT] = threads.to_bytes(2, "little")

    def beat(self, requests: int) -> None:
        """Show that the interpreter lives, and how many requests main has begun."""
        if self.map is not None:
            self._beats += 1
            self.map[_BEATS_AT] = self._beats.to_bytes(8, "little")
            self.map[_REQUESTS_AT] = requests.to_bytes(6, "little")
            self.count()

    def beat_sent(self) -> None:
        """Show that a heartbeat was written: an owner that never reads it cannot read any frame."""
        if self.map is not None:
            self._sent += 1
            self.map[_SENT_AT] = self._sent.to_bytes(4, "little")
