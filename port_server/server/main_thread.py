"""The state of the main thread: the request that runs, and those that wait below it."""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from port_server.protocol.requests import Request


class MainThread:
    """The state of the main thread; other threads read it.

    Attributes:
        ident: of the thread.
        stack: the request that is being answered is the last one, from its begin until its reply is
            written. Before it stand those that wait for a call into the BEAM, each with None behind
            it. The hot path pushes and pops here in place.
    """

    __slots__ = ("ident", "stack")

    def __init__(self) -> None:
        self.ident = get_ident()
        self.stack: list[Request | None] = []

    @property
    def running(self) -> Request | None:
        """The request that is being answered, if one is."""
        try:
            return self.stack[-1]
        except IndexError:
            return None

    @property
    def below(self) -> list[Request]:
        """The requests that wait for a call into the BEAM, the innermost last."""
        return [request for request in self.stack[:-1] if request is not None]

    @property
    def cancelled(self) -> bool:
        """Whether the running request, or one that it runs on top of, was cancelled."""
        return any(request is not None and request.cancelled for request in tuple(self.stack))

    def find(self, id_term: bytes) -> Request | None:
        """Give the request of that id, if it runs or waits here."""
        for request in reversed(tuple(self.stack)):
            if request is not None and request.id_term == id_term:
                return request
        return None

    def recover(self) -> list[Request]:
        """Forget everything; give the requests that ran or waited, the innermost first."""
        requests = [request for request in reversed(self.stack) if request is not None]
        self.stack.clear()
        return requests
