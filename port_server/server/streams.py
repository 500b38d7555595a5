"""A stream: the items of an iterable, sent one by one as far as the consumer's credit reaches.

In the main thread it advances in slices, between which other requests run. Items are held and leave
many together; the first, and any after a pause, leaves at once.
"""

from __future__ import annotations

from time import monotonic

from port_server.protocol.messages import YIELD_HEAD
from port_server.runtime.api import Cancelled, Ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

    from port_server.protocol.requests import Request

    from .evaluate import Evaluator
    from .port import Port
    from .replies import Reply

# How long a stream goes on before waiting requests have their turn.
SLICE_S: Final = 0.005
# An item that takes longer than this to make keeps those before it waiting; they leave first.
_SLOW_S: Final = 0.0002
# Looking at the clock costs as much as a small item.
_ITEMS_A_LOOK: Final = 8


class Stream:
    """One stream of plain items.

    Attributes:
        ready: whether it stands in a queue of streams that can go on.
        wake: the lock that its thread waits on while it may send no more; None in main.
    """

    __slots__ = ("_items", "_source", "ready", "request", "wake")

    def __init__(self, request: Request, wake: Any = None) -> None:
        self._items: Iterator[Any] | None = None
        self._source, request.rest = request.rest, None
        self.ready = False
        self.request = request
        self.wake = wake

    def advance(self, port: Port, evaluator: Evaluator) -> Reply | None:
        """Send items for the time of a slice; give the last reply if this was the end.

        User code runs in here.
        """
        request = self.request
        exports = evaluator.exports
        value = evaluator.replies.value
        hold = port.hold
        credit = request.options.credit
        request.step = "run"
        try:
            if self._items is None:
                self._items = iter(self._source)
                self._source = None
            following = self._items.__next__
            last = monotonic()
            end = last + SLICE_S
            look = 1 if request.sent < _ITEMS_A_LOOK else _ITEMS_A_LOOK
            while request.sent < credit + request.granted and not request.cancelled:
                request.step = "run"
                try:
                    item = following()
                except StopIteration as stop:
                    request.step = "result"
                    return value(request, stop.value, exports)
                request.step = "result"
                hold(value(request, item, exports, YIELD_HEAD))
                request.sent += 1
                look -= 1
                if not look:
                    now = monotonic()
                    # No other thread writes an item of a thread later.
                    slow = self.wake is not None or now - last > _SLOW_S
                    if slow or request.sent == 1:
                        port.flush()
                    if now > end:
                        break
                    last = now
                    look = 1 if slow or request.sent < _ITEMS_A_LOOK else _ITEMS_A_LOOK
            if not request.cancelled:
                return None
            request.step = "run"
            request.closing = monotonic()
            items = f"{request.sent} item{'' if request.sent == 1 else 's'}"
            if request.why_ended:
                raise Ended(f"{request.why_ended}: sent {items} of the stream")
            raise Cancelled(f"cancelled after {items}")
        except BaseException as error:
            try:
                self.close()
            except BaseException as second:
                if not isinstance(error, Cancelled):
                    second.__context__ = error
                error = second
            return evaluator.failed(error, request)

    def close(self) -> None:
        """Let the generator's `finally` run."""
        items, self._items, self._source = self._items, None, None
        close_generator(items)


def close_generator(items: Any) -> None:
    """Let the `finally` of a generator run. Other iterators, such as files, stay open."""
    if hasattr(items, "close") and hasattr(items, "send"):
        items.close()
