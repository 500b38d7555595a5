"""Messages that are no requests, and act at once: ping, ack, credit, release, sessions, stacks.

For the holder of the reader lock. Runs no user code.
"""

from __future__ import annotations

from _thread import get_ident

from port_server.protocol import messages
from port_server.protocol.messages import ProtocolError
from port_server.runtime import failure
from port_server.runtime.frames import imported_by_thread, stacks
from port_server.runtime.namespace import SessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .core import Core
    from .executors import Executors
    from .heartbeat import Health


class Commands:
    """Acts on messages that are no requests."""

    def __init__(self, core: Core, executors: Executors, health: Health) -> None:
        self._async = executors.loop
        self._code = core.code
        self._health = health
        self._output = core.output
        self._port = core.port
        self._scheduler = core.scheduler
        self._thread = core.thread

    def act(self, message: messages.Message) -> None:
        """Do what a message asks for; what answers it is held."""
        if type(message) is messages.Ack:
            self._output.ack(message.id_term, message.count)
        elif type(message) is messages.Credit:
            self._credit(message)
        elif type(message) is messages.Ping:
            self._port.hold([messages.pong(message.id_term, self._status(message.id_term))])
        elif type(message) is messages.Release:
            self._code.objects.release(message.ids)
        elif type(message) is messages.OpenSession:
            self._open_session(message)
        elif type(message) is messages.CloseSession:
            self._code.objects.dropped.append(self._code.namespaces.close(message.name))
        elif type(message) is messages.Stacks:
            text = stacks(self._thread.ident, (get_ident(),))
            self._port.hold([messages.ok(message.id_term, text)])
        elif type(message) is messages.Init:
            self.complain(ProtocolError("init is the first frame or none at all; ignored"))

    def _status(self, id_term: bytes) -> dict[str, object]:
        status = self._health.status()
        request = self._scheduler.find(id_term)
        status["open"] = request is not None
        status["begun"] = request is not None and (
            request.executor is not self._async or request.thread != 0
        )
        status["importing"] = None
        if request is not None:
            status["importing"] = imported_by_thread(request.thread or self._thread.ident)
        # A stream of main, while main is at other requests.
        status["waiting"] = (
            id_term in self._scheduler.streams
            and self._thread.running is not None
            and self._thread.find(id_term) is None
        )
        blocking = self._async.blocking()
        if blocking is not None:
            status["blocking"] = blocking
        return status

    def _credit(self, message: messages.Credit) -> None:
        request = self._scheduler.elsewhere.get(message.id_term)
        if request is not None:
            request.granted += message.count
            if request.stream is not None:
                request.executor.go_on(request)

    def _open_session(self, message: messages.OpenSession) -> None:
        try:
            self._code.namespaces.open(message.name)
        except SessionError as error:
            description = failure.describe("protocol", "", str(error))
            self._port.hold([messages.error(message.id_term, description)])
        else:
            self._port.hold([messages.ok(message.id_term, None)])

    def complain(self, error: ProtocolError) -> None:
        """Answer what is wrong in a message, or log it where there is none to answer."""
        if error.id_term is not None:
            description = failure.describe_value_error("protocol", error)
            self._port.hold([messages.error(error.id_term, description)])
            return
        from port_server import log  # noqa: PLC0415  structlog is not for the start path

        log.warning("protocol_error", reason=str(error))
