"""Calls of Python into the BEAM: the table of those under way, and the three ways to wait for one.

Main reads the port while it waits, and runs what was made from within the call on top of it. Other
threads wait on a lock, and run such requests as well: their stack is the one that waits for them,
so nothing can lock up. Async code awaits.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident
from itertools import count

from port_server.etf import EncodeError, encode_parts
from port_server.protocol import messages, outgoing
from port_server.runtime.beam import Cancelled
from port_server.runtime.frames import imported_by_thread
from port_server.runtime.objects import Exports

from .call import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Final, NoReturn

    from port_server.protocol.framing import Frame
    from port_server.settings import Settings

    from .async_lane import AsyncLane
    from .baton import Baton
    from .channel import Channel, Part
    from .control import Control
    from .dispatcher import Dispatcher
    from .lanes import MainLane
    from .stdio import Stdio

# Frames of the interpreter's own that one level of nesting takes, and then some: below that much
# room a RecursionError could strike in the middle of ours.
HEADROOM: Final = 80
_NOBODY: Final = messages.id_term_of(b"")
GONE: Final = "the other side of the port is gone, nobody answers any more"


class Calls:
    """The calls of one server; what `runtime.beam` reaches the BEAM through.

    Attributes:
        ask: does what is to be done for a call from main if it is a usual one, else nothing, and
            gives NotImplemented; None where there is no C for it.
        gone: whether no answer comes any more.
        numbers: what calls are told apart by.
        pending: those that are not answered, by their id.
        why: the message of the exception for code that waits once no answer comes any more.
    """

    __slots__ = (
        "_async",
        "_baton",
        "_channel",
        "_control",
        "_dispatcher",
        "_lane",
        "_settings",
        "_stdio",
        "ask",
        "gone",
        "numbers",
        "pending",
        "why",
    )

    def __init__(
        self,
        baton: Baton,
        stdio: Stdio,
        channel: Channel,
        lane: MainLane,
        dispatcher: Dispatcher,
        async_lane: AsyncLane,
        control: Control,
        settings: Settings,
    ) -> None:
        self.ask: Callable[[bytes, Any, list[Any]], Any] | None = None
        self.pending: dict[bytes, Call] = {}
        self._async = async_lane
        self.gone = False
        self.why = GONE
        self._baton = baton
        self._channel = channel
        self._control = control
        self._dispatcher = dispatcher
        self._lane = lane
        self.numbers = count(1)
        self._settings = settings
        self._stdio = stdio

    def limit(self, settings: Settings) -> None:
        """Hold later calls to other settings."""
        self._settings = settings

    # --- what user code reaches -------------------------------------------------------------------

    def request_id(self) -> bytes | None:
        """Give the id, as a term, of the request that the code which asks belongs to."""
        if get_ident() == self._lane.main:
            return self._lane.running
        return self._async.current()

    def alive(self, id_term: bytes) -> bool:
        """Tell whether that request has not ended."""
        lane = self._lane
        return (
            id_term == lane.running
            or id_term in lane.below
            or id_term in self._async.jobs
            or id_term in self._dispatcher.streams
            or id_term in self._dispatcher.turns.jobs
            or id_term in self._dispatcher.guests
        )

    def invoke(self, id_term: bytes | None, function: Any, args: list[Any]) -> Any:
        """Call a function in the BEAM, and wait as the calling thread has to.

        Raises:
            ElixirError: it failed.
            EncodeError: an argument cannot be written.
            RecursionError: too many calls wait for each other.
            RuntimeError: nobody could read the answer here.
        """
        if self._stdio.forked:
            raise RuntimeError("a forked process cannot call into the BEAM: it has no port")
        ident = get_ident()
        lane = self._lane
        if ident == lane.main:
            if lane.running is None:
                # A __del__ or a signal handler, between requests: main would read into itself.
                raise RuntimeError("there is no request that could call into the BEAM just now")
            return self._in_main(id_term or lane.running, function, args)
        if ident == self._control.ident:
            raise RuntimeError("this is no place to call into the BEAM from")
        if ident == self._async.ident:
            self._async.check_not_init()
            return self._await(id_term or _NOBODY, function, args)
        return self._in_thread(id_term or _NOBODY, function, args)

    def send(self, pid: Any, term: Any) -> None:
        """Send a message to a process; wait while too much is on its way."""
        if self._stdio.forked:
            raise RuntimeError("a forked process cannot send into the BEAM")
        try:
            frame = outgoing.send(pid, term)
        except EncodeError as error:
            raise error.at("message") from None
        self._channel.hold([frame])
        self._channel.write_out()
        self._lane.delivered(len(frame))

    # --- for the dispatcher -----------------------------------------------------------------------

    def maker_of(self, call_id: bytes) -> bytes | None:
        """Give the request that made a call."""
        call = self.pending.get(call_id)
        return None if call is None else call.id_term

    def answer(self, call_id: bytes, frame: Frame, at: int) -> None:
        """Take in an answer; one to a call that is over already is dropped."""
        call = self.pending.pop(call_id, None)
        if call is not None:
            call.answered = (frame, at)
            call.wake()

    def cancel(self, id_term: bytes) -> None:
        """Let the calls of a cancelled request end where they wait in threads.

        Not inside of an import: there the BEAM ends them.
        """
        for call in list(self.pending.values()):
            if call.id_term != id_term or call.lock is None:
                continue
            if imported_by_thread(call.thread) is None:
                call.failure = Cancelled("cancelled while it waited for a call into the BEAM")
                call.wake()

    def fail_all(self) -> None:
        """Let everyone who waits know that no answer comes, and whoever calls from now on."""
        self.gone = True
        for call in list(self.pending.values()):
            call.failure = RuntimeError(self.why)
            call.wake()

    # --- the three ways to wait -------------------------------------------------------------------

    def _written(self, call: Call, function: Any, args: list[Any], exports: Exports) -> list[Part]:
        """Give the frame of a call, in parts. Runs user code: it asks arguments for their values.

        Raises:
            EncodeError: an argument cannot be written.
        """
        settings = self._settings
        try:
            parts: list[Part] = encode_parts(
                args,
                head=outgoing.invoke_head(call.id_term, call.id, function),
                default=exports.export,
                max_depth=settings.max_depth,
                max_bytes=settings.max_frame_bytes,
            )
        except BaseException as error:
            self.not_written(error, exports)
        if exports.ids:
            parts = messages.with_objects(parts, exports.take())
        return parts

    def not_written(self, error: BaseException, exports: Exports) -> NoReturn:
        """Raise what kept the arguments of a call from being written."""
        exports.undo()
        if isinstance(error, EncodeError):
            raise error.at("args") from None
        raise error

    def _begin(self, call: Call, function: Any, args: list[Any]) -> None:
        parts = self._written(call, function, args, Exports(self._lane.evaluator.objects))
        self.pending[call.id] = call
        if self.gone:  # looked at once the call can be seen: nobody is missed
            raise RuntimeError(self.why)
        self._channel.hold(parts)
        self._channel.write_out()

    def _end(self, call: Call) -> None:
        self.pending.pop(call.id, None)

    def result(self, call: Call) -> Any:
        """Read the result of a call that is over.

        Raises:
            ElixirError: the call failed.
            DecodeError: it cannot be read.
        """
        dispatcher = self._dispatcher
        # Most are answered while there is no request but plain ones.
        special = dispatcher.turns.jobs or self._async.jobs
        return call.result(
            dispatcher.binary_as(call.id_term) if special else "str", self._settings.max_depth
        )

    def _in_main(self, id_term: bytes, function: Any, args: list[Any]) -> Any:
        """Call from main: the way that most calls take. For most of those there is C, see `ask`."""
        if self.ask is not None:
            result = self.ask(id_term, function, args)
            if result is not NotImplemented:
                return result
        lane = self._lane
        lane.check()
        self._check_depth(len(lane.below))
        call = Call(next(self.numbers), id_term)
        baton = self._baton
        paused = lane.pause()
        try:
            # Main's own exports are free: `pause` has put aside what they were at.
            parts = self._written(call, function, args, lane.evaluator.exports)
            # Before it is written, or the control thread might read the answer.
            baton.take_back()
            try:
                self.pending[call.id] = call
                if self.gone:
                    raise RuntimeError(self.why)
                self._channel.send(parts)
                self._pump(call)
            finally:
                self._end(call)
                baton.let_go()
        finally:
            lane.resume(paused)
        lane.check()
        return self.result(call)

    def go_on(self, call: Call, data: bytes | None) -> None:
        """Wait on for the answer to a call of main's, where the next read may bring something else.

        Args:
            call: one that is pending, and written. With the baton.
            data: what was read already, or None at the end.
        """
        if data is None:
            raise RuntimeError(self.why)
        if data:
            self._dispatcher.route(self._channel.reader.feed(data))
            self._channel.write_out()  # a pong, an error: what routing has held
        self._pump(call)

    def _pump(self, call: Call) -> None:
        """Read the port until the call is answered, and run what was made from within it."""
        lane = self._lane
        dispatcher = self._dispatcher
        try:
            while not call.over:
                lane.check()
                if call.queue:
                    dispatcher.run_one(call.queue)
                elif call.streams:
                    dispatcher.advance(call.streams)
                # For a session that another lane has: its end is to be heard as well.
                elif not (
                    dispatcher.wait(call=call) if dispatcher.turns.held else dispatcher.read()
                ):
                    raise RuntimeError(self.why)
                else:
                    self._channel.write_out()
        finally:
            dispatcher.adopt(call)
            lane.show_below()

    def _in_thread(self, id_term: bytes, function: Any, args: list[Any]) -> Any:
        self._check_depth(0)
        call = Call(next(self.numbers), id_term)
        call.lock = allocate_lock()
        call.lock.acquire()
        call.thread = get_ident()
        try:
            self._begin(call, function, args)
            # Main may be running code, and reads only when that has ended.
            self._baton.hurry()
            while not call.over:
                call.lock.acquire()
                while call.queue:
                    self._dispatcher.run_guest(call.queue.popleft())
        finally:
            self._end(call)
            while call.queue:  # came with the answer
                self._dispatcher.run_guest(call.queue.popleft())
        return self.result(call)

    async def _awaited(self, call: Call, function: Any, args: list[Any]) -> Any:
        call.future = self._async.loop.create_future()
        try:
            self._begin(call, function, args)
            self._baton.hurry()
            await call.future
        finally:
            self._end(call)
        return self.result(call)

    def _await(self, id_term: bytes, function: Any, args: list[Any]) -> Awaitable[Any]:
        return self._awaited(Call(next(self.numbers), id_term), function, args)

    def _check_depth(self, waiting: int) -> None:
        limit = self._settings.max_nested_calls
        if waiting >= limit:
            raise RecursionError(
                f"{limit} calls into the BEAM wait for each other (max_nested_calls): Python calls "
                f"Elixir, which calls Python, and so on without an end"
            )
        try:
            # A negative number gives the frame itself, which is there as well.
            sys._getframe(sys.getrecursionlimit() - HEADROOM)  # noqa: SLF001
        except ValueError:
            return
        raise RecursionError("maximum recursion depth nearly reached in a call into the BEAM")
