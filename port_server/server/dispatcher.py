"""Message -> action. Knows the order: control frames of a batch first, then its requests."""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.framing import FramingError
from port_server.protocol.messages import (
    CALL_PREFIX,
    EVAL_PREFIX,
    ID_LENGTH_AT,
    ID_TERM_AT,
    Ack,
    Cancel,
    CloseSession,
    Init,
    OpenSession,
    Ping,
    ProtocolError,
    Release,
    Request,
    Shutdown,
)
from port_server.runtime import failure
from port_server.runtime.namespace import SessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.framing import Frame
    from port_server.settings import Settings

    from .channel import Channel
    from .lanes import MainLane

    # (frame, kind, id term, where its body begins, when it was read)
    Queued = tuple[Frame, str, bytes, int, float]

_BODY_AT: Final = ID_LENGTH_AT + 1
# A request that took this long may have left cancels in the pipe for those that were read with it.
_LOOK_AGAIN_S: Final = 0.001
# How many reads such a look takes at most: a full pipe of 1 MiB. More waits in the pipe, which is
# what holds a flooding client back.
_LOOKS: Final = 16


class Dispatcher:
    """Takes frames, acts on them.

    Attributes:
        stopping: whether a shutdown was asked for: what was read is finished, then the loop ends.
        grace_ms: how long the owner waits after its shutdown, None without one.
        requests: how many were answered.
    """

    __slots__ = (
        "_channel",
        "_hold_s",
        "_lane",
        "_queue",
        "_settings",
        "_started",
        "grace_ms",
        "requests",
        "stopping",
    )

    def __init__(self, channel: Channel, lane: MainLane, settings: Settings) -> None:
        self.stopping = False
        self.grace_ms: int | None = None
        self.requests = 0
        self._channel = channel
        self._lane = lane
        self._queue: deque[Queued] = deque()
        self._settings = settings
        self._hold_s = settings.reply_hold_us / 1e6
        self._started = monotonic()

    def dispatch(self, frames: list[Frame]) -> None:
        """Act on everything that one read brought, and write what came of it."""
        if len(frames) == 1:
            # The hot path: one request, nothing to put in order, no look at the clock.
            frame = frames[0]
            start = frame[:ID_LENGTH_AT]
            kind = "eval" if start == EVAL_PREFIX else "call" if start == CALL_PREFIX else None
            if kind is not None and len(frame) > ID_LENGTH_AT:
                at = _BODY_AT + frame[ID_LENGTH_AT]
                if len(frame) > at:
                    self.requests += 1
                    id_term = bytes(frame[ID_TERM_AT:at])
                    lane = self._lane
                    self._channel.send(lane.answer(frame, kind, id_term, at, 0.0))
                    lane.running = None
                    return
        self._route(frames)
        # What was released may have a __del__; it runs here and where a request ends.
        self._lane.objects.drop()
        self._run()

    def recover(self, error: BaseException) -> None:
        """Go on after an exception that came out of nowhere, in the middle of anything.

        The request that was being answered gets it as its error. If its reply was just written, it
        gets two, which a client can tell; none would cost its caller the whole timeout.
        """
        id_term, self._lane.running = self._lane.running, None
        self._lane.output.running = None
        if id_term is not None:
            self._lane.output.end(id_term)
            description = failure.describe_exception(error, self._settings)
            self._channel.hold([messages.error(id_term, description)])
        self._run()

    def _run(self) -> None:
        """Run queued requests in order.

        A reply waits for others, but not for slow code: where code is not known to be quick, the
        lane writes what is held before it runs; code is timed here, and only where others wait.
        """
        queue = self._queue
        channel = self._channel
        lane = self._lane
        held_since = began = monotonic()
        while queue:
            frame, kind, id_term, at, arrived = queue.popleft()
            if not channel.held:
                held_since = began
            self.requests += 1
            channel.hold(lane.answer(frame, kind, id_term, at, (began - arrived) * 1000))
            lane.running = None
            now = monotonic()
            if lane.ran is not None:
                lane.ran.time(quick=now - began < self._hold_s)
            if now - held_since > self._hold_s:
                channel.write_out()
            if now - began > _LOOK_AGAIN_S and queue:
                self._look_again()
                now = monotonic()
            began = now
        channel.write_out()

    def _look_again(self) -> None:
        """Read what came meanwhile: a cancel may concern a request that waits in the queue."""
        channel = self._channel
        channel.write_out()
        for _ in range(_LOOKS):
            if not channel.readable():
                return
            try:
                frames = channel.read()
            except FramingError:  # stays so: the loop meets it again, after what is queued
                return
            if frames is None:
                return
            self._route(frames)

    def _route(self, frames: list[Frame]) -> None:
        """Put requests into the queue, and act on everything else at once."""
        queue = self._queue
        arrived = monotonic()
        for frame in frames:
            start = frame[:ID_LENGTH_AT]
            kind = "eval" if start == EVAL_PREFIX else "call" if start == CALL_PREFIX else None
            if kind is not None and len(frame) > ID_LENGTH_AT:
                at = _BODY_AT + frame[ID_LENGTH_AT]
                if len(frame) > at:
                    queue.append((frame, kind, bytes(frame[ID_TERM_AT:at]), at, arrived))
                    continue
            try:
                message = messages.parse(frame)
            except ProtocolError as error:
                self._complain(error)
                continue
            if type(message) is Request:
                at = message.body_at
                queue.append((frame, message.kind, message.id_term, at, arrived))
            else:
                self._control(message)

    def _control(self, message: messages.Message) -> None:
        channel = self._channel
        if type(message) is Cancel:
            self._cancel(message.id_term)
        elif type(message) is Ping:
            objects = self._lane.objects
            status = {
                "os_pid": os.getpid(),
                "uptime_ms": int((monotonic() - self._started) * 1000),
                "requests": self.requests,
                "objects": len(objects),
                "sessions": self._lane.namespaces.sessions,
            }
            channel.hold([messages.pong(message.id_term, status)])
        elif type(message) is Ack:
            self._lane.output.ack(message.id_term, message.count)
        elif type(message) is Release:
            self._lane.objects.release(message.ids)
        elif type(message) is OpenSession:
            self._open_session(message)
        elif type(message) is CloseSession:
            self._lane.objects.dropped.append(self._lane.namespaces.close(message.name))
        elif type(message) is Shutdown:
            self.stopping = True
            self.grace_ms = message.grace_ms
        elif type(message) is Init:
            self._complain(ProtocolError("init is the first frame or none at all; ignored"))

    def _cancel(self, id_term: bytes) -> None:
        for entry in self._queue:
            if entry[2] == id_term:
                self._queue.remove(entry)
                description = failure.describe(
                    "cancelled", "", "cancelled before it began", begun=False
                )
                self._channel.hold([messages.error(id_term, description)])
                return
        if id_term == self._lane.running:
            self._lane.output.mute(id_term)
        # Otherwise it is unknown, already answered, or running; the last is for a later issue.

    def _open_session(self, message: OpenSession) -> None:
        try:
            self._lane.namespaces.open(message.name)
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
