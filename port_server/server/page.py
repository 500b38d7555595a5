"""The status page: what runs, in 64 bytes of a file that the owner made and can read at any time.

Beats need the GIL and a pipe with room; the page can be read while the GIL is held, under SIGSTOP
and after a segfault. Stores only: nothing here reads, waits or fails. Its layout stands in
docs/protocol.md.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap
    from typing import Final

PAGE_BYTES: Final = 64
_MAGIC: Final = b"PYP1"
_MAGIC_AT: Final = slice(0, 4)
_PHASE_AT: Final = 4
_ELSEWHERE_AT: Final = slice(5, 7)
_SENT_AT: Final = slice(7, 11)
LENGTH_AT: Final = 15
_BEATS_AT: Final = slice(48, 56)
_REQUESTS_AT: Final = slice(56, 64)
_MOST_ELSEWHERE: Final = 0xFFFF
_MOST_ID_BYTES: Final = 32

SERVING: Final = 1
DRAINING: Final = 2

# An id as the bytes of its term is `m`, four bytes of length, the id. Stored whole and so that the
# last byte of the length falls on LENGTH_AT, it needs no slicing: 80 ns. The usual id has 8 bytes.
USUAL_TERM_BYTES: Final = 13
USUAL_AT: Final = slice(LENGTH_AT - 4, LENGTH_AT - 4 + USUAL_TERM_BYTES)


class Page:
    """The status page of one server, or none.

    Attributes:
        map: the page itself, which the hot path stores into; None without one.
    """

    __slots__ = ("_beats", "_elsewhere", "_sent", "map")

    def __init__(self, elsewhere: Callable[[], int]) -> None:
        """Begin without a page; `elsewhere` counts the requests that other lanes have."""
        self._beats = 0
        self._elsewhere = elsewhere
        self._sent = 0
        self.map: mmap | None = None

    def open(self, path: str | bytes) -> bool:
        """Map the file; tell whether that went well. A server without a page works as well."""
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
            return False
        return True

    def close(self) -> None:
        """Write no more: it is somebody else's, in a forked child."""
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
        """Show that nobody can tell of any request any more, because its reply cannot be written.

        What has ended would look like what never began; as under way elsewhere it looks like both.
        """
        self._elsewhere = lambda: _MOST_ELSEWHERE
        self.count()

    def count(self) -> None:
        """Show how many requests are under way elsewhere. For any thread.

        Two that count at once may leave the older number; the next beat sets it right.
        """
        if self.map is not None:
            number = min(self._elsewhere(), _MOST_ELSEWHERE)
            self.map[_ELSEWHERE_AT] = number.to_bytes(2, "little")

    def beat(self, requests: int) -> None:
        """Show that the interpreter lives, and how many requests main has begun."""
        if self.map is not None:
            self._beats += 1
            self.map[_BEATS_AT] = self._beats.to_bytes(8, "little")
            self.map[_REQUESTS_AT] = requests.to_bytes(8, "little")
            self.count()

    def beat_sent(self) -> None:
        """Show that a heartbeat was written: an owner that never reads it cannot read any frame."""
        if self.map is not None:
            self._sent += 1
            self.map[_SENT_AT] = self._sent.to_bytes(4, "little")
