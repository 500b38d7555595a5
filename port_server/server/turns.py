"""Requests of one session run one at a time, across lanes; one made from within another may enter.

Changed by whoever holds the baton.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from .jobs import Job


class Turns:
    """Whose turn it is, by session; and the special requests that are under way.

    Attributes:
        ended: jobs that ended in other threads, for `attend`.
        held: the jobs that wait, by session.
        jobs: the special requests under way, by id term.
        maker_of: tells which request made a call into the BEAM, by the call's id.
        resume: takes jobs whose turn it is now, each with the time at which it arrived.
    """

    __slots__ = ("_keep_context", "_taken", "ended", "held", "jobs", "maker_of", "resume")

    maker_of: Callable[[bytes], bytes | None]
    resume: Callable[[list[tuple[Job, float]]], None]

    def __init__(self, keep_context: Callable[[bytes, Context], None]) -> None:
        """Begin; `keep_context` takes the context of a session's request that has ended."""
        self._keep_context = keep_context
        self.ended: deque[Job] = deque()
        self.jobs: dict[bytes, Job] = {}
        self._taken: dict[bytes, list[Job]] = {}
        self.held: dict[bytes, deque[tuple[Job, float]]] = {}

    @property
    def waiting(self) -> int:
        """How many jobs wait for their session."""
        return sum(map(len, self.held.values())) if self.held else 0

    def begin(self, job: Job) -> bool:
        """Begin a job if its session is free; else keep it until it is, and say False."""
        session = job.session
        if session is not None:
            holders = self._taken.get(session)
            if holders and not self._within(job, holders[0]):
                arrived = monotonic() - job.waited_ms / 1000
                self.held.setdefault(session, deque()).append((job, arrived))
                return False
            if holders and holders[-1].context is not None:
                # A context can be entered once. So this one sees the variables of the request that
                # it was made from, and what it sets is its own.
                job.context = holders[-1].context.copy()
            self._taken.setdefault(session, []).append(job)
        self.jobs[job.id_term] = job
        return True

    def end(self, job: Job) -> None:
        """End a job; hand on what waited for its session."""
        self.jobs.pop(job.id_term, None)
        session = job.session
        if session is None:
            return
        holders = self._taken.get(session, [])
        if job in holders:
            holders.remove(job)
        if not holders:
            self._taken.pop(session, None)
            if job.context is not None:
                self._keep_context(session, job.context)
            waiting = self.held.pop(session, None)
            if waiting:
                self.resume(list(waiting))

    def drop(self, id_term: bytes) -> bool:
        """Forget a job that waits, and tell whether there was one."""
        for session, waiting in self.held.items():
            for entry in waiting:
                if entry[0].id_term == id_term:
                    waiting.remove(entry)
                    if not waiting:
                        del self.held[session]
                    return True
        return False

    def attend(self) -> None:
        """End what has ended in other threads."""
        while self.ended:
            self.end(self.ended.popleft())

    def _within(self, job: Job, holder: Job) -> bool:
        """Tell whether `job` was made from within `holder`, directly or not."""
        parent = job.parent
        for _ in range(1000):
            if parent is None:
                return False
            maker = self.maker_of(parent)
            if maker is None:
                return False
            if maker == holder.id_term:
                return True
            above = self.jobs.get(maker)
            parent = None if above is None else above.parent
        return False
