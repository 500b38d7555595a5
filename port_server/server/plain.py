"""The plain request: an eval or call that comes alone, with the options that are usual.

The hot path, for main: nothing to put in order, no look at the clock, and nothing is cut out of
the bytes that were read: a message is evaluated where it stands, behind its header. Whatever is
not plain is left untouched, for the frame reader and the dispatcher.

For evals all of it is C (plain.c), from the read to the write, where that could be built, and there
several may come together; what is here does the rest.
"""

from __future__ import annotations

import sys
from time import monotonic

from port_server.etf import codec_name
from port_server.protocol.framing import HEADER_BYTES, length_at
from port_server.protocol.messages import (
    CALL_PREFIX,
    EVAL_PREFIX,
    ID_LENGTH_AT,
    ID_TERM_AT,
    with_objects,
)
from port_server.runtime.snippet import PLAIN

from .call import Call
from .calls import HEADROOM
from .dispatcher import LOOK_AGAIN_US
from .evaluate import check_yield, no_eval

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Literal

    from port_server.settings import Settings

    from .lifecycle import Server

# How such a message begins; an id has 8 bytes. The places are those in what was read.
_ID_BYTES: Final = 8
_EVAL: Final = EVAL_PREFIX + bytes([_ID_BYTES])
_CALL: Final = CALL_PREFIX + bytes([_ID_BYTES])
_KINDS: Final = {_EVAL: "eval", _CALL: "call"}
_ID_TERM_AT: Final = HEADER_BYTES + ID_TERM_AT
_ID_AT: Final = HEADER_BYTES + ID_LENGTH_AT + 1
_BODY_AT: Final = _ID_AT + _ID_BYTES


class PlainRequests:
    """Answers plain requests.

    Attributes:
        receive: waits for bytes, between frames; True if they were answered already, else the bytes
            for `answer`, or None at the end.
    """

    __slots__ = ("_channel", "_dispatcher", "_lane", "_reader", "receive")

    receive: Callable[[], bytes | Literal[True] | None]

    def __init__(self, server: Server, settings: Settings) -> None:
        self._channel = server.channel
        self._dispatcher = server.dispatcher
        self._lane = server.lane
        self._reader = server.channel.reader
        self.receive = server.channel.receive
        if codec_name == "native":
            self._use_c(server, settings)

    def answer(self, data: bytes) -> bool:
        """Answer what one read brought, between frames, if it is one plain request.

        Returns:
            False if it is anything else, or not whole; then nothing was done.
        """
        kind = _KINDS.get(data[HEADER_BYTES:_ID_AT])
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

    def _use_c(self, server: Server, settings: Settings) -> None:
        try:
            from port_server.etf import native  # noqa: PLC0415  not everywhere built

            from ._plain import Plain  # noqa: PLC0415  as above
        except ImportError:
            return
        evaluator, lane, baton = server.evaluator, server.lane, server.baton
        channel, dispatcher, calls = server.channel, server.dispatcher, server.calls
        plain = Plain(
            stdio=server.stdio,
            channel=channel,
            lane=lane,
            output=server.output,
            baton=baton,
            evaluator=evaluator,
            streams=server.streams,
            window=server.window,
            dispatcher=dispatcher,
            exports=evaluator.exports,
            held=channel.held,
            queue=dispatcher.queue,
            ready=dispatcher.ready,
            dropped=evaluator.objects.dropped,
            requests=server.output.requests,
            snippets=evaluator.snippets.entries,
            base=evaluator.namespaces.base,
            names=evaluator.namespaces.names,
            namespaces=evaluator.namespaces,
            sys_dict=sys.__dict__,
            take_baton=baton.lock.acquire,
            leave_baton=baton.lock.release,
            take_writing=channel.writing.acquire,
            leave_writing=channel.writing.release,
            compile=evaluator.compile,
            check_yield=check_yield,
            not_an_eval=no_eval,
            export_value=evaluator.exports.export,
            collect=evaluator.garbage.collect,
            with_objects=with_objects,
            plain_kind=PLAIN,
            native=native,
            page=lane.page.map,
            monotonic=monotonic,
            enqueue=dispatcher.queue.append,
            dequeue=dispatcher.queue.popleft,
            unshift=dispatcher.queue.appendleft,
            hold_back=channel.held.append,
            take_held=channel.held.popleft,
            put_back=channel.held.appendleft,
            calls=calls,
            pending=calls.pending,
            numbers=calls.numbers,
            new_call=Call,
            reader=channel.reader,
            below=lane.below,
            cancelled=lane.cancelled,
            turns_held=dispatcher.turns.held,
            turns_jobs=dispatcher.turns.jobs,
            tasks=server.async_lane.jobs,
            get_frame=sys._getframe,  # noqa: SLF001  to ask how deep the stack is
            recursion_limit=sys.getrecursionlimit,
            new_context=evaluator.namespaces.new_context,
            read_bytes=settings.read_bytes,
            max_frame_bytes=settings.max_frame_bytes,
            max_depth=settings.max_depth,
            held_replies=settings.held_replies,
            reply_hold_us=settings.reply_hold_us,
            look_again_us=LOOK_AGAIN_US,
            max_nested_calls=settings.max_nested_calls,
            headroom=HEADROOM,
        )
        server.window.evaluating = plain.is_evaluating
        self.receive = plain.turn
        lane.run_plain = plain.run
        calls.ask = plain.ask
