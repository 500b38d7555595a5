"""The output of user code: the request that it belongs to, its order, and its batches.

Every print belongs to the request whose code makes it, in any thread: in the main thread it is the
running one, in tasks the one that a context variable names, in threads the one that started them
(see `thread_context`; not by a context variable, because `asyncio.to_thread` brings a context of
its own). Output of no request (raw threads, code that goes on after its request) goes to fd 2.

Signal handlers and `__del__` print as well, and interrupt any line below, in any thread. So no code
here waits for a lock: a print appends to a deque, and the thread that gets the `busy` lock empties
it. A thread that does not get the lock leaves, because the holder looks again. A print that waits
for its reader waits on a lock of its own.
"""

from __future__ import annotations

from _contextvars import Context, ContextVar  # contextvars itself is one more file
from _thread import allocate_lock, get_ident
from gc import get_referents
from time import monotonic, sleep

from .api import Cancelled
from .frames import imported_by_thread
from .printed import Printed, write_to_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from port_server.settings import Settings

    class Main(Protocol):
        """The server's main thread."""

        ident: int

        @property
        def running(self) -> Any:
            """Give the request that runs there, with its `id_term` and `ended`, or None."""

    class Reader(Protocol):
        """The thread that reads acks while code runs; the server's."""

        control_ident: int

        def may_wait(self) -> bool:
            """Tell whether the thread that asks may wait for acks: another one reads the port."""

        def print_later(self) -> None:
            """Have `tick` called soon: there is new text to hand on."""

    class Cancels(Protocol):
        """The exceptions of signals in the main thread; held back while it prints."""

        alert: bool

        def deliver(self) -> None:
            """Raise a waiting exception, in the main thread, when the server's code is left."""

    # (id term, stream name, text); True where it must leave now. Called in any thread.
    Emit = Callable[[bytes, str, bytes, bool], None]

# Most text in one frame of output. It is copied a few times, and read at once.
PIECE_BYTES: Final = 1 << 16
# Longest wait of a request that ends for another thread that hands on its output.
_LONGEST_HAND_ON_S: Final = 1.0
# The empty id, as its term: log records and messages are not counted for any request.
NO_REQUEST: Final = b"m\0\0\0\0"
# The count of an ack that means everything sent so far.
ALL_BYTES: Final = 0x7FFFFFFF
# Interval at which a print that waits for its reader checks whether it may still wait.
_LOOK_S: Final = 0.1
# Delay of cancelled code for each record beyond the output limit.
_SLOWED_S: Final = 0.005
# How long the `finally` of code that is cancelled in a thread may print before it is cut short.
_SPARED_S: Final = 0.05
_NEVER: Final = float("inf")

current: ContextVar[Printed | None] = ContextVar("port_server_request", default=None)


def request_of(task: Any) -> bytes | None:
    """Give the request that an asyncio task belongs to, as its id's term; for any thread."""
    if hasattr(task, "get_context"):
        context = task.get_context()
    else:  # before Python 3.12
        context = next((one for one in get_referents(task) if type(one) is Context), None)
    printed = None if context is None else context.get(current)
    return None if printed is None else printed.id_term


class Output:
    """Collects printed text, by request.

    Attributes:
        deliveries: log records and messages to processes, of all requests; `parts` are their sizes.
        delivery_window_bytes: how much of them may be unacknowledged, 0 without a limit.
        requests: those that have printed or started a thread, by id term.
        stopping: threads whose request is cancelled, and from when on a print raises that there.
        threads: the requests that threads belong to, by ident.
        window_bytes: how much of a request's output may be unacknowledged, 0 without a limit.
    """

    __slots__ = (
        "_cancels",
        "_emit",
        "_limit_bytes",
        "_limit_s",
        "_main",
        "_reader",
        "deliveries",
        "delivery_window_bytes",
        "requests",
        "stopping",
        "threads",
        "window_bytes",
    )

    def __init__(
        self, settings: Settings, emit: Emit, main: Main, reader: Reader, cancels: Cancels
    ) -> None:
        self._cancels = cancels
        self._main = main
        self._reader = reader
        self.requests: dict[bytes, Printed] = {}
        self.stopping: dict[int, float] = {}
        self.threads: dict[int, Printed] = {}
        self.window_bytes = settings.output_window_bytes
        self.deliveries = Printed(NO_REQUEST)
        self.delivery_window_bytes = settings.delivery_window_bytes
        self._emit = emit
        self._limit_bytes = settings.output_batch_bytes
        self._limit_s = settings.output_delay_ms / 1000

    # --- the request of a print -----------------------------------------------------------------

    def current(self) -> Printed | None:
        """Give the request of the calling code."""
        printed = current.get()
        if printed is None or printed.ended:  # a session keeps the context of an earlier request
            thread = get_ident()
            # Python may collect garbage in the control thread, and a `__del__` may print.
            if thread in {self._main.ident, self._reader.control_ident}:
                running = self._main.running
                if running is None or running.ended:
                    return None
                return self.requests.get(running.id_term) or self.of(running.id_term)
            printed = self.threads.get(thread)
            if printed is None:
                return None
        return None if printed.ended else printed

    def of(self, id_term: bytes) -> Printed:
        """Give the output of a request; a new one if it has none."""
        return self.requests.setdefault(id_term, Printed(id_term))

    def enter(self, id_term: bytes) -> None:
        """Let this context, and what copies it, print for that request."""
        current.set(self.of(id_term))

    def end(self, id_term: bytes) -> None:
        """Hand on all output of a request; later prints belong to no request."""
        printed = self.requests.get(id_term)
        if printed is None:
            return
        deadline = 0.0
        while printed.busy.locked():  # another thread hands on text that precedes the reply
            now = monotonic()
            deadline = deadline or now + _LONGEST_HAND_ON_S
            if now > deadline:
                break
            sleep(0.0001)
        # Once: a thread that prints on and on must not keep the request from ending.
        self._hand_on(printed, now=False, once=True)
        printed.ended = True
        self.requests.pop(id_term, None)
        printed.wake()
        if printed.parts:
            printed.lose()

    def disown(self) -> None:
        """Become a forked child: nothing printed here is any request's."""
        for printed in self.requests.values():
            printed.ended = True
            printed.parts.clear()
        self.requests = {}
        self.threads.clear()

    # --- printing -------------------------------------------------------------------------------

    def write(self, stream: str, text: bytes) -> None:
        """Take text that was printed to `stream`: at most PIECE_BYTES."""
        printed = self.current()
        if printed is None:
            write_to_stderr(text)
            return
        if not text:
            return
        printed.parts.append((stream, text))
        if printed.ended:  # just now, in another thread
            printed.lose()
            return
        printed.size += len(text)
        if printed.size > self._limit_bytes:
            self._hand_on(printed, now=False)
        else:
            now = monotonic()
            if not printed.since:
                printed.since = now
                self._reader.print_later()
            elif now - printed.since > self._limit_s:
                self._hand_on(printed, now=True)
        # In every case: slow prints leave by the clock and reach the output limit as well.
        if self._full(printed):
            self._wait(printed)
        self._raise_waiting()

    def flush(self) -> None:
        """Hand on the output of the calling code's request, and have it leave now."""
        printed = self.current()
        if printed is not None:
            self._hand_on(printed, now=True)
            self._raise_waiting()

    def flush_of(self, id_term: bytes) -> None:
        """Hand on the output of a request, because its next frame must come after it."""
        printed = self.requests.get(id_term)
        if printed is not None and printed.parts:
            self._hand_on(printed, now=False)

    def tick(self, now: float) -> bool:
        """Hand on text that has waited for long enough; tell whether some still waits.

        Called regularly by a thread with a clock: otherwise the text of a request that goes on to
        compute would not be seen before its end.
        """
        waiting = False
        for printed in tuple(self.requests.values()):
            if printed.since and now - printed.since > self._limit_s:
                self._hand_on(printed, now=False)
            waiting = waiting or bool(printed.parts)
        return waiting

    def stop(self, ident: int, since: float) -> None:
        """Let prints of a thread raise Cancelled from that time on, in monotonic seconds."""
        self.stopping[ident] = since

    def _is_stopping(self) -> bool:
        return bool(self.stopping) and monotonic() > self.stopping.get(get_ident(), _NEVER)

    def _raise_waiting(self) -> None:
        if self._cancels.alert:
            self._cancels.deliver()
        if self._is_stopping() and imported_by_thread(get_ident()) is None:
            self.stopping[get_ident()] = monotonic() + _SPARED_S
            raise Cancelled("cancelled")

    # --- the output limit -----------------------------------------------------------------------

    def delivered(self, size: int) -> None:
        """Count a log record or a message to a process; wait while too much is on its way."""
        deliveries = self.deliveries
        if self.delivery_window_bytes:
            # As with parts: several threads add, one at a time takes.
            sizes: deque[Any] = deliveries.parts
            sizes.append(size)
            while sizes and deliveries.busy.acquire(blocking=False):
                try:
                    while sizes:
                        deliveries.sent += sizes.popleft()
                finally:
                    deliveries.busy.release()
            if self._full(deliveries):
                self._wait(deliveries)
                self._raise_waiting()
                # Cancelled where an exception may not be raised: slow it down until it may.
                if self._full(deliveries) and self._reader.may_wait():
                    sleep(_SLOWED_S)
                return
        self._raise_waiting()

    def ack(self, id_term: bytes, count: int) -> None:
        """Note that the other side has passed on `count` bytes of a request's output.

        Or of the deliveries. An ack may come before its bytes are counted in `sent`.
        """
        printed = self.deliveries if id_term == NO_REQUEST else self.requests.get(id_term)
        if printed is not None:
            printed.acked = printed.sent if count == ALL_BYTES else printed.acked + count
            printed.wake()

    def mute(self, id_term: bytes) -> None:
        """Throw away what a request prints from now on, because it was cancelled."""
        printed = self.requests.get(id_term) or self.of(id_term)
        printed.muted = True
        printed.wake()

    def _full(self, printed: Printed) -> bool:
        most = self.window_bytes
        sent = printed.sent
        if printed is self.deliveries:
            most = self.delivery_window_bytes
            if printed.parts:  # the thread that counts them has lost the interpreter to this one
                sent += sum(tuple(printed.parts))
        return 0 < most < sent - printed.acked and not printed.ended and not printed.muted

    def _wait(self, printed: Printed) -> None:
        lock = None
        in_main = get_ident() == self._main.ident
        while self._full(printed) and self._reader.may_wait():
            if (in_main and self._cancels.alert) or self._is_stopping():  # `write` raises it
                return
            if lock is None:
                lock = allocate_lock()
                lock.acquire()
                printed.waiters.append(lock)
                continue  # an ack may have come before the lock was in the list
            if lock.acquire(timeout=_LOOK_S):
                lock = None

    # --- handing on -----------------------------------------------------------------------------

    def _hand_on(self, printed: Printed, *, now: bool, once: bool = False) -> None:
        """Emit the collected text, neighbours of one stream joined; at once if `now`."""
        while printed.parts and printed.busy.acquire(blocking=False):
            try:
                self._empty(printed, now=now)
            finally:
                printed.busy.release()
            if once:
                break

    def _empty(self, printed: Printed, *, now: bool) -> None:
        parts = printed.parts
        printed.size = 0
        printed.since = 0.0
        left = len(parts)  # without parts that are added meanwhile
        while left > 0 and parts:
            stream, text = parts.popleft()
            left -= 1
            if left and parts and parts[0][0] == stream:
                texts = [text]
                size = len(text)
                while left and parts and parts[0][0] == stream and size <= PIECE_BYTES:
                    text = parts.popleft()[1]
                    left -= 1
                    texts.append(text)
                    size += len(text)
                text = b"".join(texts)
            if not printed.muted:
                printed.sent += len(text)
                self._emit(printed.id_term, stream, text, now)
