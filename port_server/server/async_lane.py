"""The async lane: one asyncio loop in a thread of its own, many requests at once.

What needs no await never costs anything: asyncio (43 ms, 11 MiB) is imported and the thread made
by the first request that does. Replies of one turn of the loop leave in one write.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.messages import YIELD_HEAD
from port_server.runtime import failure
from port_server.runtime.beam import Cancelled, Ended
from port_server.runtime.objects import Exports
from port_server.runtime.output import request_of

from .control import start_thread
from .jobs import code_of
from .streams import SLICE_S, Credit, PlainItems

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from port_server.runtime.output import Output
    from port_server.settings import Settings

    from .channel import Channel, Part
    from .evaluate import Evaluator
    from .jobs import Job


class AsyncLane:
    """Runs what is to be awaited.

    Attributes:
        counted: called when the number of `jobs` has changed.
        ended: called in the loop's thread with a job that has ended.
        fresh: requests that have begun since the control thread looked; None if it does not look.
        ident: of the loop's thread, 0 before there is one.
        init_task: the one that awaits init_code, while it does.
        jobs: what is under way, by id term.
        loop: the loop; there is one once `ident` is set.
        resend_s: the time between two cancellations of a task that does not end.
    """

    __slots__ = (
        "_asked",
        "_asyncio",
        "_cancelling",
        "_channel",
        "_credits",
        "_evaluating",
        "_evaluator",
        "_exports",
        "_flushing",
        "_making",
        "_output",
        "_stopped",
        "_stopping",
        "_tasks",
        "counted",
        "ended",
        "fresh",
        "ident",
        "init_task",
        "jobs",
        "loop",
        "resend_s",
    )

    counted: Callable[[], None]
    ended: Callable[[Job], None]
    loop: asyncio.AbstractEventLoop

    def __init__(
        self, channel: Channel, evaluator: Evaluator, output: Output, settings: Settings
    ) -> None:
        self.fresh: list[bytes] | None = None
        self.ident = 0
        self.init_task: asyncio.Task[None] | None = None
        self.jobs: dict[bytes, Job] = {}
        self.resend_s = settings.cancel_resend_ms / 1000
        self._asked = 0.0  # when a cancel was handed to the loop that it has not seen yet
        self._asyncio: Any = None
        self._cancelling: set[bytes] = set()
        self._channel = channel
        self._credits: dict[bytes, Credit] = {}
        self._evaluating: bytes | None = None
        self._evaluator = evaluator
        self._exports = Exports(evaluator.objects)
        self._flushing = False
        self._making = allocate_lock()
        self._output = output
        self._stopped = allocate_lock()
        self._stopping = False
        self._tasks: dict[bytes, asyncio.Task[None]] = {}

    # --- from any thread --------------------------------------------------------------------------

    def prepare(self) -> None:
        """Have a loop; raises what importing asyncio raises."""
        if not self.ident:
            with self._making:
                if not self.ident:
                    self._make()

    def evaluate(self, job: Job) -> None:
        """Evaluate a request that is known to give something to await, in the loop's thread."""
        self._begin(job)
        self.loop.call_soon_threadsafe(self._evaluate, job)

    def drive(self, job: Job, value: Any) -> None:
        """Await `value`, or iterate it if the job is a stream, and reply."""
        try:
            self._begin(job)
        except BaseException:
            if hasattr(value, "close"):
                value.close()  # or Python would warn that it was never awaited
            raise
        self.loop.call_soon_threadsafe(self._start, job, value)

    def cancel(self, id_term: bytes) -> bool:
        """Cancel a request; tell whether it is under way here."""
        job = self.jobs.get(id_term)
        if job is None:
            return False
        job.cancelled = True
        self._asked = self._asked or monotonic()
        self.loop.call_soon_threadsafe(self._cancel, id_term)
        return True

    def blocking(self) -> dict[str, Any] | None:
        """Tell which request keeps the loop from running: a cancel waits there to be seen.

        None if the loop runs, or if what it runs belongs to no request.
        """
        if not self._asked:
            return None
        task = self._asyncio.current_task(self.loop)
        id_term = self._evaluating if task is None else request_of(task)
        job = self.jobs.get(id_term) if id_term is not None else None
        if job is None:
            return None
        return {"request": job.id_term[5:], "code": code_of(job)}

    def has_begun(self, id_term: bytes) -> bool:
        """Tell whether code of a request has run here, and it has no answer yet."""
        return id_term == self._evaluating or id_term in self._tasks

    def credit(self, id_term: bytes, count: int) -> bool:
        """Let a stream send more; tell whether it is under way here."""
        if id_term not in self.jobs:
            return False
        self.loop.call_soon_threadsafe(self._grant, id_term, count)
        return True

    def end_all(self, why: str) -> None:
        """Cancel whatever is under way: the server is leaving."""
        for id_term in list(self.jobs):
            self._end(id_term, why)

    def end_parked(self, why: str) -> None:
        """Cancel the streams that wait for credit: none is going to come."""
        for id_term, credit in list(self._credits.items()):
            if credit.sent >= credit.granted:
                self._end(id_term, why)

    def _end(self, id_term: bytes, why: str) -> None:
        job = self.jobs.get(id_term)
        if job is not None and not job.cancelled:
            job.ended = why
            self.cancel(id_term)

    def stop(self, seconds: float) -> None:
        """End the loop's thread, if it ends in that time: nothing runs there any more.

        A loop that goes on while the interpreter is torn down crashes with it (uvloop's timers do).
        """
        if self.ident:
            self._stopping = True
            try:
                self.loop.call_soon_threadsafe(self.loop.stop)
            except RuntimeError:  # user code has closed it
                return
            self._stopped.acquire(timeout=seconds)

    def enter(self, id_term: bytes) -> None:
        """Let this context be that request's."""
        self._output.enter(id_term)

    def leave(self, id_term: bytes) -> None:
        """Note that the request has ended."""
        self._output.end(id_term)

    def current(self) -> bytes | None:
        """Give the request that the context belongs to; threads inherit that."""
        printed = self._output.current()
        return None if printed is None else printed.id_term

    def check_not_init(self) -> None:
        """Raise in init_code, which would wait for an answer that comes after it only."""
        if self.init_task is not None and self._asyncio.current_task() is self.init_task:
            raise RuntimeError(
                "init_code cannot wait for a call into the BEAM: answers are read once it has "
                "ended. Make the call in a request, or in a task that init_code does not await"
            )

    def after_fork(self) -> None:
        """Let a child that was forked in the loop's thread end where it would wait in the loop."""
        if get_ident() == self.ident:
            self.loop.call_soon(self._evaluator.leave_if_forked)

    def _begin(self, job: Job) -> None:
        self.prepare()
        job.elsewhere = True
        self.jobs[job.id_term] = job
        self.counted()

    def _make(self) -> None:
        import asyncio  # noqa: PLC0415  see the top

        self._asyncio = asyncio
        try:
            import uvloop  # noqa: PLC0415  an option
        except ImportError:
            self.loop = asyncio.new_event_loop()
        else:
            self.loop = uvloop.new_event_loop()
        running = allocate_lock()
        running.acquire()

        def run() -> None:
            self.ident = get_ident()
            asyncio.set_event_loop(self.loop)
            self.loop.call_soon(running.release)
            # It returns for a `stop()` of user code, and lets out SystemExit and KeyboardInterrupt
            # of a task of user code, which whoever awaits that task gets all the same.
            while not (self._stopping or self.loop.is_closed()):
                try:  # noqa: SIM105  contextlib is an import
                    self.loop.run_forever()
                except BaseException:  # noqa: S110
                    pass
            self._stopped.release()

        self._stopped.acquire()
        start_thread(run)
        running.acquire()

    # --- in the loop's thread ---------------------------------------------------------------------

    def _evaluate(self, job: Job) -> None:
        if job.cancelled:
            self._finish(job, [_never_begun(job)])
            return
        context = self._evaluator.context_of(job)
        context.run(self.enter, job.id_term)
        # Until there is something to await, what goes wrong is answered here.
        job.elsewhere = False
        self._evaluating = job.id_term
        parts = context.run(
            self._evaluator.evaluate,
            job.frame,
            job.kind,
            job.id_term,
            job.at,
            job,
            self._exports,
        )
        self._evaluating = None
        if parts is not None:
            self._finish(job, parts)

    def _start(self, job: Job, value: Any) -> None:
        context = self._evaluator.context_of(job)
        context.run(self.enter, job.id_term)
        drive = self._drive_stream if job.stream else self._drive
        task = self.loop.create_task(drive(job, value), context=context)
        self._tasks[job.id_term] = task
        if self.fresh is not None:
            self.fresh.append(job.id_term)
        if job.cancelled:
            self._cancel(job.id_term)

    async def _drive(self, job: Job, value: Any) -> None:
        step = "run"
        try:
            value = await value
            step = "result"
            parts = self._evaluator.reply(job.id_term, value, job, self._exports)
        except BaseException as error:
            parts = self._failed(job, error, step)
        value = job.namespace = None
        self._finish(job, parts)

    async def _drive_stream(self, job: Job, value: Any) -> None:
        step = "run"
        credit = self._credits[job.id_term] = Credit(self._asyncio.Event(), job.credit)
        items: Any = None
        try:
            if hasattr(type(value), "__await__"):
                value = await value
            items = aiter(value) if hasattr(type(value), "__aiter__") else PlainItems(value)
            turn_ends = monotonic() + SLICE_S
            while True:
                while credit.sent >= credit.granted:
                    credit.more.clear()
                    await credit.more.wait()
                step = "run"
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                step = "result"
                self._hold(self._evaluator.reply(job.id_term, item, job, self._exports, YIELD_HEAD))
                credit.sent += 1
                if monotonic() > turn_ends:  # an iterator need not wait for anything, ever
                    step = "run"
                    await self._asyncio.sleep(0)
                    turn_ends = monotonic() + SLICE_S
            result = items.result if type(items) is PlainItems else None
            parts = self._evaluator.reply(job.id_term, result, job, self._exports)
        except BaseException as error:
            try:
                close = getattr(items, "aclose", None)
                if close is not None:
                    await close()
            except BaseException as second:
                second.__context__ = error
                error = second
            parts = self._failed(job, error, step)
        value = items = None
        self._finish(job, parts)

    def _failed(self, job: Job, error: BaseException, step: str) -> list[Part]:
        if job.cancelled and isinstance(error, self._asyncio.CancelledError):
            told = Ended(job.ended) if job.ended else Cancelled("cancelled")
            error = told.with_traceback(error.__traceback__)
        return self._evaluator.failed(error, step, job.id_term, self._exports, job)

    def _cancel(self, id_term: bytes) -> None:
        self._asked = 0.0
        task = self._tasks.get(id_term)
        if task is not None and id_term not in self._cancelling:
            self._cancelling.add(id_term)
            # Not at once: cancelled before its first step it would never begin, so never end.
            self.loop.call_soon(self._cancel_again, id_term, task)

    def _cancel_again(self, id_term: bytes, task: asyncio.Task[None]) -> None:
        # A client may have used the id for two, one of which has ended.
        if self._tasks.get(id_term) is task:
            task.cancel()
            # It may swallow that, as code in main may.
            self.loop.call_later(self.resend_s, self._cancel_again, id_term, task)

    def _grant(self, id_term: bytes, count: int) -> None:
        credit = self._credits.get(id_term)
        if credit is not None:
            credit.granted += count
            credit.more.set()
            return
        job = self.jobs.get(id_term)
        if job is not None:  # its stream has not begun
            job.credit += count

    def _finish(self, job: Job, parts: list[Part]) -> None:
        self._evaluator.leave_if_forked()
        self._tasks.pop(job.id_term, None)
        self._cancelling.discard(job.id_term)
        self._credits.pop(job.id_term, None)
        self._output.end(job.id_term)
        try:
            self._hold(parts)
        finally:
            # A large reply takes long to write; not counted meanwhile, it would seem never begun.
            self.jobs.pop(job.id_term, None)
            self.counted()
            self.ended(job)

    def _hold(self, parts: list[Part]) -> None:
        self._channel.hold(parts)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._channel.write_out()


def _never_begun(job: Job) -> bytes:
    kind = "exited" if job.ended else "cancelled"
    message = job.ended or "cancelled before it began"
    return messages.error(job.id_term, failure.describe(kind, "", message, begun=False))
