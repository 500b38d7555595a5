"""Message -> action: requests into the queue they belong to, everything else at once.

For whoever holds the baton, main or the control thread; runs no user code.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _thread import get_ident
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.messages import (
    CALL_PREFIX,
    EVAL_PREFIX,
    ID_LENGTH_AT,
    ID_TERM_AT,
    Ack,
    Answer,
    Cancel,
    CloseSession,
    Credit,
    Init,
    OpenSession,
    Ping,
    ProtocolError,
    Release,
    Request,
    Shutdown,
    Stacks,
)
from port_server.runtime import failure
from port_server.runtime.frames import imported_by_thread, stacks
from port_server.runtime.namespace import SessionError

from .jobs import EMPTY_MAP, ExpiredError, open_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.framing import Frame

    from .async_lane import AsyncLane
    from .call import Call
    from .calls import Calls
    from .cancel import Cancels
    from .channel import Channel
    from .heartbeat import Vitals
    from .jobs import Job
    from .lanes import MainLane
    from .streams import Stream
    from .turns import Turns

    # (frame, kind, id term, where its body begins, when it was read)
    Queued = tuple[Frame, str, bytes, int, float]

BODY_AT: Final = ID_LENGTH_AT + 1


class Router:
    """Takes frames, puts their requests where they can run.

    Attributes:
        calls: calls of Python into the BEAM.
        cancels: cancels of what runs in main.
        grace_ms: how long the owner waits after its shutdown, None without one.
        mixed: whether main has put requests into its queue without asking which lane they need:
            if the first of them are quick, asking costs more than it gains. See `sort_out`.
        queue: requests that wait for the main lane.
        ready: streams of the main lane that can go on.
        stopping: whether a shutdown was asked for: what was read is finished, then the loop ends.
        streams: the streams of the main lane, by id term.
        turns: whose turn it is in a session.
        vitals: what is told in beats and pongs.
    """

    __slots__ = (
        "_async",
        "_channel",
        "_lane",
        "calls",
        "cancels",
        "grace_ms",
        "mixed",
        "queue",
        "ready",
        "stopping",
        "streams",
        "turns",
        "vitals",
    )

    calls: Calls
    cancels: Cancels
    vitals: Vitals

    def __init__(
        self, channel: Channel, lane: MainLane, async_lane: AsyncLane, turns: Turns
    ) -> None:
        self.grace_ms: int | None = None
        self.mixed = False
        self.queue: deque[Queued] = deque()
        self.ready: deque[Stream] = deque()
        self.stopping = False
        self.streams: dict[bytes, Stream] = {}
        self.turns = turns
        self._async = async_lane
        self._channel = channel
        self._lane = lane
        turns.resume = self._requeue

    def route(self, frames: list[Frame]) -> None:
        """Put requests into the queue, and act on everything else at once."""
        queue = self.queue
        arrived = monotonic()
        # Main runs code just now, and what needs another lane must not wait for it.
        aside = bool(self._lane.below) or get_ident() != self._lane.main
        for frame in frames:
            start = frame[:ID_LENGTH_AT]
            kind = "eval" if start == EVAL_PREFIX else "call" if start == CALL_PREFIX else None
            if kind is not None and len(frame) > ID_LENGTH_AT:
                at = BODY_AT + frame[ID_LENGTH_AT]
                if len(frame) > at:
                    entry = (frame, kind, bytes(frame[ID_TERM_AT:at]), at, arrived)
                    if aside or self.calls.pending:
                        self._place(entry, aside=aside)
                    else:
                        queue.append(entry)
                        self.mixed = True
                    continue
            try:
                message = messages.parse(frame)
            except ProtocolError as error:
                self._complain(error)
                continue
            if type(message) is Request:
                entry = (frame, message.kind, message.id_term, message.body_at, arrived)
                self._place(entry, aside=aside)
            elif type(message) is Answer:
                self.calls.answer(message.call_id, frame, message.body_at)
            else:
                self._control(message)

    def sort_out(self) -> None:
        """Main runs code for longer: what it has queued and another lane can run goes there."""
        self.mixed = False
        entries = tuple(self.queue)
        self.queue.clear()
        for entry in entries:
            self._place(entry, aside=True)

    def _make_ready(self, stream: Stream) -> None:
        if stream.ready or not stream.can_go_on:
            return
        stream.ready = True
        parent = stream.job.parent
        call = None if parent is None else self.calls.pending.get(parent)
        if call is None or call.lock is not None or call.future is not None:
            if stream.job.cancelled:  # what its `finally` does comes before later requests
                self.ready.appendleft(stream)
            else:
                self.ready.append(stream)
        else:
            call.add_stream(stream)

    def _place(self, entry: Queued, *, aside: bool) -> None:
        """Put a request where it can run: on top of the call that it came from, or in a lane."""
        frame, kind, id_term, at, arrived = entry
        job = None
        if frame[at : at + 5] != EMPTY_MAP:
            try:
                job = open_job(frame, kind, id_term, at, (monotonic() - arrived) * 1000)
            except (ExpiredError, ValueError):  # main finds it again, and answers it
                self.queue.append(entry)
                return
            call = None if job.parent is None else self.calls.pending.get(job.parent)
            if call is not None and call.future is None:
                # Main takes its turn when it comes to it; a thread has not the baton for that.
                if call.lock is None or self.turns.begin(job):
                    self._hand_to(call, job, entry)
                return
        body_at = at + 5 if job is None else job.at
        if not aside or not self._lane.evaluator.is_async(frame, kind, body_at):
            self.queue.append(entry)
            return
        if job is not None and job.session is not None and self.queue:
            # What waits there may be of the same session, and came first.
            self.queue.append(entry)
            return
        try:
            self._async.prepare()
        except Exception:  # a file of the name asyncio.py: main meets it again, and answers
            self.queue.append(entry)
            return
        if job is None:
            job = open_job(frame, kind, id_term, at, 0.0)
        if self.turns.begin(job):
            self._async.evaluate(job)

    def _hand_to(self, call: Call, job: Job, entry: Queued) -> None:
        call.add_request(entry)
        call.wake()
        if self.calls.pending.get(call.id) is not call and call.lock is not None:
            # Its thread went on meanwhile, and may have looked into the queue for the last time.
            try:
                call.queue.remove(entry)
            except ValueError:  # it has not
                return
            self.turns.end(job)
            self.queue.append(entry)

    def _requeue(self, jobs: list[tuple[Job, float]]) -> None:
        aside = bool(self._lane.below) or get_ident() != self._lane.main
        behind = list(self.queue)
        self.queue.clear()
        for job, arrived in jobs:
            self._place((job.frame, job.kind, job.id_term, job.options_at, arrived), aside=aside)
        self.queue.extend(behind)

    def _control(self, message: messages.Message) -> None:
        channel = self._channel
        if type(message) is Cancel:
            self.cancel(message.id_term)
        elif type(message) is Credit:
            stream = self.streams.get(message.id_term)
            if stream is not None:
                stream.granted += message.count
                self._make_ready(stream)
            else:
                self._async.credit(message.id_term, message.count)
        elif type(message) is Ping:
            status = self.vitals.status()
            status["open"] = self.is_open(message.id_term)
            status["begun"] = self._has_begun(message.id_term)
            status["importing"] = self._imported_by(message.id_term)
            blocking = self._async.blocking()
            if blocking is not None:
                status["blocking"] = blocking
            status["waiting"] = (
                message.id_term in self.streams and message.id_term != self._lane.running
            )
            channel.hold([messages.pong(message.id_term, status)])
        elif type(message) is Stacks:
            channel.hold([messages.ok(message.id_term, stacks(self._lane.main, (get_ident(),)))])
        elif type(message) is Ack:
            self._lane.acknowledge(message.id_term, message.count)
        elif type(message) is Release:
            self._lane.evaluator.objects.release(message.ids)
        elif type(message) is OpenSession:
            self._open_session(message)
        elif type(message) is CloseSession:
            evaluator = self._lane.evaluator
            evaluator.objects.dropped.append(evaluator.namespaces.close(message.name))
        elif type(message) is Shutdown:
            self.stopping = True
            self.grace_ms = message.grace_ms
        elif type(message) is Init:
            self._complain(ProtocolError("init is the first frame or none at all; ignored"))

    def cancel(self, id_term: bytes) -> None:
        """Stop a request, wherever it is. An unknown one is ignored: it may just have ended."""
        for queue in (self.queue, *[call.queue for call in list(self.calls.pending.values())]):
            for entry in tuple(queue):
                if entry[2] != id_term:
                    continue
                try:
                    queue.remove(entry)
                except ValueError:  # a thread that waits for its call has just begun it
                    return
                job = self.turns.jobs.get(id_term)
                if job is not None:
                    self.turns.end(job)
                self._say_cancelled(id_term)
                return
        if self.turns.drop(id_term):
            self._say_cancelled(id_term)
            return
        self.cancel_elsewhere(id_term)
        lane = self._lane
        if id_term == lane.running or id_term in lane.below:
            self.cancels.add(id_term)
            lane.mute(id_term)
        self.calls.cancel(id_term)

    def is_open(self, id_term: bytes) -> bool:
        """Tell whether a request has no answer yet.

        One in main's queue is not looked for: who wants to know has cancelled it before.
        """
        return self._has_begun(id_term) or id_term in self._async.jobs or id_term in self.turns.jobs

    def _has_begun(self, id_term: bytes) -> bool:
        """Tell whether the code of a request is known to have begun, and to have no answer yet."""
        lane = self._lane
        return (
            id_term == lane.running
            or id_term in lane.below
            or id_term in self.streams
            or self._async.has_begun(id_term)
        )

    def _imported_by(self, id_term: bytes) -> str | None:
        """Give the module that the thread of a request is importing, if it is known and does."""
        lane = self._lane
        if id_term == lane.running or id_term in lane.below:
            return imported_by_thread(lane.main)
        return imported_by_thread(self._async.ident) if id_term in self._async.jobs else None

    def cancel_elsewhere(self, id_term: bytes) -> bool:
        """Cancel a request that goes on as a task or a stream; tell whether it does."""
        stream = self.streams.get(id_term)
        if stream is None:
            return self._async.cancel(id_term)
        stream.job.cancelled = True
        if stream in self.ready:
            self.ready.remove(stream)
            stream.ready = False
        self._make_ready(stream)
        return True

    def _say_cancelled(self, id_term: bytes) -> None:
        description = failure.describe("cancelled", "", "cancelled before it began", begun=False)
        self._channel.hold([messages.error(id_term, description)])

    def _open_session(self, message: OpenSession) -> None:
        try:
            self._lane.evaluator.namespaces.open(message.name)
        except SessionError as error:
            description = failure.describe("protocol", "", str(error))
            self._channel.hold([messages.error(message.id_term, description)])
        else:
            self._channel.hold([messages.ok(message.id_term, None)])

    def _complain(self, error: ProtocolError) -> None:
        if error.id_term is not None:
            description = failure.describe_value_error("protocol", error)
            self._channel.hold([messages.error(error.id_term, description)])
            return
        from port_server import log  # noqa: PLC0415  structlog is not for the start path

        log.warning("protocol_error", reason=str(error))
