"""Message -> action. Knows the order: control frames of a batch first, then its requests."""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.framing import FramingError
from port_server.protocol.messages import (
    CALL_PREFIX,
    EVAL_PREFIX,
    ID_LENGTH_AT,
    ID_TERM_AT,
    Cancel,
    Init,
    Ping,
    ProtocolError,
    Request,
    Shutdown,
)
from port_server.runtime import failure

from .heartbeat import Vitals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.framing import Frame
    from port_server.settings import Settings

    from .baton import Baton
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
    """Takes frames, acts on them. For whoever holds the baton; requests are run by main only.

    Attributes:
        grace_ms: how long the owner waits after its shutdown, None without one.
        queue: requests that wait for the main lane.
        stopping: whether a shutdown was asked for: what was read is finished, then the loop ends.
    """

    __slots__ = (
        "_baton",
        "_channel",
        "_hold_s",
        "_lane",
        "_max_queue_bytes",
        "_vitals",
        "grace_ms",
        "queue",
        "stopping",
    )

    def __init__(self, baton: Baton, channel: Channel, lane: MainLane, settings: Settings) -> None:
        self.stopping = False
        self.grace_ms: int | None = None
        self.queue: deque[Queued] = deque()
        self._baton = baton
        self._channel = channel
        self._lane = lane
        self._hold_s = settings.reply_hold_us / 1e6
        self._max_queue_bytes = settings.max_queue_bytes
        self._vitals = Vitals(baton, lane, self)

    @property
    def vitals(self) -> Vitals:
        """What is told in beats and pongs."""
        return self._vitals

    @property
    def requests(self) -> int:
        """How many requests were begun."""
        return self._baton.sequence - self._baton.resumed

    @property
    def full(self) -> bool:
        """Whether so much waits that no more is to be read ahead."""
        # Counted only here, while user code runs long, and not in the hot path.
        return sum([len(entry[0]) for entry in self.queue]) > self._max_queue_bytes

    def dispatch(self, frames: list[Frame]) -> None:
        """Act on everything that one read brought, and write what came of it. For main."""
        if len(frames) == 1:
            # The hot path: one request, nothing to put in order, no look at the clock.
            frame = frames[0]
            start = frame[:ID_LENGTH_AT]
            kind = "eval" if start == EVAL_PREFIX else "call" if start == CALL_PREFIX else None
            if kind is not None and len(frame) > ID_LENGTH_AT:
                at = _BODY_AT + frame[ID_LENGTH_AT]
                if len(frame) > at:
                    id_term = bytes(frame[ID_TERM_AT:at])
                    self._channel.send(self._lane.answer(frame, kind, id_term, at, 0.0))
                    if self.queue:  # read by the control thread meanwhile
                        self._run()
                    return
        self.route(frames)
        self._run()

    def route(self, frames: list[Frame]) -> None:
        """Put requests into the queue, and act on everything else at once."""
        queue = self.queue
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
                self._control(message, queue)

    def attend(self) -> None:
        """Act on what other threads have left to be done."""

    def _run(self) -> None:
        """Run queued requests in order.

        A reply waits for others, but not for slow code: where code is not known to be quick, the
        lane writes what is held before it runs; code is timed here, and only where others wait.
        """
        channel = self._channel
        lane = self._lane
        queue = self.queue
        held_since = began = monotonic()
        while queue:
            frame, kind, id_term, at, arrived = queue.popleft()
            if not channel.held:
                held_since = began
            channel.hold(lane.answer(frame, kind, id_term, at, (began - arrived) * 1000))
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
            if not channel.readable() or self.full:
                return
            try:
                frames = channel.read()
            except FramingError:  # stays so: the loop meets it again, after what is queued
                return
            if frames is None:
                return
            self.route(frames)

    def _control(self, message: messages.Message, queue: deque[Queued]) -> None:
        channel = self._channel
        if type(message) is Cancel:
            self._cancel(message.id_term, queue)
        elif type(message) is Ping:
            channel.hold([messages.pong(message.id_term, self._vitals.status())])
        elif type(message) is Shutdown:
            self.stopping = True
            self.grace_ms = message.grace_ms
        elif type(message) is Init:
            self._complain(ProtocolError("init is the first frame or none at all; ignored"))

    def _cancel(self, id_term: bytes, queue: deque[Queued]) -> None:
        for entry in queue:
            if entry[2] == id_term:
                queue.remove(entry)
                description = failure.describe(
                    "cancelled", "", "cancelled before it began", begun=False
                )
                self._channel.hold([messages.error(id_term, description)])
                return
        # Otherwise it is unknown, already answered, or running; the last is for a later issue.

    def _complain(self, error: ProtocolError) -> None:
        if error.id_term is not None:
            description = failure.describe_value_error("protocol", error)
            self._channel.hold([messages.error(error.id_term, description)])
            return
        from port_server import log  # noqa: PLC0415  structlog is not for the start path

        log.warning("protocol_error", reason=str(error))
