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
from port_server.runtime.beam import Cancelled
from port_server.runtime.objects import Exports
from port_server.runtime.output import request_of

from .control import start_thread
from .jobs import code_of
from .streams import SLICE_S

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
        ident: of the loop's thread, 0 before there is one.
        init_task: the one that awaits init_code, while it does.
        jobs: what is under way, by id term.
        loop: the loop; there is one once `ident` is set.
        noting: whether requests are noted for `lasting`.
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
        "_new",
        "_output",
        "_seen",
        "_tasks",
        "counted",
        "ended",
        "ident",
        "init_task",
        "jobs",
        "loop",
        "noting",
        "resend_s",
    )

    counted: Callable[[], None]
    ended: Callable[[Job], None]
    loop: asyncio.AbstractEventLoop

    def __init__(
        self, channel: Channel, evaluator: Evaluator, output: Output, settings: Settings
    ) -> None:
        self.ident = 0
        self.init_task: asyncio.Task[None] | None = None
        self.jobs: dict[bytes, Job] = {}
        self.resend_s = settings.cancel_resend_ms / 1000
        self._asked = 0.0  # when a cancel was handed to the loop that it has not seen yet
        self.noting = False
        self._asyncio: Any = None
        self._cancelling: set[bytes] = set()
        self._channel = channel
        self._credits: dict[bytes, _Credit] = {}
        self._evaluating: bytes | None = None
        self._evaluator = evaluator
        self._exports = Exports(evaluator.objects)
        self._flushing = False
        self._making = allocate_lock()
        # Requests that `lasting` has not given yet: from before and since it was called last.
        self._new: list[bytes] = []
        self._seen: list[bytes] = []
        self._output = output
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

    def credit(self, id_term: bytes, count: int) -> bool:
        """Let a stream send more; tell whether it is under way here."""
        if id_term not in self.jobs:
            return False
        self.loop.call_soon_threadsafe(self._grant, id_term, count)
        return True

    @property
    def has_new(self) -> bool:
        """Whether there are requests that `lasting` has not given yet."""
        return bool(self._new or self._seen)

    def lasting(self) -> list[bytes]:
        """Give the requests that were under way when this was called last, each once.

        For the control thread. Not by a timer of the loop, which costs each turn of it 1 us.
        """
        older, self._seen, self._new = self._seen, self._new, []
        return [id_term for id_term in older if id_term in self.jobs]

    def cancel_all(self) -> None:
        """Cancel whatever is under way: the server is leaving."""
        for id_term in list(self.jobs):
            self.cancel(id_term)

    def cancel_parked(self) -> None:
        """Cancel the streams that wait for credit: none is going to come."""
        for id_term, credit in list(self._credits.items()):
            if credit.sent >= credit.granted:
                self.cancel(id_term)

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
            while not self.loop.is_closed():
                try:  # noqa: SIM105  contextlib is an import
                    self.loop.run_forever()
                except BaseException:  # noqa: S110
                    pass

        start_thread(run)
        running.acquire()

    # --- in the loop's thread ---------------------------------------------------------------------

    def _evaluate(self, job: Job) -> None:
        if job.cancelled:
            self._finish(job, [_cancelled(job, begun=False)])
            return
        context = self._evaluator.context_of(job)
        context.run(self.enter, job.id_term)
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
        if self.noting:
            self._new.append(job.id_term)
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
        credit = self._credits[job.id_term] = _Credit(self._asyncio.Event(), job.credit)
        items: Any = None
        try:
            if hasattr(type(value), "__await__"):
                value = await value
            items = aiter(value) if hasattr(type(value), "__aiter__") else _Plain(value)
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
            result = items.result if type(items) is _Plain else None
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
            error = Cancelled("cancelled").with_traceback(error.__traceback__)
        return self._evaluator.failed(
            error, step, job.id_term, self._exports, cancelled=job.cancelled
        )

    def _cancel(self, id_term: bytes) -> None:
        self._asked = 0.0
        if id_term in self._tasks and id_term not in self._cancelling:
            self._cancelling.add(id_term)
            # Not at once: cancelled before its first step it would never begin, so never end.
            self.loop.call_soon(self._cancel_again, id_term)

    def _cancel_again(self, id_term: bytes) -> None:
        task = self._tasks.get(id_term)
        if task is not None:
            task.cancel()
            # It may swallow that, as code in main may.
            self.loop.call_later(self.resend_s, self._cancel_again, id_term)

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


class _Credit:
    __slots__ = ("granted", "more", "sent")

    def __init__(self, more: asyncio.Event, granted: int) -> None:
        self.more = more
        self.granted = granted
        self.sent = 0


class _Plain:
    """A plain iterable, as what an awaitable gave, read as an async one."""

    __slots__ = ("_items", "result")

    def __init__(self, value: Any) -> None:
        self._items = iter(value)
        self.result: Any = None

    async def __anext__(self) -> Any:
        try:
            return next(self._items)
        except StopIteration as stop:
            self.result = stop.value
        raise StopAsyncIteration

    async def aclose(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None and hasattr(self._items, "send"):
            close()


def _cancelled(job: Job, *, begun: bool) -> bytes:
    message = "cancelled" if begun else "cancelled before it began"
    return messages.error(job.id_term, failure.describe("cancelled", "", message, begun=begun))
