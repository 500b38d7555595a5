"""Runs what the router has queued: requests of the main lane in order, streams in slices between.

For whoever holds the baton, except where a method says otherwise; requests are run by main only.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # collections costs 2 ms
from _contextvars import copy_context  # contextvars itself is one more file
from _thread import get_ident
from select import POLLIN
from time import monotonic

from port_server.protocol.framing import FramingError
from port_server.protocol.messages import CALL_PREFIX, EVAL_PREFIX, ID_LENGTH_AT, ID_TERM_AT
from port_server.runtime.objects import Exports

from .baton import Waker, waiter
from .page import LENGTH_AT
from .router import BODY_AT, Router
from .streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from port_server.protocol.framing import Frame
    from port_server.settings import Settings

    from .async_lane import AsyncLane
    from .baton import Baton
    from .call import Call
    from .channel import Channel, Part
    from .jobs import Job
    from .lanes import MainLane
    from .router import Queued
    from .stdio import Stdio
    from .turns import Turns

# A request that took this long may have left cancels in the pipe for those read with it.
LOOK_AGAIN_US: Final = 1000
# How many reads such a look takes at most: a full pipe of 1 MiB. More waits in the pipe, which is
# what holds a flooding client back.
_LOOKS: Final = 16


class Dispatcher(Router):
    """Runs requests and streams, and waits for more.

    Attributes:
        ended: whether nothing more is read.
        guests: the ids of requests that run in threads which wait for a call.
        watching: whether main waits for more than the port.
    """

    __slots__ = (
        "_arrivals",
        "_baton",
        "_hold_s",
        "_max_queue_bytes",
        "_stdio",
        "_waker",
        "ended",
        "guests",
        "watching",
    )

    def __init__(
        self,
        baton: Baton,
        stdio: Stdio,
        channel: Channel,
        lane: MainLane,
        async_lane: AsyncLane,
        turns: Turns,
        settings: Settings,
    ) -> None:
        super().__init__(channel, lane, async_lane, turns)
        self.ended = False
        self.guests: set[bytes] = set()
        self.watching = False
        self._arrivals: deque[Stream] = deque()
        self._baton = baton
        self._hold_s = settings.reply_hold_us / 1e6
        self._max_queue_bytes = settings.max_queue_bytes
        self._stdio = stdio
        self._waker = Waker()

    @property
    def requests(self) -> int:
        """How many requests were begun."""
        return self._baton.sequence - self._baton.resumed

    @property
    def full(self) -> bool:
        """Whether so much waits that no more is to be read ahead."""
        # Counted only here, while user code runs long, and not in the hot path. Never with a call
        # under way: its answer may stand behind the requests.
        # Of a copy, because whoever reads the port adds to it meanwhile.
        return not self.calls.pending and (
            sum([len(entry[0]) for entry in tuple(self.queue)]) > self._max_queue_bytes
        )

    @property
    def elsewhere(self) -> int:
        """How many requests are under way elsewhere than in main, or not at once."""
        return len(self._async.jobs) + len(self.streams) + len(self.guests)

    @property
    def unfinished(self) -> bool:
        """Whether something is under way that ends by itself, in another thread."""
        return bool(self._async.jobs or self.turns.waiting or self.guests)

    # --- main's loop ------------------------------------------------------------------------------

    def answered(self, lane: MainLane, parts: list[Part] | None) -> None:
        """Write the reply of a request that came alone, and run what has come meanwhile."""
        if parts is not None:
            self._channel.send(parts)
        elif self._channel.held:  # by the control thread, while this ran
            self._channel.write_out()
        lane.running = None
        page = lane.page.map
        if page is not None:
            page[LENGTH_AT] = 0
        if self.queue or self.ready:  # read by the control thread meanwhile
            self.work()

    def dispatch(self, frames: list[Frame]) -> None:
        """Act on everything that one read brought, and write what came of it. For main."""
        if len(frames) == 1:
            # One request: nothing to put in order.
            frame = frames[0]
            start = frame[:ID_LENGTH_AT]
            kind = "eval" if start == EVAL_PREFIX else "call" if start == CALL_PREFIX else None
            if kind is not None and len(frame) > ID_LENGTH_AT and not self.calls.pending:
                at = BODY_AT + frame[ID_LENGTH_AT]
                if len(frame) > at:
                    id_term = bytes(frame[ID_TERM_AT:at])
                    lane = self._lane
                    self.answered(lane, lane.answer(frame, kind, id_term, at, 0.0))
                    return
        self.route(frames)
        objects = self._lane.evaluator.objects
        if objects.dropped:
            # What was released may have a __del__; it runs here and where a request ends.
            self._baton.let_go()
            objects.drop()
            self._lane.evaluator.leave_if_forked()
            self._baton.take_back()
        self.work()

    def work(self) -> None:
        """Run what is queued, and streams in between. For main."""
        while True:
            while self.ready and self.ready[0].job.cancelled:
                self.advance(self.ready)
            self._run()
            if self.ready:
                self.advance(self.ready)
                self.look_again()
            elif not self.queue:
                break
        self._channel.write_out()
        self._lane.page.clear()

    def wait(
        self, seconds: float | None = None, *, reading: bool = True, call: Call | None = None
    ) -> bool:
        """Wait for the port and for other threads to say something; False at the end of input.

        With `call`, for what was made from within it: main can run nothing else just now.
        """
        waiting = waiter(self._waker.fd)
        if reading:
            waiting.register(self._stdio.reads, POLLIN)
        self.watching = True
        try:
            self.attend()
            if call is not None:
                if call.queue or call.streams or not self.turns.held:
                    return True
            elif self.queue or self.ready or not self.unfinished:
                return True
            woken = waiting.poll(None if seconds is None else max(0.0, seconds * 1000))
        finally:
            self.watching = False
        self._waker.clear()
        self.attend()
        if any(fd != self._waker.fd for fd, _events in woken):
            return self.read()
        return True

    def job_ended(self, job: Job) -> None:
        """Take note that a job has ended elsewhere than in main. For any thread."""
        if job.session is not None:
            self.turns.ended.append(job)
        else:
            self.turns.jobs.pop(job.id_term, None)
        if self.watching or job.session in self.turns.held:
            self.nudge()

    def close_parked(self, why: str) -> None:
        """End the streams that wait for credit: none is going to come."""
        for stream in list(self.streams.values()):
            if not stream.can_go_on:
                stream.job.ended = why
                stream.job.cancelled = True
                self._make_ready(stream)
        self._async.end_parked(why)

    def nudge(self) -> None:
        """Any thread: have `attend` called soon by whoever holds the baton."""
        if self.watching:
            self._waker.wake()
        self._baton.hurry()

    def read(self) -> bool:
        """Read once and route what comes; False at the end of input."""
        frames = self._channel.read()
        if frames is None:
            return False
        self.route(frames)
        return True

    def run_one(self, queue: deque[Queued]) -> None:
        """Run the first of `queue`, and write its reply. For main."""
        frame, kind, id_term, at, arrived = queue.popleft()
        parts = self._lane.answer(frame, kind, id_term, at, (monotonic() - arrived) * 1000)
        if parts is not None:
            self._channel.hold(parts)
        self._lane.running = None
        self._channel.write_out()
        self._lane.show_below()

    def _run(self) -> None:
        """Run the requests that are queued now, in order.

        A reply waits for others, but not for slow code: where code is not known to be quick, the
        lane writes what is held before it runs; code is timed here, and only where others wait.
        """
        channel = self._channel
        lane = self._lane
        evaluator = lane.evaluator
        queue = self.queue
        held_since = began = monotonic()
        count = len(queue)
        while queue:
            frame, kind, id_term, at, arrived = queue.popleft()
            if not channel.held:
                held_since = began
            parts = lane.answer(frame, kind, id_term, at, (began - arrived) * 1000)
            if parts is not None:
                channel.hold(parts)
            lane.running = None
            now = monotonic()
            ran, evaluator.ran = evaluator.ran, None
            if ran is not None:
                ran.time(now - began < self._hold_s)
            if now - held_since > self._hold_s:
                channel.write_out()
            if (now - began) * 1e6 > LOOK_AGAIN_US and queue:
                self.look_again()
                now = monotonic()
            began = now
            count -= 1
            if count <= 0 and self.ready:  # streams have their turn
                return

    def look_again(self) -> None:
        """Read what came meanwhile: a cancel may concern a request that waits in the queue."""
        channel = self._channel
        channel.write_out()
        for _ in range(_LOOKS):
            if not channel.readable() or self.full:
                return
            try:
                if not self.read():
                    return
            except FramingError:  # stays so: the loop meets it again, after what is queued
                return

    def recover(self, error: BaseException) -> None:
        """Go on after an exception that came out of nowhere, in the middle of anything.

        The request that was being answered gets it as its error. If its reply was just written, it
        gets two, which a client can tell; none would cost its caller the whole timeout.
        """
        lane = self._lane
        id_term, lane.running = lane.running, None
        lane.below.clear()
        lane.cancelled.clear()
        lane.forget(id_term)
        if id_term is not None:
            self._channel.hold(lane.evaluator.failed(error, "run", id_term, lane.evaluator.exports))
        self.work()

    # --- streams ----------------------------------------------------------------------------------

    def advance(self, ready: deque[Stream]) -> None:
        """Let the first of `ready` go on for a slice. For main."""
        stream = ready.popleft()
        lane = self._lane
        lane.enter(stream.job.id_term)
        self._baton.let_go()
        try:
            try:
                context = stream.job.context
                assert context is not None  # since it was taken over
                parts = context.run(stream.advance, self._channel, lane.evaluator, self._hold_s)
            except BaseException as error:  # raised by a signal, while a failure was described
                evaluator = lane.evaluator
                parts = evaluator.interrupted(error, stream.job.id_term, evaluator.exports)
            lane.leave(parts is not None)
        finally:
            self._baton.take_back()
            lane.running = None
        stream.ready = False
        if parts is not None:
            del self.streams[stream.job.id_term]
            lane.page.count()
            self._channel.hold(parts)
            self.turns.end(stream.job)
            lane.settle(stream.job.id_term, True)
        elif stream.can_go_on:
            stream.ready = True
            ready.append(stream)
        self._channel.write_out()
        lane.show_below()

    def take_over(self, job: Job, value: Any) -> None:
        """Go on with a request whose value is to be awaited or iterated. For any thread.

        Called in the context of the request, which it goes on with.
        """
        job.context = copy_context()  # one that no other thread has entered
        in_main = get_ident() == self._lane.main
        kind = type(value)
        if not in_main or hasattr(kind, "__await__") or hasattr(kind, "__aiter__"):
            self._async.drive(job, value)
            return
        job.elsewhere = True
        stream = self.streams[job.id_term] = Stream(job, value)
        self._lane.page.count()
        self._arrivals.append(stream)  # `attend` is called when main has the baton again

    def attend(self) -> None:
        """Act on what other threads have left to be done."""
        if self.turns.ended:
            self.turns.attend()
        while self._arrivals:
            self._make_ready(self._arrivals.popleft())

    def adopt(self, call: Call) -> None:
        """Take over what was made from within a call of main's that is over."""
        self.queue.extend(call.queue)
        call.queue.clear()
        while call.streams:
            stream = call.streams.popleft()
            stream.job.parent = None
            self.ready.append(stream)

    def binary_as(self, id_term: bytes) -> str:
        """Tell how a request wants its binaries. For any thread."""
        job = self.turns.jobs.get(id_term) or self._async.jobs.get(id_term)
        return "str" if job is None else job.binary_as

    def run_guest(self, entry: Queued) -> None:
        """Evaluate a request in the calling thread, which waits for the call that it came from."""
        frame, kind, id_term, _at, arrived = entry
        evaluator = self._lane.evaluator
        exports = Exports(evaluator.objects)
        self.guests.add(id_term)
        self._lane.page.count()
        job = self.turns.jobs[id_term]  # begun where it was placed
        context = evaluator.context_of(job)
        context.run(self._async.enter, id_term)
        try:
            job.check_deadline((monotonic() - arrived) * 1000)
            parts = context.run(evaluator.evaluate, frame, kind, id_term, job.at, job, exports)
        except BaseException as error:
            parts = evaluator.failed(error, "options", id_term, exports)
        finally:
            evaluator.leave_if_forked()
            self._async.leave(id_term)
            if not job.elsewhere:
                self.job_ended(job)
        try:
            if parts is not None:
                self._channel.hold(parts)
                self._channel.write_out()
        finally:
            # A reply may take long to write; until then it looks as if it had never begun.
            self.guests.discard(id_term)
            self._lane.page.count()
