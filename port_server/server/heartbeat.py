"""What a server says of itself: the map in a heartbeat and in a pong. Reads, changes nothing.

Read without the baton: the counts may be of two neighbouring moments, which no reader minds.
"""

from __future__ import annotations

import os
from time import monotonic

from port_server.etf import Atom

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from .async_lane import AsyncLane
    from .baton import Baton
    from .dispatcher import Dispatcher
    from .lanes import MainLane

_IDLE: Final = Atom("idle")
_BUSY: Final = Atom("busy")


class Vitals:
    """Counts and clocks of one server.

    Attributes:
        async_lane: the one whose tasks are counted.
        seen: the request that was running in main at the last look, or None.
        seen_at: since when.
        sequence: how many heartbeats were made.
    """

    __slots__ = (
        "_baton",
        "_dispatcher",
        "_lane",
        "_started",
        "async_lane",
        "seen",
        "seen_at",
        "sequence",
    )

    def __init__(
        self, baton: Baton, lane: MainLane, async_lane: AsyncLane, dispatcher: Dispatcher
    ) -> None:
        self.sequence = 0
        self.async_lane = async_lane
        self._baton = baton
        self._lane = lane
        self._dispatcher = dispatcher
        self._started = self.seen_at = monotonic()
        self.seen: bytes | None = None

    def look(self, now: float) -> None:
        """Notice which request runs. Called at every tick, so that its begin is known to 5 ms."""
        running = self._lane.running
        if running is not self.seen:
            self.seen = running
            self.seen_at = now

    def beat(self) -> dict[str, Any]:
        """Count a heartbeat, and say what goes into it."""
        self.sequence += 1
        return self.status()

    def status(self) -> dict[str, Any]:
        """Say how the server is."""
        now = monotonic()
        self.look(now)
        running = self.seen
        dispatcher = self._dispatcher
        status = {
            "sequence": self.sequence,
            "monotonic_ms": int(now * 1000),
            "uptime_ms": int((now - self._started) * 1000),
            "os_pid": os.getpid(),
            "state": _IDLE,
            "running": None if running is None else running[5:],
            "running_ms": 0 if running is None else int((now - self.seen_at) * 1000),
            "queue": len(dispatcher.queue) + dispatcher.turns.waiting,
            "rss_bytes": _rss_bytes(),
            "requests": dispatcher.requests,
            "objects": len(self._lane.evaluator.objects),
            "sessions": self._lane.evaluator.namespaces.sessions,
            "tasks": len(self.async_lane.jobs),
            "calls": len(dispatcher.calls.pending),
            "streams": len(dispatcher.streams),
        }
        common_type = self._lane.evaluator.objects.common_type()
        if common_type is not None:
            status["type"] = common_type
        if running is not None or status["queue"] or status["tasks"]:
            status["state"] = _BUSY
        return status


def _rss_bytes() -> int:
    # Opened anew each time (10 us a second): user code may have closed every fd there is.
    try:
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not Linux
        return 0
    try:
        return int(os.read(fd, 128).split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        os.close(fd)


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
