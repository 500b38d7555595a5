"""The plain request: one eval or call that comes alone, with the options that are usual.

The hot path, for main: nothing to put in order, no look at the clock, and nothing is cut out of
the bytes that were read: a message is evaluated where it stands, behind its header. Whatever is
not plain is left untouched, for the frame reader and the dispatcher.
"""

from __future__ import annotations

from port_server.protocol.framing import HEADER_BYTES, length_at
from port_server.protocol.messages import CALL_PREFIX, EVAL_PREFIX, ID_LENGTH_AT, ID_TERM_AT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.framing import FrameReader

    from .dispatcher import Dispatcher
    from .lanes import MainLane

# How such a message begins; an id has 8 bytes. The places are those in what was read.
_ID_BYTES: Final = 8
_EVAL: Final = EVAL_PREFIX + bytes([_ID_BYTES])
_CALL: Final = CALL_PREFIX + bytes([_ID_BYTES])
_ID_TERM_AT: Final = HEADER_BYTES + ID_TERM_AT
_ID_AT: Final = HEADER_BYTES + ID_LENGTH_AT + 1
_BODY_AT: Final = _ID_AT + _ID_BYTES


class PlainRequests:
    """Answers plain requests."""

    __slots__ = ("_dispatcher", "_lane", "_reader")

    def __init__(self, reader: FrameReader, lane: MainLane, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._lane = lane
        self._reader = reader

    def answer(self, data: bytes) -> bool:
        """Answer what one read brought, between frames, if it is one plain request.

        Returns:
            False if it is anything else, or not whole; then nothing was done.
        """
        start = data[HEADER_BYTES:_ID_AT]
        kind = "eval" if start == _EVAL else "call" if start == _CALL else None
        if kind is None:
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
        parts = lane.run(data, kind, data[_ID_TERM_AT:_BODY_AT], at, None)
        self._dispatcher.answered(lane, parts)
        return True
