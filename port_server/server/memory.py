"""A limit on the memory of the process: too much is a MemoryError, not a machine that stands still.

RLIMIT_AS counts addresses, not pages in use: a thread's stack (8 MiB) counts whole, and so does
what is mapped and never touched. It is the only limit that a process can set itself and meet as
an exception.
"""

from __future__ import annotations

import os

from .greeting import wrong_option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeVar

    _T = TypeVar("_T")

# What must be free at the beginning, and what is lent for describing a failure: importing traceback
# alone takes some arenas of 1 MiB, and source lines are read.
ROOM_BYTES: Final = 32 << 20


class Memory:
    """The limit of one process, if it has one."""

    __slots__ = ("_hard", "_soft")

    def __init__(self) -> None:
        self._hard = self._soft = 0

    def limit(self, most_bytes: int) -> None:
        """Hold the process to so many bytes of addresses.

        Raises:
            RefusedError: it has more already, or the system knows no such limit.
        """
        needed = _address_bytes() + ROOM_BYTES
        if most_bytes < needed:
            raise wrong_option(
                "memory_limit_bytes",
                f"at least {needed} here, as much as the server itself takes with room to work",
                most_bytes,
            )
        try:
            import resource  # noqa: PLC0415  not on the start path

            _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            if hard != resource.RLIM_INFINITY:
                most_bytes = min(most_bytes, hard)
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))
        except (ImportError, AttributeError, OSError, ValueError) as error:
            raise wrong_option(
                "memory_limit_bytes", f"not possible on this system ({error})", most_bytes
            ) from None
        self._soft, self._hard = most_bytes, hard

    def lend(self, work: Callable[[], _T]) -> _T:
        """Do what must succeed although the limit is reached: the data is still referred to."""
        if not self._soft:
            return work()
        import resource  # noqa: PLC0415  there since `limit`

        before = resource.getrlimit(resource.RLIMIT_AS)
        if before != (self._soft, self._hard):  # user code has set its own
            return work()
        more = self._soft + ROOM_BYTES
        if self._hard != resource.RLIM_INFINITY:
            more = min(more, self._hard)
        resource.setrlimit(resource.RLIMIT_AS, (more, self._hard))
        try:
            return work()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _address_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  pathlib is not on the start path
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        return 0
