"""Calls into the BEAM that are under way. Pure: the ways to wait stand in `callbacks`."""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _struct import Struct

from port_server.etf import read_term
from port_server.runtime.api import ElixirError, error_of

from .threads import release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from port_server.protocol.framing import Frame
    from port_server.protocol.requests import Request
    from port_server.settings import Settings

    from .streams import Stream

_call_id = Struct(">Q").pack
_PAIR: Final = b"h\x02"  # how a tuple of two begins


class Call:
    """One call under way.

    Attributes:
        id: the id that the answer names.
        request: the request that makes it, None for code of no request.
        answered: the frame of the answer and where its result begins, or None.
        failure: the exception to raise instead, or None.
        future: the future that async code waits on, or None.
        lock: the lock that a thread waits on, or None; released whenever it has something to do.
        thread: the ident of the thread that waits, 0 where async code does.
        queue: requests that were made from within the call.
        streams: streams that were made from within the call and can go on; in main only.
    """

    answered: tuple[Frame, int] | None = None
    failure: BaseException | None = None
    future: Any = None
    lock: Any = None
    thread = 0

    def __init__(self, number: int, request: Request | None) -> None:
        self.id = _call_id(number)
        self.request = request
        self.queue: deque[Request] = deque()
        self.streams: deque[Stream] = deque()

    @property
    def in_main(self) -> bool:
        """Whether the main thread waits for it."""
        return self.future is None and self.lock is None

    @property
    def over(self) -> bool:
        """Whether the call has its answer or its failure."""
        return self.answered is not None or self.failure is not None

    def wake(self) -> None:
        """Let the waiting code look again. Main needs no waking: it reads the port itself."""
        if self.lock is not None:
            release(self.lock)
        elif self.future is not None and self.over:
            future = self.future
            try:  # noqa: SIM105  contextlib is an import
                future.get_loop().call_soon_threadsafe(_resolve, future)
            except RuntimeError:  # the loop was closed
                pass

    def fail(self, error: BaseException) -> None:
        """End the wait with an exception."""
        self.failure = error
        self.wake()

    def result(self, settings: Settings) -> Any:
        """Read the result.

        Raises:
            ElixirError: the call failed.
            DecodeError: it cannot be read.
        """
        if self.failure is not None:
            raise self.failure
        assert self.answered is not None
        frame, at = self.answered
        if frame[at : at + 2] == _PAIR:
            tag, at = read_term(frame, at + 2)
            if tag == "ok":
                whose = settings if self.request is None else self.request.options
                binary_as = "bytes" if whose.as_bytes else "str"
                return read_term(frame, at, binary_as=binary_as, max_depth=settings.max_depth)[0]
            if tag == "error":
                raise error_of(read_term(frame, at, binary_as="bytes")[0])
        raise ElixirError("error", "", "the answer is neither {ok, Value} nor {error, Map}")


def _resolve(future: Any) -> None:
    if not future.done():
        future.set_result(None)
