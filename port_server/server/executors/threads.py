"""Requests in threads of their own, as many at once as `threads` says.

The main thread only reads the port then. Requests wait in `scheduler.for_threads`, and a thread
that is free takes the next. A request that was made from within a call into the BEAM runs on top of
that call, in the thread that waits for it, also where `threads` is 0.

A cancel is an exception that is raised in the thread, see `strike`. A request also ends at its next
print, log record, call into the BEAM or stream item: without the C extension on Python 3.11 only
there.
"""

from __future__ import annotations

from _functools import partial  # type: ignore[import-not-found]  # functools costs 2 ms
from _queue import SimpleQueue
from _thread import allocate_lock, get_ident
from itertools import count
from time import monotonic

from port_server.server.cancel import worst_place
from port_server.server.streams import Stream
from port_server.server.strike import Strikes, guarded
from port_server.server.threads import release, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from port_server.protocol.requests import Request
    from port_server.server.calls import Call
    from port_server.server.core import Core
    from port_server.server.evaluate import Evaluator
    from port_server.server.replies import Reply

    from .asyncio import AsyncExecutor

# Delay until a thread that cannot be struck now is looked at again.
_LOOK_S: Final = 0.005
_NEVER: Final = float("inf")


class ThreadExecutor:
    """Runs requests in threads.

    Attributes:
        limit: how many run at once; 0 where the main thread runs requests.
        requests: how many were begun.
        taking: held while a request goes from the queue to a thread, so that a cancel finds it in
            one of the two.
    """

    def __init__(self, core: Core, async_executor: AsyncExecutor) -> None:
        self._async = async_executor
        # Requests to be struck: when they were cancelled, and when the next try is due.
        self._cancelled: dict[Request, tuple[float, float]] = {}
        self._core = core
        self._idle = 0
        self._lock = core.lock
        self._output = core.output
        self._resend_s = core.settings.cancel_resend_ms / 1000
        self._scheduler = core.scheduler
        # By ident of a thread: the requests that run there, each on top of the one before it.
        self._stacks: dict[int, list[Request]] = {}
        self._strikes = Strikes(core.guard)
        self._threads = 0  # without those that wait for the consumer of a stream
        self._tokens: Any = SimpleQueue()  # one for each request in the queue
        self._workers: set[int] = set()
        self._count = count(1)
        self.limit = core.settings.threads
        self.requests = 0
        self.taking = allocate_lock()

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return sum(one.executor is self for one in tuple(self._scheduler.elsewhere.values()))

    @property
    def here(self) -> list[Request]:
        """The requests that run in the calling thread, each on top of the one before it."""
        return self._stacks.get(get_ident(), [])

    @property
    def between(self) -> bool:
        """Whether the calling thread takes requests from the queue, and runs none just now."""
        return get_ident() in self._workers and not self.here

    # --- for the holder of the reader lock --------------------------------------------------------

    def run(self, request: Request) -> None:
        """Run a request as soon as a thread is free."""
        request.arrived = request.arrived or monotonic()
        with self.taking:
            self._scheduler.for_threads.append(request)
        self._tokens.put(None)
        try:
            self._add_thread()
        except RuntimeError as error:  # there is no thread, and none can be started
            with self.taking:
                self._scheduler.for_threads.remove(request)
            self._finish(request, self._core.evaluator.failed(error, request))

    def cancel(self, request: Request) -> None:
        """Stop a request that a thread has begun."""
        request.cancelled = True
        streaming = request.stream is not None
        self.go_on(request)
        if not (streaming or request.ended):
            self._output.mute(request.id_term)
        # A stream that waits for credit ends by itself, and its `finally` takes its time.
        if not streaming or request in self._stacks.get(request.thread, ()):
            since = now = monotonic()
            if streaming:  # it may be at its `finally` already, or a moment before it
                since += self._resend_s
            self._output.stop(request.thread, since)
            self._cancelled[request] = now, since
            self._lock.wake()

    def above(self, request: Request) -> list[Request]:
        """Give a request and those that run on top of it in its thread."""
        stack = tuple(self._stacks.get(request.thread, ()))
        return list(stack[stack.index(request) :]) if request in stack else [request]

    def go_on(self, request: Request) -> None:
        """Let a stream go on: it has more credit."""
        stream = request.stream
        if stream is not None:
            release(stream.wake)

    # --- for the control thread -------------------------------------------------------------------

    def tick(self) -> float:
        """Strike cancelled requests that still run; give the seconds until the next time."""
        wait_s, now = _NEVER, monotonic()
        for request, (since, due) in tuple(self._cancelled.items()):
            if request.ended or request.executor is not self:
                self._cancelled.pop(request, None)
                self._strikes.forget(request.thread)
                if not request.ended:  # the loop has taken over meanwhile
                    request.executor.cancel(request)
                continue
            left_s = max(due, request.closing + self._resend_s) - now
            if left_s <= 0:
                stack = self._stacks.get(request.thread, [])
                worst = worst_place((now - since) / self._resend_s)
                struck = self._strikes.strike(request, stack, worst)
                left_s = self._resend_s if struck else _LOOK_S
                self._cancelled[request] = since, now + left_s
            wait_s = min(wait_s, left_s)
        self._strikes.settle()
        return wait_s

    # --- threads ----------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        """Start a thread, if a request waits, no thread is idle, and there may be another one."""
        with self.taking:
            if self._idle >= len(self._scheduler.for_threads) or self._threads >= self.limit:
                return
            self._threads += 1
            self._idle += 1
        try:
            start_thread(self._work)
        except RuntimeError:
            with self.taking:
                self._threads -= 1
                self._idle -= 1
                if self._threads:  # these take it, later
                    return
            raise

    def _work(self) -> None:
        """Take requests from the queue, one after another."""
        evaluator = self._core.evaluator.for_thread()
        queue = self._scheduler.for_threads
        self._workers.add(get_ident())
        while True:
            self._tokens.get()
            with self.taking:
                if not queue:  # its request was cancelled
                    continue
                request = queue.popleft()
                self._idle -= 1
                self._register(request)
            self._lock.nudge(False)  # main may wait for room
            self._run(request, evaluator)
            del request  # and its frame
            with self.taking:
                if self._threads > self.limit:  # a stream has gone on meanwhile
                    self._threads -= 1
                    self._workers.discard(get_ident())
                    return
                self._idle += 1

    def _register(self, request: Request) -> None:
        request.thread = get_ident()
        self.requests = next(self._count)
        self._core.begin_elsewhere(request, self)

    def run_on_top(self, call: Call) -> None:
        """Run the requests of a call in the calling thread, which waits for that call."""
        while call.queue:
            request = call.queue[0]
            self._register(request)  # first, so that a cancel finds it in one of the two
            try:
                call.queue.remove(request)
            except ValueError:  # it was cancelled just now
                self._scheduler.elsewhere.pop(request.id_term, None)
                continue
            self._run(request, self._core.evaluator.for_thread())

    def _run(self, request: Request, evaluator: Evaluator) -> None:
        self._scheduler.note(request)
        if self._lock.parked:
            self._lock.wake()
        context = self._core.enter(request)
        context.run(self._output.enter, request.id_term)
        stack = self._stacks.setdefault(request.thread, [])
        self._core.page.occupy(len(self._stacks))
        reply: Reply | None
        try:
            if request.cancelled:
                reply = evaluator.replies.never_begun(request)
            else:
                reply = guarded(stack, request, context.run, evaluator.evaluate, request)
            evaluator.replies.leave_if_forked()
            if reply is None and request.awaits:
                self._output.flush_of(request.id_term)
                self._async.drive(request)
            elif reply is None and stack:
                # It must not keep the request below until its consumer has read all.
                start_thread(partial(self._stream_alone, request))
            elif reply is None:
                reply = self._iterate(request, evaluator)
        except BaseException as error:  # of a cancel, while a failure was described; no loop
            reply = evaluator.interrupted(error, request)
        self._leave(request, reply)

    def _leave(self, request: Request, reply: Reply | None) -> None:
        """Note that the calling thread is done with a request, or will be without a reply."""
        ident = get_ident()
        self._output.stopping.pop(ident, None)
        if not self._stacks.get(ident):
            self._stacks.pop(ident, None)
            self._core.page.occupy(len(self._stacks))
        if reply is not None:
            self._finish(request, reply)

    def _finish(self, request: Request, reply: Reply) -> None:
        if not self._stacks:  # else code that runs may have redirected them
            self._core.stdio.repair()
        self._core.finish(request, reply)
        self._core.port.flush()

    def _stream_alone(self, request: Request) -> None:
        """Send a stream in a thread of its own: it was made from within a call."""
        request.thread = get_ident()
        evaluator = self._core.evaluator.for_thread()
        try:
            reply = self._iterate(request, evaluator, counted=False)
        except BaseException as error:
            reply = evaluator.interrupted(error, request)
        self._leave(request, reply)

    def _iterate(self, request: Request, evaluator: Evaluator, *, counted: bool = True) -> Reply:
        """Send the items of a stream, and give its last reply."""
        wake = allocate_lock()
        wake.acquire()
        stream = request.stream = Stream(request, wake)
        stack = self._stacks.setdefault(request.thread, [])
        run, port = request.context.run, self._core.port
        reply: Reply | None = None
        while reply is None:
            if request.can_go_on:
                reply = guarded(stack, request, run, stream.advance, port, evaluator)
                evaluator.replies.leave_if_forked()
                port.flush()
            elif counted:
                self._park(wake)
            else:
                wake.acquire()
        return reply

    def _park(self, wake: Any) -> None:
        """Wait for the consumer of a stream; another thread may take requests meanwhile."""
        with self.taking:
            self._threads -= 1
        try:
            self._add_thread()
            wake.acquire()
        finally:
            with self.taking:
                self._threads += 1
