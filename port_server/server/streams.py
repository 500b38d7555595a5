"""A stream: the items of an iterable, sent one by one as far as the consumer's credit reaches.

Advanced in slices, between which other requests of the main lane run. Items are held and leave
many together; the first, and any after a pause, leaves at once.
"""

from __future__ import annotations

from time import monotonic

from port_server.protocol.messages import YIELD_HEAD
from port_server.runtime.beam import Cancelled, Ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from typing import Any, Final

    from .channel import Channel, Part
    from .evaluate import Evaluator
    from .jobs import Job

# How long a stream goes on before waiting requests have their turn.
SLICE_S: Final = 0.005
# Looking at the clock costs as much as a small item.
_ITEMS_A_LOOK: Final = 8


class Stream:
    """One stream of the main lane.

    Attributes:
        job: its request.
        granted: how many items may be sent in all; the consumer's credit added up.
        ready: whether it stands in a queue of streams that can go on.
        sent: how many items were sent.
    """

    __slots__ = ("_items", "_source", "granted", "job", "ready", "sent")

    def __init__(self, job: Job, source: Any) -> None:
        self._items: Iterator[Any] | None = None
        self._source = source
        self.granted = job.credit
        self.job = job
        self.ready = False
        # Two counters with one writer each, because `-=` in two threads loses one of them.
        self.sent = 0

    @property
    def can_go_on(self) -> bool:
        """Whether there is something to do: an item to be made, or an end."""
        return self.sent < self.granted or self.job.cancelled

    def advance(self, channel: Channel, evaluator: Evaluator, hold_s: float) -> list[Part] | None:
        """Send items for the time of a slice; give the last reply if this was the end.

        User code runs in here.
        """
        job = self.job
        id_term = job.id_term
        exports = evaluator.exports
        reply = evaluator.reply
        hold = channel.hold
        step = "run"
        try:
            if self._items is None:
                self._items = iter(self._source)
                self._source = None
            following = self._items.__next__
            last = monotonic()
            end = last + SLICE_S
            look = 1 if self.sent < _ITEMS_A_LOOK else _ITEMS_A_LOOK
            while self.sent < self.granted and not job.cancelled:
                step = "run"
                try:
                    item = following()
                except StopIteration as stop:
                    step = "result"
                    return reply(id_term, stop.value, job, exports)
                step = "result"
                hold(reply(id_term, item, job, exports, YIELD_HEAD))
                self.sent += 1
                look -= 1
                if not look:
                    now = monotonic()
                    # Slow enough that the next one would keep these waiting.
                    if (slow := now - last > hold_s) or self.sent == 1:
                        channel.write_out()
                    if now > end:
                        break
                    last = now
                    look = 1 if slow or self.sent < _ITEMS_A_LOOK else _ITEMS_A_LOOK
            if not job.cancelled:
                return None
            step = "run"
            evaluator.closing = id_term, monotonic()
            if job.ended:
                raise Ended(f"{job.ended}: {self.sent} items of the stream were sent")
            raise Cancelled(f"cancelled after {self.sent} item{'' if self.sent == 1 else 's'}")
        except BaseException as error:
            try:
                self.close()
            except BaseException as second:
                if not isinstance(error, Cancelled):
                    second.__context__ = error
                error = second
            return evaluator.failed(error, step, id_term, exports, job)

    def close(self) -> None:
        """Let the generator's `finally` run."""
        items, self._items, self._source = self._items, None, None
        close = getattr(items, "close", None)
        if close is not None and hasattr(items, "send"):  # a generator, not a file
            close()


class Credit:
    """How many items a stream of the event loop may send, and has sent."""

    __slots__ = ("granted", "more", "sent")

    def __init__(self, more: asyncio.Event, granted: int) -> None:
        self.more = more
        self.granted = granted
        self.sent = 0


class PlainItems:
    """A plain iterable, as what an awaitable gave, read as an async one."""

    __slots__ = ("_items", "result")

    def __init__(self, value: Any) -> None:
        self._items = iter(value)
        self.result: Any = None

    async def __anext__(self) -> Any:
        try:
            return next(self._items)
        except StopIteration as stop:
            self.result = stop.value
        raise StopAsyncIteration

    async def aclose(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None and hasattr(self._items, "send"):
            close()
