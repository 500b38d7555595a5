"""The status of a server: the map in a heartbeat and in a pong. Changes no other state.

Reads without the reader lock, so the counts may be of two neighbouring moments.
"""

from __future__ import annotations

import os
from time import monotonic

from port_server.etf import Atom
from port_server.runtime.api import take_dropped_callbacks

from .memory import statm_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from port_server.protocol.requests import Request

    from .core import Core
    from .executors import Executors


class Health:
    """Counts and clocks of one server.

    Attributes:
        seen: the request that was running in main at the last look, or None.
        seen_at: the time since which it was seen.
    """

    def __init__(self, core: Core, executors: Executors) -> None:
        self._code = core.code
        self._executors = executors
        self._scheduler = core.scheduler
        self._sequence = 0
        self._shared = core.shared
        self._thread = core.thread
        self._started = self.seen_at = monotonic()
        self.seen: Request | None = None

    @property
    def requests(self) -> int:
        """How many requests main and threads have begun."""
        return self._executors.main.requests + self._executors.threads.requests

    def look(self, now: float) -> None:
        """Note which request runs. Called at every tick, so its start is known to within 5 ms."""
        running = self._thread.running
        if running is not self.seen:
            self.seen = running
            self.seen_at = now

    def beat(self) -> dict[str, Any]:
        """Count a heartbeat, and give its map."""
        self._sequence += 1
        status = self.status()
        dropped = take_dropped_callbacks()
        if dropped:
            status["dropped"] = dropped
        return status

    def status(self) -> dict[str, Any]:
        now = monotonic()
        self.look(now)
        running = self.seen
        scheduler = self._scheduler
        status = {
            "sequence": self._sequence,
            "monotonic_ms": int(now * 1000),
            "uptime_ms": int((now - self._started) * 1000),
            "os_pid": os.getpid(),
            "state": Atom("idle"),
            "running": None if running is None else running.id_term[5:],
            "running_ms": 0 if running is None else int((now - self.seen_at) * 1000),
            "queue": len(scheduler.queue) + len(scheduler.for_threads) + scheduler.waiting,
            "rss_bytes": statm_bytes(1),
            "requests": self.requests,
            "objects": len(self._code.objects),
            "sessions": self._code.namespaces.sessions,
            "tasks": self._executors.loop.busy + self._executors.threads.busy,
            "calls": len(scheduler.calls),
            "streams": len(scheduler.streams),
        }
        status.update(self._shared.status)
        common_type = self._code.objects.common_type()
        if common_type is not None:
            status["type"] = common_type
        if running is not None or status["queue"] or status["tasks"]:
            status["state"] = Atom("busy")
        return status
