"""The plain request: one eval or call that comes alone, with the options that are usual.

The hot path, for main: nothing to put in order, no look at the clock, and nothing is cut out of
the bytes that were read: a message is evaluated where it stands, behind its header. Whatever is
not plain is left untouched, for the frame reader and the dispatcher.
"""

from __future__ import annotations

from port_server.protocol.framing import HEADER_BYTES, length_at
from port_server.protocol.messages import CALL_PREFIX, EVAL_PREFIX, ID_LENGTH_AT, ID_TERM_AT

from .page import LENGTH_AT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from .channel import Channel
    from .dispatcher import Dispatcher
    from .lanes import MainLane

# How such a message begins; an id has 8 bytes. The places are those in what was read.
_ID_BYTES: Final = 8
_EVAL: Final = EVAL_PREFIX + bytes([_ID_BYTES])
_CALL: Final = CALL_PREFIX + bytes([_ID_BYTES])
_KINDS: Final = (_EVAL, _CALL)
_ID_TERM_AT: Final = HEADER_BYTES + ID_TERM_AT
_ID_AT: Final = HEADER_BYTES + ID_LENGTH_AT + 1
_BODY_AT: Final = _ID_AT + _ID_BYTES


class PlainRequests:
    """Answers plain requests."""

    __slots__ = ("_channel", "_dispatcher", "_lane", "_reader")

    def __init__(self, channel: Channel, lane: MainLane, dispatcher: Dispatcher) -> None:
        self._channel = channel
        self._dispatcher = dispatcher
        self._lane = lane
        self._reader = channel.reader

    def answer(self, data: bytes) -> bool:
        """Answer what one read brought, between frames, if it is one plain request.

        Returns:
            False if it is anything else, or not whole; then nothing was done.
        """
        start = data[HEADER_BYTES:_ID_AT]
        if start not in _KINDS:
            return False
        lane = self._lane
        options = lane.usual_options
        at = _BODY_AT + len(options)
        size = len(data) - HEADER_BYTES
        if (
            data[_BODY_AT:at] != options
            or length_at(data)[0] != size
            or size > self._reader.max_frame_bytes
        ):
            return False
        id_term = data[_ID_TERM_AT:_BODY_AT]
        if start == _EVAL:
            parts = lane.run_plain(data, id_term, at)
        else:
            parts = lane.run(data, "call", id_term, at, None)
        dispatcher = self._dispatcher
        if parts is None or dispatcher.queue or dispatcher.ready:
            dispatcher.answered(lane, parts)
            return True
        self._channel.send(parts)
        lane.running = None
        page = lane.page.map
        if page is not None:
            page[LENGTH_AT] = 0
        return True
