"""Requests in the main thread, one after another, or one on top of another that waits.

Only in the main thread can a signal stop code at once, and some libraries (matplotlib) work only
there. The main thread reads the port as well, so a request costs no hand-off. It holds the reader
lock except while user code runs: `run` lets go of it before, and takes it back after. An exception
of a signal is raised inside of `Evaluator.evaluate`, never here: see `signal_guard`.
"""

from __future__ import annotations

import sys

from port_server.server.status_page import LENGTH_AT, USUAL_AT, USUAL_TERM_BYTES
from port_server.server.streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from port_server.protocol.requests import Request
    from port_server.runtime.objects import Aside
    from port_server.server.core import Core
    from port_server.server.replies import Reply

    from .asyncio import AsyncExecutor


class MainExecutor:
    """Runs requests and streams in the main thread.

    Attributes:
        requests: how many it has begun.
    """

    def __init__(self, core: Core, async_executor: AsyncExecutor) -> None:
        self._async = async_executor
        self._core = core
        self._thread = core.thread
        self.requests = 0
        # Each of these once, not once a request.
        self._cancels = core.cancels
        self._evaluate = core.evaluator.evaluate
        self._lock = core.lock
        self._namespaces = core.code.namespaces
        self._objects = core.code.objects
        self._output = core.output
        self._page = core.page
        self._port = core.port
        self._stderr = core.stderr
        self._stdio = core.stdio

    def run(self, request: Request) -> None:
        """Run a request with the reader lock let go, and write its reply."""
        lock, page, stack = self._lock, self._page.map, self._thread.stack
        free, id_term, name = lock.free, request.id_term, request.options.session
        stack.append(request)
        self.requests += 1
        if page is not None:
            if len(id_term) == USUAL_TERM_BYTES:
                page[USUAL_AT] = id_term
            else:
                self._page.show(id_term)
        namespaces = self._namespaces
        session = None if name is None else namespaces.find(name)
        context = namespaces.new_context() if session is None else session.enter(request)
        free.append(None)
        if lock.parked:
            lock.wake()
        try:
            try:
                # -- user code is entered: decode, run, encode and drop may call it --------------
                reply = context.run(self._evaluate, request)
            except BaseException as error:  # raised by a signal, while a failure was described
                reply = self._core.evaluator.interrupted(error, request)
            ended = request.ended = reply is not None  # later prints belong to no request
            if self._output.requests or self._objects.dropped or self._port.forked:
                self._leave(request, ended=ended)
            stdio = self._stdio
            if self._stderr.used or request.step != "code":
                self._stderr.report(request)
            try:  # as `stdio.repair()`: the call of it, and of the above, takes 2 % of a request
                whole = sys.stdout is stdio.stdout and sys.stderr is stdio.stderr
                if not (whole and sys.stdin is stdio.stdin):
                    stdio.install()
            except AttributeError:  # `del sys.stdout`
                stdio.install()
        finally:
            try:
                free.pop()
            except IndexError:
                lock.wait()
        if reply is None:
            request.context = context
            reply = self._hand_on(request)
        if reply is not None:
            self._port.send(reply)
        else:
            self._port.flush()  # what the control thread has answered meanwhile
        if session is not None and reply is not None:
            session.leave(request)
        if self._cancels.alert:
            self._cancels.settle(request, ended=reply is not None)
        stack.pop()
        if page is not None:
            page[LENGTH_AT] = 0

    def advance(self, stream: Stream) -> None:
        """Let a stream go on for a slice, with the reader lock let go."""
        request = stream.request
        core, evaluator = self._core, self._core.evaluator
        self._thread.stack.append(request)
        self._page.show(request.id_term)
        self._lock.let_go()
        try:
            try:
                reply = request.context.run(stream.advance, self._port, evaluator)
            except BaseException as error:  # raised by a signal, while a failure was described
                reply = evaluator.interrupted(error, request)
            ended = request.ended = reply is not None
            self._leave(request, ended=ended)
            self._stdio.repair()
        finally:
            self._lock.take_back()
        stream.ready = False
        if reply is not None:
            del core.scheduler.streams[request.id_term]
            core.finish(request, reply)
        self._port.flush()
        if self._cancels.alert:
            self._cancels.settle(request, ended=reply is not None)
        self._thread.stack.pop()
        self.show_below()

    def cancel(self, request: Request) -> None:
        """Stop a request that runs or waits below the one that does, or a stream."""
        if self._thread.find(request.id_term) is request:
            self._cancels.add(request)
            if request.stream is None:
                self._output.mute(request.id_term)
        if request.stream is not None:
            request.cancelled = True
            self.go_on(request)

    def go_on(self, request: Request) -> None:
        """Let a stream go on: it has more credit."""
        self._core.scheduler.make_ready(request.stream)

    # --- a call into the BEAM ---------------------------------------------------------------------

    def pause(self) -> Aside:
        """Wait in the midst of a request: others may run on top. Give what `resume` needs."""
        stack = self._thread.stack
        request = stack[-1]
        assert request is not None
        stack.append(None)
        if self._output.requests:
            self._output.flush_of(request.id_term)
        # It may wait while it is encoded, and the requests on top have their own objects.
        return self._core.evaluator.exports.put_aside()

    def resume(self, aside: Aside) -> None:
        """Go on with the request that `pause` left."""
        self._core.evaluator.exports.put_back(aside)
        self._thread.stack.pop()

    def show_below(self) -> None:
        """Show the request below, which main goes on with, if there is one."""
        try:
            below = self._thread.stack[-2]
        except IndexError:
            self._page.clear()
        else:
            assert below is not None
            self._page.show(below.id_term)

    # --- leaving user code ------------------------------------------------------------------------

    def _leave(self, request: Request, *, ended: bool) -> None:
        """Hand on the output of user code, and drop what was released while it ran."""
        if self._output.requests:
            if ended:
                self._output.end(request.id_term)
            else:
                self._output.flush_of(request.id_term)
        if self._objects.dropped:
            self._objects.drop()
        # -- user code is left -------------------------------------------------------------------
        self._core.replies.leave_if_forked()

    def _hand_on(self, request: Request) -> Reply | None:
        """Let the loop go on with a request, or make a stream of it; a reply if that fails."""
        if request.awaits:
            try:
                self._async.drive(request)
            except Exception as error:  # a file of the name asyncio.py, no thread
                self._output.end(request.id_term)
                request.ended = True
                return self._core.evaluator.failed(error, request)
            return None
        self._core.begin_elsewhere(request, self)
        request.stream = self._core.scheduler.streams[request.id_term] = Stream(request)
        self.go_on(request)
        return None

    def recover(self, error: BaseException) -> list[Request]:
        """Go on after a stray exception, which may be raised at any place.

        The requests that were being answered get it as their error. If the reply of one was just
        written, it gets two, which a client can tell; none would cost its caller the whole timeout.
        Give these requests, for the scheduler.
        """
        requests = self._thread.recover()
        for request in requests:
            self._output.end(request.id_term)
            self._port.hold(self._core.evaluator.failed(error, request))
            if request.session is not None:
                request.session.leave(request)
        return requests
