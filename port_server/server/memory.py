"""A limit on the memory of the process: beyond it Python raises MemoryError.

RLIMIT_AS counts addresses, not pages in use: a thread's stack (8 MiB) counts in full, and so do
mappings that are never touched. It is the only limit that a process can set on itself and that
appears as an exception.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, TypeVar

    _T = TypeVar("_T")

# Room that must be free at the beginning, and that is lent for describing a failure: importing
# traceback alone takes some arenas of 1 MiB, and source lines are read.
ROOM_BYTES: Final = 32 << 20


class Memory:
    """The limit of one process, if it has one."""

    def __init__(self) -> None:
        self._hard = self._soft = self._number = 0
        self._lent = (0, 0)
        self._exchange: Callable[[int, int, tuple[int, int]], tuple[int, int]]

    def limit(self, most_bytes: int) -> None:
        """Hold the process to so many bytes of addresses.

        Raises:
            ValueError: it has more already, or the system has no such limit. The text says which
                value would be accepted.
        """
        needed = statm_bytes(0) + ROOM_BYTES
        if most_bytes < needed:
            raise ValueError(
                f"at least {needed} here, as much as the server itself takes with room to work"
            )
        try:
            import resource  # noqa: PLC0415  not on the start path

            _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            if hard != resource.RLIM_INFINITY:
                most_bytes = min(most_bytes, hard)
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))
        except (ImportError, AttributeError, OSError, ValueError) as error:
            raise ValueError(f"not possible on this system ({error})") from None
        self._soft, self._hard = most_bytes, hard
        more = most_bytes + ROOM_BYTES
        self._lent = (more if hard == resource.RLIM_INFINITY else min(more, hard), hard)
        self._number = resource.RLIMIT_AS
        self._exchange = getattr(resource, "prlimit", _exchange)

    def lend(self, work: Callable[[Any, Any], _T], first: Any, second: Any) -> _T:
        """Call `work` with the limit raised: the data that has reached it is still referred to."""
        if not self._soft:
            return work(first, second)
        # The first step, with objects made before: at the limit every allocation fails.
        before = self._exchange(0, self._number, self._lent)
        if before != (self._soft, self._hard):  # user code has set its own
            self._exchange(0, self._number, before)
            return work(first, second)
        try:
            return work(first, second)
        finally:
            self._exchange(0, self._number, before)


def statm_bytes(field: int) -> int:
    """Give a field of /proc/self/statm: 0 for addresses, 1 for memory in use. 0 if not on Linux."""
    try:
        # Opened anew each time (10 us a second), because user code may have closed every fd.
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  pathlib is not on the start path
            return int(file.read().split()[field]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _exchange(_pid: int, number: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Do what Linux's prlimit does; give the limits before."""
    import resource  # noqa: PLC0415  there since `limit`

    before = resource.getrlimit(number)
    resource.setrlimit(number, limits)
    return before
