"""One call of Python into the BEAM that is under way, whoever waits for it."""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms

from port_server.etf import read_term
from port_server.runtime.beam import ElixirError, error_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from port_server.protocol.framing import Frame

    from .router import Queued
    from .streams import Stream

# What calls begin with that nothing is made from within: most. Nothing is ever put into it.
_NONE: Final[deque[Any]] = deque()


class Call:
    """One call under way.

    Attributes:
        id: what the answer names.
        id_term: the request that makes it.
        answered: the frame of the answer and where its result begins, or None.
        failure: what to raise instead, or None.
        lock: what a thread waits on; released whenever there is something for it to do.
        thread: the ident of that thread.
        future: what async code waits on, or None.
        queue: requests made from within the call.
        streams: streams made from within the call that can go on.
    """

    __slots__ = (
        "answered",
        "failure",
        "future",
        "id",
        "id_term",
        "lock",
        "queue",
        "streams",
        "thread",
    )

    def __init__(self, number: int, id_term: bytes) -> None:
        self.id = number.to_bytes(8, "big")
        self.id_term = id_term
        self.answered: tuple[Frame, int] | None = None
        self.failure: BaseException | None = None
        self.lock: Any = None
        self.thread = 0
        self.future: Any = None
        self.queue: deque[Queued] = _NONE
        self.streams: deque[Stream] = _NONE

    def add_request(self, entry: Queued) -> None:
        """Put a request that was made from within the call behind the others. With the baton."""
        if self.queue is _NONE:
            self.queue = deque()
        self.queue.append(entry)

    def add_stream(self, stream: Stream) -> None:
        """Put a stream that can go on behind the others. With the baton."""
        if self.streams is _NONE:
            self.streams = deque()
        self.streams.append(stream)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.answered is not None or self.failure is not None

    def wake(self) -> None:
        """Let whoever waits look again. Main needs no waking: it reads the port itself."""
        if self.lock is not None:
            try:  # noqa: SIM105  contextlib is an import
                self.lock.release()
            except RuntimeError:  # it is awake
                pass
        elif self.future is not None and self.over:
            future = self.future
            try:  # noqa: SIM105
                future.get_loop().call_soon_threadsafe(_resolve, future)
            except RuntimeError:  # the loop was closed
                pass

    def result(self, binary_as: str, max_depth: int) -> Any:
        """Read the result.

        Raises:
            ElixirError: the call failed.
            DecodeError: it cannot be read.
        """
        if self.failure is not None:
            raise self.failure
        assert self.answered is not None
        frame, at = self.answered
        if bytes(frame[at : at + 2]) == b"h\x02":
            tag, at = read_term(frame, at + 2)
            if tag == "ok":
                value, at = read_term(frame, at, binary_as=binary_as, max_depth=max_depth)
                return value
            if tag == "error":
                raise error_of(read_term(frame, at, binary_as="bytes")[0])
        raise ElixirError("error", "", "the answer is neither {ok, Value} nor {error, Map}")


def _resolve(future: Any) -> None:
    if not future.done():
        future.set_result(None)
