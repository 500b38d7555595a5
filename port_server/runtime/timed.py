"""Whether code is quick, judged by how long it took: replies of others wait for quick code only."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Quick runs after which code that was slow counts as quick again. One is not enough, because code
# may be slow every other time; for ever is too long, because any code is slow when the machine is.
_PROBATION: Final = 16


class Timed:
    """Code that is timed.

    Attributes:
        suspect: how many quick runs it takes until it counts as quick; 0 if it does.
    """

    __slots__ = ("suspect",)

    def __init__(self) -> None:
        self.suspect = 1

    def time(self, quick: bool) -> None:
        """Note how the last run went."""
        if not quick:
            self.suspect = _PROBATION
        elif self.suspect:
            self.suspect -= 1
