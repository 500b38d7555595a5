"""The parts of a server that its executors and its loop share, built in dependency order.

They are passed on as one object. Below them stands `protocol` and `runtime`; above them what app.py
builds. Here are also the steps that each executor takes before and after the code of a request.
"""

from __future__ import annotations

from port_server.etf import containers, mapping, models, scalars, structs
from port_server.runtime import batches, failure, imports, objects, stdio, targets, thread_context
from port_server.runtime.garbage import Garbage
from port_server.runtime.snippet import Snippet

from . import evaluate, handshake, replies
from .cancel import Cancels
from .evaluate import Code, Evaluator
from .output import Reports, Stderr
from .reader import ReaderLock
from .replies import Replies
from .shared_memory import SharedMemory
from .signal_guard import SignalGuard
from .streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any, Final

    from port_server.protocol.requests import Request
    from port_server.settings import Settings

    from .main_thread import MainThread
    from .port import Port
    from .replies import Reply
    from .scheduler import Scheduler
    from .status_page import StatusPage


_VALUES: Final = (containers, mapping, models, scalars, structs)


class Core:
    """The shared parts of one server, each by the name of its class or module.

    Attributes:
        evaluator: the main thread's own.
    """

    def __init__(
        self,
        settings: Settings,
        scheduler: Scheduler,
        thread: MainThread,
        page: StatusPage,
        port: Port,
        options: dict[Any, Any],
    ) -> None:
        """Build the parts, as the options of the owner's init ask for it.

        Raises:
            RefusedError: an option cannot be honoured.
        """
        self.settings, self.scheduler, self.thread = settings, scheduler, thread
        self.page, self.port = page, port
        memory = handshake.memory_of(options)
        handshake.take_templates(options)
        owner, token = handshake.owner_of(options)
        self.guard = _signal_guard()
        self.lock = ReaderLock(port, scheduler, thread)
        self.cancels = Cancels(self.guard, thread, port, settings, log_stray)
        logging = handshake.wants_logs(options)
        reports = Reports(settings, port, thread, self.lock, self.cancels, logging=logging)
        self.output, self.stdio = reports.output, reports.stdio
        self.stderr = Stderr(port, thread, scheduler, reports=handshake.wants_stderr(options))
        self.code = Code(objects.Objects(settings, owner, token), settings)
        self.shared = SharedMemory(settings)
        self.replies = Replies(port, memory, settings)
        self.evaluator = Evaluator(self.code, self.replies, settings)

    def enter(self, request: Request) -> Context:
        """Give the context that a request runs in: of its open session, or a new one."""
        namespaces, name = self.code.namespaces, request.options.session
        session = None if name is None else namespaces.find(name)
        if session is not None:
            return session.enter(request)
        context = request.context = namespaces.new_context()
        return context

    def begin_elsewhere(self, request: Request, executor: Any) -> None:
        """Note that a request is under way elsewhere than in main, or not at once."""
        request.executor = executor
        self.scheduler.elsewhere[request.id_term] = request
        self.page.count()

    def finish(self, request: Request, reply: Reply) -> None:
        """Hold the last reply of such a request, and note its end. For any thread."""
        self.replies.leave_if_forked()
        request.ended = True
        self.output.end(request.id_term)
        self.stderr.report(request)
        try:
            self.port.hold(self.replies.parts(reply))
        finally:
            # Only now: while a long reply is written, the request must count as begun.
            if request.session is not None:
                request.session.leave(request)
            request.stream = None  # which refers to the request
            self.scheduler.finish(request)
            self.page.count()
            self.lock.nudge(request.options.session is not None)


def _signal_guard() -> SignalGuard:
    return SignalGuard(
        borders=(Evaluator.evaluate, Stream.advance),
        open=(Garbage.collect, Snippet.run_parts, Stream.close),
        open_modules=(batches, evaluate, failure, replies, targets),
        open_files=(str(targets.__file__).removesuffix("targets.py") + "typed.py",),
        through_modules=(*_VALUES, imports, objects, stdio, thread_context),
        describing=(failure.describe_cancelled,),
    )


def log_stray(error: BaseException) -> None:
    from port_server import log  # noqa: PLC0415  structlog is not for the start path

    log.error("stray_exception", type=failure.type_name(error), message=str(error))
