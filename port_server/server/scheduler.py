"""The order of requests: which one runs next, and which wait. Pure: no thread, no fd, no clock.

Messages and events go in, requests come out. It is changed by the holder of the reader lock only.
Plain requests run in order of arrival. Requests of one session run one at a time, across executors.
A request that was made from within a call into the BEAM runs on top of the request that waits for
that call. Streams of the main thread take turns with the requests.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from port_server.protocol.requests import Request
    from port_server.settings import Settings

    from .calls import Call
    from .main_thread import MainThread
    from .streams import Stream

# A longer chain of calls is a cycle.
_LONGEST_CHAIN = 1000


class _Session:
    """The order within one session in which requests meet.

    Attributes:
        holders: the requests that run, each made from within the one before it; never empty.
        waiting: those that wait for the end of all of these.
    """

    __slots__ = ("holders", "waiting")

    def __init__(self, holder: Request) -> None:
        self.holders = [holder]
        self.waiting: deque[Request] = deque()


class Scheduler:
    """The order of requests.

    Attributes:
        calls: the calls into the BEAM that have no answer yet, by id.
        elsewhere: the requests that are under way elsewhere than in main, or not at once, by id
            term: tasks, threads, streams, those on top of a call of a thread.
        ended: requests of sessions that ended in other threads, for `settle`. For any thread.
        for_threads: requests that threads are to run.
        fresh: requests that have begun elsewhere since the control thread looked.
        queue: requests that main is to run.
        ready: streams of main that can go on.
        streams: the streams of main, by id term.
        waiting: how many requests wait for their session.
    """

    def __init__(self, settings: Settings, main: MainThread) -> None:
        # By name: the only request of a session, as in most cases; otherwise the session.
        self._main = main
        self._sessions: dict[bytes, Request | _Session] = {}
        self._turns = 0
        self.calls: dict[bytes, Call] = {}
        self.elsewhere: dict[bytes, Request] = {}
        self.ended: deque[Request] = deque()
        self.for_threads: deque[Request] = deque()
        self.fresh: list[Request] = []
        self.queue: deque[Request] = deque()
        self.ready: deque[Stream] = deque()
        self.streams: dict[bytes, Stream] = {}
        self.waiting = 0
        self.limit(settings)

    def limit(self, settings: Settings) -> None:
        """Apply other settings to later requests."""
        self._announces = settings.running_after_ms > 0
        self._max_queue_bytes = settings.max_queue_bytes

    # --- what comes in ----------------------------------------------------------------------------

    def begin(self, request: Request) -> bool:
        """Take a request in. False if it waits for its session; it comes out of `end` then."""
        name = request.options.session
        if name is None:
            return True
        session = self._sessions.setdefault(name, request)
        if session is request:
            return True
        if not isinstance(session, _Session):
            session = self._sessions[name] = _Session(session)
        if self._is_within(request, session.holders[0]):
            session.holders.append(request)
            return True
        session.waiting.append(request)
        self.waiting += 1
        return False

    def end(self, request: Request) -> Request | None:
        """Note the end of a request; give the request whose turn it is now, or None."""
        name = request.options.session
        if name is None:
            return None
        session = self._sessions.get(name)
        if session is request:
            del self._sessions[name]
            return None
        if not isinstance(session, _Session) or request not in session.holders:
            return None
        session.holders.remove(request)
        if session.holders:
            return None
        if not session.waiting:
            del self._sessions[name]
            return None
        following: Request = session.waiting.popleft()
        session.holders.append(following)
        self.waiting -= 1
        return following

    def note(self, request: Request) -> None:
        """Note that a request has begun elsewhere. For any thread."""
        if self._announces:
            self.fresh.append(request)

    def take_fresh(self) -> list[Request]:
        """Give the requests that have begun elsewhere since the last time."""
        fresh, self.fresh = self.fresh, []
        return fresh

    def finish(self, request: Request) -> None:
        """Note the end of a request that was elsewhere. For any thread."""
        request.ended = True
        self.elsewhere.pop(request.id_term, None)
        if request.options.session is not None:
            self.ended.append(request)

    def unfinished(self) -> list[Request]:
        """Give the requests that wait for threads or for their session, or are elsewhere."""
        sessions = [one for one in self._sessions.values() if isinstance(one, _Session)]
        waiting = [request for session in sessions for request in session.waiting]
        return [*waiting, *self.for_threads, *self.elsewhere.values()]

    def settle(self) -> list[Request]:
        """Note the requests that have ended in other threads; give those whose turn it is now."""
        following = []
        while self.ended:
            request = self.end(self.ended.popleft())
            if request is not None:
                following.append(request)
        return following

    def call_of(self, request: Request) -> Call | None:
        """Give the call that a request was made from within, if its thread can run the request."""
        parent = request.options.parent
        call = None if parent is None else self.calls.get(parent)
        # Async code that waits runs none.
        return call if call is not None and call.future is None and not call.over else None

    def make_ready(self, stream: Stream) -> None:
        """Let a stream go on, if it can: in the queue of its call, or of main."""
        if not stream.request.can_go_on:
            return
        if stream.ready:
            if not stream.request.cancelled or stream not in self.ready:
                return
            self.ready.remove(stream)
        stream.ready = True
        call = self.call_of(stream.request)
        if call is not None and call.in_main:
            call.streams.append(stream)
        elif stream.request.cancelled:  # its `finally` runs before later requests
            self.ready.appendleft(stream)
        else:
            self.ready.append(stream)

    def take_over(self, call: Call) -> None:
        """Take over the requests and streams made from within a call of main that is over."""
        self.queue.extend(call.queue)
        call.queue.clear()
        self.ready.extend(call.streams)
        call.streams.clear()

    def find(self, id_term: bytes) -> Request | None:
        """Give the request of that id that has begun and has no last reply yet."""
        return self.elsewhere.get(id_term) or self._main.find(id_term)

    def drop(self, id_term: bytes) -> Request | None:
        """Take out the request of that id if it has not begun. It is to be ended."""
        queues = [self.queue, self.for_threads, *[call.queue for call in list(self.calls.values())]]
        for queue in queues:
            request: Request
            for request in tuple(queue):
                if request.id_term == id_term:
                    try:
                        queue.remove(request)
                    except ValueError:  # a thread that waits for its call has just begun it
                        return None
                    return request
        for session in self._sessions.values():
            if not isinstance(session, _Session):
                continue
            for request in session.waiting:
                if request.id_term == id_term:
                    session.waiting.remove(request)
                    self.waiting -= 1
                    return request
        return None

    # --- what goes out ----------------------------------------------------------------------------

    def next(self) -> Request | Stream | None:
        """Give the next request for main, or a stream for one slice.

        All requests that are queued when a stream has had its turn come before the next one.
        """
        if self.ready and (self._turns <= 0 or self.ready[0].request.cancelled):
            self._turns = len(self.queue)
            due: Request | Stream = self.ready.popleft()
        elif self.queue:
            self._turns -= 1
            due = self.queue.popleft()
        elif self.ready:
            due = self.ready.popleft()
        else:
            return None
        return due

    @property
    def full(self) -> bool:
        """Whether the queue is at its limit, so that no more is read ahead.

        Never with a call under way: its answer may stand behind the requests.
        """
        return not self.calls and (
            sum([len(request.frame) for request in (*self.queue, *self.for_threads)])
            > self._max_queue_bytes
        )

    def _is_within(self, request: Request, holder: Request) -> bool:
        """Tell whether `request` was made from within `holder`, directly or not."""
        for _ in range(_LONGEST_CHAIN):
            parent = request.options.parent
            call = None if parent is None else self.calls.get(parent)
            if call is None or call.request is None:
                return False
            request = call.request
            if request is holder:
                return True
        return False
