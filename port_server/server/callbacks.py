"""Calls of Python into the BEAM: the three ways to wait for one, the same for every executor.

Main reads the port while it waits, and runs requests made from within the call on top of it. Other
threads wait on a lock, and run such requests as well: only their stack waits for these requests, so
no deadlock is possible. Async code awaits.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident
from itertools import count
from time import monotonic

from port_server.etf import Atom, EncodeError, encode
from port_server.protocol import outgoing
from port_server.runtime.api import Cancelled, RequestEndedError
from port_server.runtime.frames import imported_by_thread

from .calls import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from port_server.protocol.requests import Request

    from .core import Core
    from .dispatcher import Dispatcher
    from .evaluate import Evaluator
    from .executors import Executors
    from .port import Part
    from .replies import Reply

# The id, as a term, of code that belongs to no request.
_NO_REQUEST: Final = b"m\0\0\0\0"
# Upper bound of the server's own frames for one level of nesting. With less room a RecursionError
# could be raised in the middle of the server's code.
_HEADROOM: Final = 80


class Callbacks:
    """The way of user code into the BEAM; `runtime.api` is connected to it.

    Attributes:
        gone: why no answer comes any more, or an empty text.
    """

    def __init__(
        self, core: Core, executors: Executors, dispatcher: Dispatcher, why: Callable[[], str]
    ) -> None:
        """Prepare; `why` tells why the input has ended."""
        self._async = executors.loop
        self._cancels = core.cancels
        self._dispatcher = dispatcher
        self._evaluator = core.evaluator
        self._lock = core.lock
        self._main = executors.main
        self._numbers = count(1)
        self._output = core.output
        self._port = core.port
        self._scheduler = core.scheduler
        self._settings = core.settings
        self._thread = core.thread
        self._threads = executors.threads
        self._why = why
        self.gone = ""

    # --- what user code reaches -------------------------------------------------------------------

    def request_id(self) -> bytes | None:
        """Give the id, as a term, of the request that the code which asks belongs to."""
        request = self._current()
        return None if request is None else request.id_term

    def invoke(self, id_term: bytes | None, function: Any, args: list[Any]) -> Any:
        """Call a function in the BEAM, and wait as the calling thread has to.

        Raises:
            ElixirError: it failed.
            EncodeError: an argument cannot be written.
            RecursionError: too many calls wait for each other.
            RequestEndedError: the request has ended.
            RuntimeError: no answer could be read here.
        """
        if self._port.forked:
            raise RuntimeError("a forked process cannot call into the BEAM: it has no port")
        request = None if id_term is None else self._scheduler.find(id_term)
        if id_term is not None and (request is None or (request.thread and request.ended)):
            raise RequestEndedError
        ident = get_ident()
        loop = _running_loop()
        if loop is not None:
            if ident == self._async.ident:
                self._async.check_not_init()
            return self._awaited(Call(next(self._numbers), request), loop, function, args)
        if ident == self._thread.ident:
            running = self._thread.running
            if running is None:
                # A __del__ or a signal handler may have interrupted a read between requests.
                raise RuntimeError("there is no request that could call into the BEAM just now")
            return self._in_main(request or running, function, args)
        if ident == self._lock.control_ident or self._threads.between:
            raise RuntimeError("the control thread of the server cannot call into the BEAM")
        return self._in_thread(request, function, args)

    def send(self, to: Any, term: Any) -> None:
        """Send a message to a process; wait while too much is on its way."""
        if self._port.forked:
            raise RuntimeError("a forked process cannot send into the BEAM")
        head = outgoing.send_head(to)
        try:
            parts: list[Part] = [encode(term, head=head)]
        except EncodeError:
            parts = self._with_objects(head, term)
        self._port.hold(parts)
        self._port.flush()
        self._output.delivered(sum(map(len, parts)))

    def progress(self, done: Any, total: Any, more: dict[str, Any]) -> None:
        """Send how far the running request is, unless that was sent a moment ago."""
        request, now = self._current(), monotonic()
        if request is None or self._port.forked:
            return
        interval_s = self._settings.progress_interval_ms / 1000
        if done != total and now - request.progressed < interval_s:
            return
        request.progressed = now
        fields = {Atom("done"): done, Atom("total"): total, **more}
        self._port.hold([outgoing.progress(request.id_term, fields)])
        self._port.flush()

    def _with_objects(self, head: bytes, term: Any) -> list[Part]:
        evaluator = self._evaluator.for_thread()
        try:
            return evaluator.replies.parts(evaluator.frame(head, term))
        except EncodeError as error:
            evaluator.exports.undo()
            raise error.at("message") from None

    def fail_all(self, why: str | None = None) -> None:
        """Let all code that waits know that no answer comes, and code that calls from now on."""
        self.gone = why or self._why()
        for call in list(self._scheduler.calls.values()):
            call.fail(RuntimeError(self.gone))

    def _current(self) -> Request | None:
        if get_ident() == self._thread.ident:
            return self._thread.running
        printed = self._output.current()
        return None if printed is None else self._scheduler.find(printed.id_term)

    # --- writing a call ---------------------------------------------------------------------------

    def _written(self, call: Call, function: Any, args: list[Any], evaluator: Evaluator) -> Reply:
        """Give the frame of a call. Runs user code: it asks arguments for their values."""
        id_term = _NO_REQUEST if call.request is None else call.request.id_term
        try:
            return evaluator.frame(outgoing.invoke_head(id_term, call.id, function), args)
        except BaseException as error:
            evaluator.exports.undo()
            if isinstance(error, EncodeError):
                raise error.at("args") from None
            raise

    def _begin(self, call: Call, function: Any, args: list[Any]) -> None:
        """Write a call from a thread other than main."""
        evaluator = self._evaluator.for_thread()
        frame = self._written(call, function, args, evaluator)
        self._scheduler.calls[call.id] = call
        if self.gone:  # looked at once the call can be seen: none is missed
            raise RuntimeError(self.gone)
        self._port.hold(evaluator.replies.parts(frame))
        self._port.flush()
        # Main may be running code, and reads only when that has ended.
        self._lock.hurry()

    # --- the three ways to wait -------------------------------------------------------------------

    def _in_main(self, request: Request, function: Any, args: list[Any]) -> Any:
        main, lock, port, cancels = self._main, self._lock, self._port, self._cancels
        if cancels.alert:
            cancels.check()
        self._check_depth(self._thread.stack.count(None))
        call = Call(next(self._numbers), request)
        aside = main.pause()
        try:
            # Main's own exports are free: `pause` has put aside what they were at.
            frame = self._written(call, function, args, self._evaluator)
            # Taken before the call is written: otherwise the control thread might read the answer.
            lock.take_back()
            try:
                self._scheduler.calls[call.id] = call
                if self.gone:
                    raise RuntimeError(self.gone)
                port.send(frame)
                while not call.over:
                    if cancels.alert:
                        cancels.check()
                    self._go_on(call)
            finally:
                self._scheduler.calls.pop(call.id, None)
                if call.queue or call.streams:
                    self._scheduler.take_over(call)
                lock.let_go()
        finally:
            main.resume(aside)
        if cancels.alert:
            cancels.check()
        return call.result(self._settings)

    def _go_on(self, call: Call) -> None:
        """Run one thing that was made from within a call of main's, or read the port once."""
        dispatcher = self._dispatcher
        if call.queue or call.streams:
            dispatcher.run_call(call)
            return
        # For the end of a request in another thread, where one waits for that.
        if not (dispatcher.wait(call=call) if self._scheduler.waiting else dispatcher.read()):
            raise RuntimeError(self.gone or self._why())
        self._port.flush()

    def _in_thread(self, request: Request | None, function: Any, args: list[Any]) -> Any:
        self._check_depth(max(0, len(self._threads.here) - 1))
        call = Call(next(self._numbers), request)
        call.lock = allocate_lock()
        call.lock.acquire()
        call.thread = get_ident()
        try:
            self._begin(call, function, args)
            while not call.over:
                self._check_cancelled(call)
                call.lock.acquire()
                self._threads.run_on_top(call)
        finally:
            self._scheduler.calls.pop(call.id, None)
            self._threads.run_on_top(call)  # came with the answer
        return call.result(self._settings)

    def _check_cancelled(self, call: Call) -> None:
        """Raise Cancelled if the request of a call in a thread, or one below it, is cancelled."""
        requests = [*self._threads.here, call.request]
        if any(one is not None and one.cancelled for one in requests) and (
            imported_by_thread(call.thread) is None
        ):
            raise Cancelled("cancelled while it waited for a call into the BEAM")

    async def _awaited(self, call: Call, loop: Any, function: Any, args: list[Any]) -> Any:
        call.future = loop.create_future()
        try:
            self._begin(call, function, args)
            await call.future
        finally:
            self._scheduler.calls.pop(call.id, None)
        return call.result(self._settings)

    def _check_depth(self, waiting: int) -> None:
        limit = self._settings.max_nested_calls
        if waiting >= limit:
            raise RecursionError(
                f"{limit} calls into the BEAM wait for each other (max_nested_calls): Python calls "
                f"Elixir, which calls Python, and so on without an end"
            )
        try:
            # A negative number gives the frame itself, which is there as well.
            sys._getframe(sys.getrecursionlimit() - _HEADROOM)  # noqa: SLF001
        except ValueError:
            return
        raise RecursionError("maximum recursion depth nearly reached in a call into the BEAM")


def _running_loop() -> Any:
    """Give the event loop that runs in this thread, if one does: the server's, or asyncio.run()."""
    find = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    return None if find is None else find()
