"""What people's code prints: whose it is, in what order and in which batches it leaves.

Every print belongs to the request whose code makes it, wherever that runs: in the main thread it
is the running one, in tasks the one that a context variable names, in threads the one that started
them (see `carry`; not by a context variable, because `asyncio.to_thread` brings a context of its
own). What belongs to none (raw threads, code that goes on after its request) goes to fd 2.

Printing happens in signal handlers and in `__del__` as well, which interrupt any line below, in
any thread. So no lock is ever waited for here: what is printed is appended to a deque, and whoever
gets the `busy` lock empties it; who does not get it leaves, because the holder looks again. A print
that waits for its reader waits on a lock of its own, which nobody else holds.
"""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _contextvars import Context, ContextVar  # contextvars itself is one more file
from _thread import allocate_lock, get_ident
from gc import get_referents
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from port_server.settings import Settings

    class Window(Protocol):
        """When signals may raise in the main thread; the server's."""

        alert: bool

        def deliver(self) -> None:
            """Raise what waits until the code of ours is left."""

    # (id term, stream name, text); True where it must leave now. Called in any thread.
    Emit = Callable[[bytes, str, bytes, bool], None]

STDERR_FD: Final = 2
# The most that one frame of output holds. It is copied a few times, and read in one go.
PIECE_BYTES: Final = 1 << 16
# How long a request that ends waits for another thread that is handing on its output just now.
_LONGEST_HAND_ON_S: Final = 1.0
# The id of no request, as its term: what is delivered is not counted for any of them.
NO_REQUEST: Final = b"m\0\0\0\0"
# The count of an ack that means all there is.
ALL_BYTES: Final = 0x7FFFFFFF
# How often a print that waits for its reader looks whether there still is one.
_LOOK_S: Final = 0.1
# How long code that is cancelled takes for each record beyond the window.
_SLOWED_S: Final = 0.005

current: ContextVar[Printed | None] = ContextVar("port_server_request", default=None)


def request_of(task: Any) -> bytes | None:
    """Give the request that an asyncio task belongs to, as its id's term; for any thread."""
    if hasattr(task, "get_context"):
        context = task.get_context()
    else:  # before Python 3.12
        context = next((one for one in get_referents(task) if type(one) is Context), None)
    printed = None if context is None else context.get(current)
    return None if printed is None else printed.id_term


class Printed:
    """What one request has printed.

    Attributes:
        acked: bytes that the other side says it has passed on.
        busy: held by the thread that is handing on `parts`.
        ended: whether the request has; what comes now goes to fd 2.
        id_term: the request.
        muted: whether nobody wants it any more.
        parts: what is collected, as (stream, text).
        sent: bytes that were handed on.
        since: when the first of `parts` was printed, 0 if there are none.
        size: bytes in `parts`, about.
        waiters: the locks on which prints wait for `acked`.
    """

    __slots__ = (
        "acked",
        "busy",
        "ended",
        "id_term",
        "muted",
        "parts",
        "sent",
        "since",
        "size",
        "waiters",
    )

    def __init__(self, id_term: bytes) -> None:
        self.id_term = id_term
        self.parts: deque[tuple[str, bytes]] = deque()
        self.busy = allocate_lock()
        self.ended = False
        self.muted = False
        self.size = 0
        self.since = 0.0
        # Counters with one writer each, because `-=` in two threads loses one of them.
        self.sent = 0
        self.acked = 0
        self.waiters: deque[Any] = deque()

    def wake(self) -> None:
        """Let the prints that wait look again."""
        while self.waiters:
            try:
                self.waiters.popleft().release()
            except IndexError:  # another thread was faster
                return


class Output:
    """Collects what is printed, by request.

    Attributes:
        begun: called when there is something to hand on that was not there before; see `tick`.
        control: the thread that watches while the main thread runs code. Python may collect garbage
            in it, whose `__del__` prints for the request that runs.
        deliveries: log records and messages to processes, of all requests; `parts` are their sizes.
        delivery_window_bytes: how much of them may be unacknowledged, 0 without a limit.
        may_wait: tells whether the thread that asks may wait for acks: somebody else is reading
            the port. The server provides it; by default no print ever waits.
        running: the request that runs in the main thread, as the bytes of its id's term, or None.
        requests: those that have printed or started a thread, by id term.
        threads: the requests that threads belong to, by ident.
        window: holds back what signals raise in the main thread while it prints, because a print
            must not be cut short; None for none.
        window_bytes: how much of a request's output may be unacknowledged, 0 without a limit.
    """

    __slots__ = (
        "_emit",
        "_limit_bytes",
        "_limit_s",
        "_thread",
        "begun",
        "control",
        "deliveries",
        "delivery_window_bytes",
        "may_wait",
        "requests",
        "running",
        "threads",
        "window",
        "window_bytes",
    )

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self.running: bytes | None = None
        self.requests: dict[bytes, Printed] = {}
        self.threads: dict[int, Printed] = {}
        self.begun: Callable[[], None] | None = None
        self.control = 0
        self.may_wait: Callable[[], bool] = _never
        self.window: Window | None = None
        self.window_bytes = settings.output_window_bytes
        self.deliveries = Printed(NO_REQUEST)
        self.delivery_window_bytes = settings.delivery_window_bytes
        self._emit = emit
        self._limit_bytes = settings.output_batch_bytes
        self._limit_s = settings.output_delay_ms / 1000
        self._thread = get_ident()

    # --- whose it is ----------------------------------------------------------------------------

    def current(self) -> Printed | None:
        """Give the request that the code which asks belongs to."""
        printed = current.get()
        if printed is None or printed.ended:  # a session keeps the context of an earlier request
            thread = get_ident()
            if thread in (self._thread, self.control):
                running = self.running
                if running is None:
                    return None
                return self.requests.get(running) or self.of(running)
            printed = self.threads.get(thread)
            if printed is None:
                return None
        return None if printed.ended else printed

    def of(self, id_term: bytes) -> Printed:
        """Give what a request printed; it begins here if it is new."""
        return self.requests.setdefault(id_term, Printed(id_term))

    def enter(self, id_term: bytes) -> None:
        """Let this context, and what copies it, print for that request."""
        current.set(self.of(id_term))

    def end(self, id_term: bytes) -> None:
        """Hand on what the request printed, all of it; what it prints from now on is nobody's."""
        printed = self.requests.get(id_term)
        if printed is None:
            return
        deadline = 0.0
        while printed.busy.locked():  # another thread is handing on what comes before the reply
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
            _lose(printed)

    def disown(self) -> None:
        """Become a forked child: nothing printed here is any request's."""
        self.running = None
        for printed in self.requests.values():
            printed.ended = True
            printed.parts.clear()
        self.requests = {}
        self.threads.clear()

    # --- printing -------------------------------------------------------------------------------

    def write(self, stream: str, text: bytes) -> None:
        """Take what was printed to `stream`: at most PIECE_BYTES."""
        # `current()` in place: a print is two of these.
        printed = current.get()
        if printed is None and self.running is not None and get_ident() == self._thread:
            printed = self.requests.get(self.running) or self.of(self.running)
        elif (printed := self.current()) is None:
            write_to_stderr(text)
            return
        if not text:
            return
        printed.parts.append((stream, text))
        if printed.ended:  # just now, in another thread
            _lose(printed)
            return
        printed.size += len(text)
        if printed.size > self._limit_bytes:
            self._hand_on(printed, now=False)
        else:
            now = monotonic()
            if not printed.since:
                printed.since = now
                if self.begun is not None:
                    self.begun()
            elif now - printed.since > self._limit_s:
                self._hand_on(printed, now=True)
        # Whoever handed on, and why: slow prints leave by the clock and fill the window as well.
        if self._full(printed):
            self._wait(printed)
        self._raise_waiting()

    def flush(self) -> None:
        """Hand on what the request of the code that asks printed, and have it leave now."""
        printed = self.current()
        if printed is not None:
            self._hand_on(printed, now=True)
            self._raise_waiting()

    def flush_of(self, id_term: bytes) -> None:
        """Hand on what that request printed: something else that it sends comes after it."""
        printed = self.requests.get(id_term)
        if printed is not None and printed.parts:
            self._hand_on(printed, now=False)

    def tick(self, now: float) -> bool:
        """Hand on what waits for more that does not come; tell whether there is more to wait for.

        For a thread that has a clock: the text of a request that went on to compute, printing
        nothing, would not be seen before its end.
        """
        waiting = False
        for printed in tuple(self.requests.values()):
            if printed.since and now - printed.since > self._limit_s:
                self._hand_on(printed, now=False)
            waiting = waiting or bool(printed.parts)
        return waiting

    def _raise_waiting(self) -> None:
        window = self.window
        if window is not None and window.alert and get_ident() == self._thread:
            window.deliver()

    # --- the window -----------------------------------------------------------------------------

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
        # Cancelled where nothing may be raised: until it may, it goes slowly.
        if self._full(deliveries) and self.may_wait():
            sleep(_SLOWED_S)

    def ack(self, id_term: bytes, count: int) -> None:
        """Note that the other side has passed on `count` bytes of a request's output.

        Or of the deliveries. An ack may come before its bytes are counted in `sent`.
        """
        printed = self.deliveries if id_term == NO_REQUEST else self.requests.get(id_term)
        if printed is not None:
            printed.acked = printed.sent if count == ALL_BYTES else printed.acked + count
            printed.wake()

    def mute(self, id_term: bytes) -> None:
        """Throw away what a request prints from now on: it was cancelled, nobody reads it."""
        printed = self.requests.get(id_term) or self.of(id_term)
        printed.muted = True
        printed.wake()

    def _full(self, printed: Printed) -> bool:
        most = self.delivery_window_bytes if printed is self.deliveries else self.window_bytes
        return 0 < most < printed.sent - printed.acked and not printed.ended and not printed.muted

    def _wait(self, printed: Printed) -> None:
        lock = None
        window = self.window if get_ident() == self._thread else None
        while self._full(printed) and self.may_wait():
            if window is not None and window.alert:  # `write` raises it
                return
            if lock is None:
                lock = allocate_lock()
                lock.acquire()
                printed.waiters.append(lock)
                continue  # an ack may have come before the lock was there
            if lock.acquire(timeout=_LOOK_S):
                lock = None

    # --- handing on -----------------------------------------------------------------------------

    def _hand_on(self, printed: Printed, *, now: bool, once: bool = False) -> None:
        """Emit what is collected, neighbours of one stream joined; with `now` it leaves at once."""
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
        left = len(parts)  # not what comes meanwhile
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


def _never() -> bool:
    return False


def _lose(printed: Printed) -> None:
    while printed.parts:
        try:
            _stream, text = printed.parts.popleft()
        except IndexError:  # another thread was faster
            return
        write_to_stderr(text)


def write_to_stderr(text: bytes) -> None:
    """Write to fd 2, whoever has it. If it is closed the text is lost: there is no one to tell."""
    try:
        while text:
            text = text[os.write(STDERR_FD, text) :]
    except OSError:
        pass
