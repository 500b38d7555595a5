"""Collects the cycles that a request leaves behind.

Functions that are defined in a namespace refer to it, so its data would stay until Python's own
collector runs. `gc.collect(1)` after such a request frees it at once and costs a microsecond. It
also resets the counters that start Python's own collection, so this module collects the oldest
generation, too.
"""

from __future__ import annotations

import gc
from sys import getallocatedblocks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Collections of the young generations between two looks at the memory, which cost 10 us to 1 ms.
_RUNS_A_LOOK: Final = 1000
# Growth of memory since the last full collection that makes the next one due: a quarter, as in
# Python's own rule, and in a small process enough blocks (of some 60 bytes) to be worth the time.
_GROWTH: Final = 1.25
_LEAST_BLOCKS: Final = 10_000


class Garbage:
    """Decides when to collect which generation."""

    __slots__ = ("_most_blocks", "_runs")

    def __init__(self) -> None:
        self._most_blocks = 0.0  # not counted yet
        self._runs = 0

    def collect(self) -> None:
        """Collect the young generations, and the oldest one if it has grown by much."""
        gc.collect(1)
        self._runs += 1
        if self._runs < _RUNS_A_LOOK:
            return
        self._runs = 0
        blocks = getallocatedblocks()
        if blocks < self._most_blocks:
            return
        if self._most_blocks:
            gc.collect()
            blocks = getallocatedblocks()
        self._most_blocks = blocks * _GROWTH + _LEAST_BLOCKS
