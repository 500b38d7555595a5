"""Requests that await: one event loop in a thread of its own, many requests at once.

Asyncio (43 ms, 11 MiB) is imported, and the thread made, by the first request that awaits. Replies
of one turn of the loop leave in one write.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from time import monotonic

from port_server.protocol.messages import YIELD_HEAD
from port_server.runtime.api import Cancelled, Ended
from port_server.runtime.output import request_of
from port_server.server.streams import SLICE_S, close_generator
from port_server.server.threads import new_loop, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from port_server.protocol.requests import Request
    from port_server.server.core import Core
    from port_server.server.replies import Reply


class AsyncExecutor:
    """Runs requests whose value is awaited.

    Attributes:
        ident: of the loop's thread, 0 before there is one.
        init_task: the task that awaits init_code, while it does.
        loop: there is one once `ident` is set.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, core: Core) -> None:
        self._asked = 0.0  # when a cancel was handed to the loop that it has not seen yet
        self._asyncio: Any = None
        self._cancelling: set[Request] = set()
        self._core = core
        self._evaluating: Request | None = None
        self._evaluator = core.evaluator.for_thread()
        self._flushing = False
        self._making = allocate_lock()
        self._resend_s = core.settings.cancel_resend_ms / 1000
        self._stopped = allocate_lock()
        self._stopping = False
        # None until the value of the request is awaited.
        self._tasks: dict[Request, asyncio.Task[None] | None] = {}
        self.ident = 0
        self.init_task: asyncio.Task[None] | None = None

    # --- from any thread --------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return len(self._tasks)

    def prepare(self) -> None:
        """Have a loop; raises what importing asyncio raises."""
        if not self.ident:
            with self._making:
                if not self.ident:
                    self._make()

    def run_init(self, value: Any) -> None:
        """Await the value of init_code; raise what that raises."""
        self.prepare()

        async def drive() -> None:
            self.init_task = self._asyncio.current_task()
            try:
                await value
            finally:
                self.init_task = None

        error = self._asyncio.run_coroutine_threadsafe(drive(), self.loop).exception()
        if error is not None:
            raise error

    def check_not_init(self) -> None:
        """Raise in init_code: the answer that it would wait for is read only after it."""
        if self.init_task is not None and self._asyncio.current_task() is self.init_task:
            raise RuntimeError(
                "init_code cannot wait for a call into the BEAM: answers are read once it has "
                "ended. Make the call in a request, or in a task that init_code does not await"
            )

    def run(self, request: Request) -> None:
        """Evaluate a request that is known to give something to await, in the loop's thread."""
        self._begin(request)
        self.loop.call_soon_threadsafe(self._evaluate, request)

    def drive(self, request: Request) -> None:
        """Await what is left of a request, or iterate it if it is a stream, and reply.

        Raises what importing asyncio raises.
        """
        try:
            self._begin(request)
            self.loop.call_soon_threadsafe(self._start, request)
        except BaseException:
            self._tasks.pop(request, None)
            if hasattr(request.rest, "close"):
                request.rest.close()  # or Python would warn that it was never awaited
            raise

    def cancel(self, request: Request) -> None:
        request.cancelled = True
        self._asked = self._asked or monotonic()
        self.loop.call_soon_threadsafe(self._cancel, request)

    def blocking(self) -> dict[str, Any] | None:
        """Tell which request keeps the loop from running: a cancel waits there to be seen.

        None if the loop runs, or if what it runs belongs to no request.
        """
        if not self._asked:
            return None
        task = self._asyncio.current_task(self.loop)
        if task is None:
            request = self._evaluating
        else:
            request = self._core.scheduler.elsewhere.get(request_of(task) or b"")
        if request is None:
            return None
        return {"request": request.id_term[5:], "code": request.source}

    def go_on(self, request: Request) -> None:
        """Let a stream go on: it has more credit."""
        more = request.stream
        if more is not None:
            self.loop.call_soon_threadsafe(more.set)

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

    def after_fork(self) -> None:
        """End a child that was forked in the loop's thread as soon as it would wait in the loop."""
        if get_ident() == self.ident:
            self.loop.call_soon(self._evaluator.replies.leave_if_forked)

    def _begin(self, request: Request) -> None:
        self.prepare()
        self._tasks[request] = None
        self._core.begin_elsewhere(request, self)

    def _make(self) -> None:
        import asyncio  # noqa: PLC0415  see the top

        self._asyncio = asyncio
        self.loop = new_loop(self._core.settings.async_threads)
        running = allocate_lock()
        running.acquire()

        def run() -> None:
            self.ident = get_ident()
            asyncio.set_event_loop(self.loop)
            self.loop.call_soon(running.release)
            # It returns after a `stop()` in user code, and raises SystemExit and KeyboardInterrupt
            # of a task of user code, which the code that awaits the task receives as well.
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

    def _evaluate(self, request: Request) -> None:
        if request.cancelled:
            self._finish(request, self._evaluator.replies.never_begun(request))
            return
        context = self._core.enter(request)
        context.run(self._core.output.enter, request.id_term)
        self._evaluating = request
        request.thread = self.ident
        reply = context.run(self._evaluator.evaluate, request)
        self._evaluating = None
        if reply is None:
            self._start(request)
        else:
            self._finish(request, reply)

    def _start(self, request: Request) -> None:
        request.context.run(self._core.output.enter, request.id_term)
        request.thread = self.ident
        self._tasks[request] = self.loop.create_task(self._drive(request), context=request.context)
        self._core.scheduler.note(request)
        if request.cancelled:
            self._cancel(request)

    async def _drive(self, request: Request) -> None:
        value, request.rest = request.rest, None
        request.step = "run"
        try:
            value = await (self._iterate(request, value) if request.options.stream else value)
            request.step = "result"
            reply: Reply = self._evaluator.replies.value(request, value, self._evaluator.exports)
        except BaseException as error:
            if request.cancelled and isinstance(error, self._asyncio.CancelledError):
                told = Ended(request.why_ended) if request.why_ended else Cancelled("cancelled")
                error = told.with_traceback(error.__traceback__)
            reply = self._evaluator.failed(error, request)
        value = request.namespace = None
        self._finish(request, reply)

    async def _iterate(self, request: Request, value: Any) -> Any:
        """Send the items of a stream, and give its result."""
        more = request.stream = self._asyncio.Event()
        replies, exports = self._evaluator.replies, self._evaluator.exports
        items: Any = None
        try:
            if hasattr(type(value), "__await__"):
                value = await value
            plain = not hasattr(type(value), "__aiter__")
            items = iter(value) if plain else aiter(value)
            turn_ends = monotonic() + SLICE_S
            while True:
                while request.sent >= request.options.credit + request.granted:
                    more.clear()
                    await more.wait()
                request.step = "run"
                try:
                    item = next(items) if plain else await anext(items)
                except StopIteration as stop:
                    return stop.value
                except StopAsyncIteration:
                    return None
                request.step = "result"
                self._core.port.hold(replies.value(request, item, exports, YIELD_HEAD))
                self._flush_soon()
                request.sent += 1
                if monotonic() > turn_ends:  # an iterator may never wait for anything
                    request.step = "run"
                    await self._asyncio.sleep(0)
                    turn_ends = monotonic() + SLICE_S
        except BaseException:
            if hasattr(items, "aclose"):
                await items.aclose()
            close_generator(items)
            raise

    def _cancel(self, request: Request) -> None:
        self._asked = 0.0
        if self._tasks.get(request) is not None and request not in self._cancelling:
            self._cancelling.add(request)
            # Not at once: a task that is cancelled before its first step never begins or ends.
            self.loop.call_soon(self._cancel_again, request)

    def _cancel_again(self, request: Request) -> None:
        task = self._tasks.get(request)
        if task is not None:
            task.cancel()
            # It may swallow that, as code in main may.
            self.loop.call_later(self._resend_s, self._cancel_again, request)

    def _finish(self, request: Request, reply: Reply) -> None:
        try:
            self._core.finish(request, reply)
        finally:
            self._tasks.pop(request, None)
            self._cancelling.discard(request)
            self._flush_soon()

    def _flush_soon(self) -> None:
        """Let the replies of one turn of the loop leave in one write."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._core.port.flush()
