"""Requests in the main thread, one after another, or one on top of another that waits.

Only in the main thread can a signal stop code at once, and some libraries (matplotlib) work only
there. The main thread reads the port as well, so a request costs no hand-off. It holds the reader
lock except while user code runs: `run` lets go of it before, and takes it back after. An exception
of a signal is raised inside of `Evaluator.evaluate`, never here: see `signal_guard`.
"""

from __future__ import annotations

from port_server.server.replies import leave_child
from port_server.server.status_page import LENGTH_AT, USUAL_AT, USUAL_TERM_BYTES
from port_server.server.streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context

    from port_server.protocol.requests import Request
    from port_server.runtime.objects import Aside
    from port_server.server.cancel import Cancels
    from port_server.server.evaluate import Evaluator
    from port_server.server.main_thread import MainThread
    from port_server.server.output import Reports
    from port_server.server.port import Port
    from port_server.server.reader import ReaderLock
    from port_server.server.replies import Reply
    from port_server.server.scheduler import Scheduler
    from port_server.server.status_page import StatusPage

    from .asyncio import AsyncExecutor


class MainExecutor:
    """Runs requests and streams in the main thread.

    Attributes:
        evaluator: the main thread's own.
        requests: how many it has begun.
        thread: the state of the main thread.
    """

    def __init__(
        self,
        thread: MainThread,
        lock: ReaderLock,
        port: Port,
        evaluator: Evaluator,
        reports: Reports,
        scheduler: Scheduler,
        cancels: Cancels,
        page: StatusPage,
        async_executor: AsyncExecutor,
    ) -> None:
        self._async = async_executor
        self._cancels = cancels
        self._lock = lock
        self._output = reports.output
        self._page = page
        self._port = port
        self._scheduler = scheduler
        self._stdio = reports.stdio
        self.evaluator = evaluator
        self.requests = 0
        self.thread = thread
        self._evaluate = evaluator.evaluate  # bound once, not once a request
        self._namespaces = evaluator.code.namespaces

    def run(self, request: Request) -> None:
        """Run a request with the reader lock let go, and write its reply."""
        lock, page, stack = self._lock, self._page.map, self.thread.stack
        free, id_term, session = lock.free, request.id_term, request.options.session
        stack.append(request)
        self.requests += 1
        if page is not None:
            if len(id_term) == USUAL_TERM_BYTES:
                page[USUAL_AT] = id_term
            else:
                self._page.show(id_term)
        namespaces = self._namespaces
        context = namespaces.new_context() if session is None else namespaces.enter_context(session)
        free.append(None)
        if lock.parked:
            lock.wake()
        try:
            try:
                # -- user code is entered: decode, run, encode and drop may call it --------------
                reply = context.run(self._evaluate, request)
            except BaseException as error:  # raised by a signal, while a failure was described
                reply = self.evaluator.replies.interrupted(error, request, self.evaluator.exports)
            self._leave(request, ended=reply is not None)
        finally:
            try:
                free.pop()
            except IndexError:
                lock.wait()
        if reply is None:
            reply = self._hand_on(request, context)
        if reply is not None:
            self._port.send(reply)
        else:
            self._port.flush()  # what the control thread has answered meanwhile
        if session is not None and reply is not None:
            namespaces.leave_context(session, context)
        if self._cancels.alert:
            self._cancels.settle(request, ended=reply is not None)
        stack.pop()
        if page is not None:
            page[LENGTH_AT] = 0

    def advance(self, stream: Stream) -> None:
        """Let a stream go on for a slice, with the reader lock let go."""
        request = stream.request
        self.thread.stack.append(request)
        self._page.show(request.id_term)
        evaluator = self.evaluator
        self._lock.let_go()
        try:
            try:
                reply = stream.context.run(stream.advance, self._port, evaluator)
            except BaseException as error:  # raised by a signal, while a failure was described
                reply = evaluator.replies.interrupted(error, request, evaluator.exports)
            self._leave(request, ended=reply is not None)
        finally:
            self._lock.take_back()
        stream.ready = False
        if reply is not None:
            scheduler = self._scheduler
            del scheduler.streams[request.id_term]
            del scheduler.elsewhere[request.id_term]
            self._page.count()
            self._port.hold(evaluator.replies.parts(reply))
            evaluator.code.namespaces.leave_context(request.options.session, stream.context)
        self._port.flush()
        if self._cancels.alert:
            self._cancels.settle(request, ended=reply is not None)
        self.thread.stack.pop()
        self.show_below()

    def cancel(self, request: Request) -> None:
        """Stop a request that runs or waits below the one that does, or a stream."""
        stream = self._scheduler.streams.get(request.id_term)
        if self.thread.find(request.id_term) is request:
            self._cancels.add(request)
            if stream is None:
                self._output.mute(request.id_term)
        if stream is not None:
            request.cancelled = True
            self._scheduler.make_ready(stream)

    # --- a call into the BEAM ---------------------------------------------------------------------

    def pause(self) -> Aside:
        """Wait in the midst of a request: others may run on top. Give what `resume` needs."""
        stack = self.thread.stack
        request = stack[-1]
        assert request is not None
        stack.append(None)
        if self._output.requests:
            self._output.flush_of(request.id_term)
        # It may wait while it is encoded, and the requests on top have their own objects.
        return self.evaluator.exports.put_aside()

    def resume(self, aside: Aside) -> None:
        """Go on with the request that `pause` left."""
        self.evaluator.exports.put_back(aside)
        self.thread.stack.pop()

    def show_below(self) -> None:
        """Show the request below, which main goes on with, if there is one."""
        try:
            below = self.thread.stack[-2]
        except IndexError:
            self._page.clear()
        else:
            assert below is not None
            self._page.show(below.id_term)

    # --- leaving user code ------------------------------------------------------------------------

    def _leave(self, request: Request, *, ended: bool) -> None:
        """Clean up after user code, and hand on its output."""
        if self._output.requests:
            if ended:
                self._output.end(request.id_term)
            else:
                self._output.flush_of(request.id_term)
        request.ended = ended  # later prints belong to no request
        objects = self.evaluator.code.objects
        if objects.dropped:  # released while this ran
            objects.drop()
        # -- user code is left -------------------------------------------------------------------
        if self._port.forked:
            leave_child(None)
        self._stdio.repair()

    def _hand_on(self, request: Request, context: Context) -> Reply | None:
        """Let the loop go on with a request, or make a stream of it; a reply if that fails."""
        if request.awaits:
            try:
                self._async.drive(request, context)
            except Exception as error:  # a file of the name asyncio.py, no thread
                self._output.end(request.id_term)
                request.ended = True
                return self.evaluator.replies.failed(error, request, self.evaluator.exports)
            return None
        scheduler = self._scheduler
        request.executor = self
        scheduler.elsewhere[request.id_term] = request
        stream = scheduler.streams[request.id_term] = Stream(request, context)
        self._page.count()
        scheduler.make_ready(stream)
        return None

    def recover(self, error: BaseException) -> list[Request]:
        """Go on after a stray exception, which may be raised at any place.

        The requests that were being answered get it as their error. If the reply of one was just
        written, it gets two, which a client can tell; none would cost its caller the whole timeout.

        Returns:
            These requests, for the scheduler.
        """
        requests = self.thread.recover()
        for request in requests:
            self._output.end(request.id_term)
            reply = self.evaluator.replies.failed(error, request, self.evaluator.exports)
            self._port.hold(self.evaluator.replies.parts(reply))
        return requests
