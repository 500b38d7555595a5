"""The main loop. Requests go to the scheduler and out of it to executors; all else acts at once.

For the holder of the reader lock, main or the control thread, except where a method says otherwise.
Runs no user code itself.
"""

from __future__ import annotations

from _thread import get_ident
from select import POLLIN, poll
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.framing import FramingError
from port_server.protocol.messages import (
    Answer,
    Cancel,
    ProtocolError,
    Recall,
    Segment,
    Shutdown,
)
from port_server.protocol.requests import Request, Requests
from port_server.runtime.api import Cancelled
from port_server.runtime.frames import imported_by_thread

from .streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.framing import Frame

    from .calls import Call
    from .commands import Commands
    from .core import Core
    from .executors import Executors
    from .port import Envelope

# After code that ran for this time the pipe may hold cancels of requests that are queued.
_LOOK_AGAIN_S: Final = 0.001
# Most reads of such a look: a full pipe of 1 MiB. The rest stays in the pipe, which holds a
# flooding client back.
_LOOKS: Final = 16


class Dispatcher:
    """Acts on frames, and runs what is due.

    Attributes:
        grace_ms: how long the server may take to end; the owner's shutdown says it anew.
        stopping: whether a shutdown was asked for: what was read is finished, then the loop ends.
    """

    def __init__(self, core: Core, executors: Executors, commands: Commands) -> None:
        self.grace_ms = core.settings.exit_grace_ms
        self.stopping = False
        self._async = executors.loop
        self._code = core.code
        self._commands = commands
        self._lock = core.lock
        self._main = executors.main
        self._port = core.port
        self._replies = core.replies
        self._requests = Requests(as_bytes=core.settings.as_bytes)
        self._scheduler = core.scheduler
        self._shared = core.shared
        self._thread = core.thread
        self._threads = executors.threads

    # --- main's loop ------------------------------------------------------------------------------

    def serve(self) -> None:
        """Read and run until there is no more input, or a shutdown was asked for. For main."""
        port, scheduler, threads = self._port, self._scheduler, self._threads
        in_threads = threads.limit > 0
        run = threads.run if in_threads else self._main.run
        kept = self._requests.kept
        while not (self.stopping or port.gone):
            if scheduler.ended:
                self.attend()
                self.work()
            full = in_threads and scheduler.full
            if full or scheduler.waiting:  # for the end of a request in another thread
                if not self.wait(reading=not full):
                    return
                self.drop_released()
                self.work()
                continue
            received = port.receive(kept)
            if type(received) is tuple and len(received) == 5:
                options = received[3]
                if options.plain and not scheduler.calls:
                    request = Request(*received)
                    if options.session is None:
                        run(request)
                    elif scheduler.begin(request):
                        run(request)
                        if request.executor is None and not in_threads:
                            following = scheduler.end(request)
                            if following is not None:
                                self._begin(following)
                    else:
                        request.arrived = monotonic()
                    if scheduler.queue or scheduler.ready:  # put there by the control thread
                        self.work()
                    continue
            if not self._take(received):
                return
            received = None  # its buffer would be in use during the next read
            self.drop_released()
            self.work()

    def work(self) -> None:
        """Run what is due. For main."""
        scheduler = self._scheduler
        began = monotonic()
        while (due := scheduler.next()) is not None:
            if isinstance(due, Stream):
                self._advance(due)
            else:
                self._run(due)
            now = monotonic()
            if now - began > _LOOK_AGAIN_S and (scheduler.queue or scheduler.ready):
                self._look_again()
            began = now
        self._port.flush()

    def run_call(self, call: Call) -> None:
        """Run one thing that was made from within a call. For main."""
        if call.queue:
            self._run(call.queue.popleft())
        else:
            self._advance(call.streams.popleft())

    def _run(self, request: Request) -> None:
        if request.cancelled:  # before it has begun
            self._never_begin(request)
            return
        self._main.run(request)
        if self._thread.stack:
            self._main.show_below()
        if request.executor is None:
            self.finish(request)

    def _advance(self, stream: Stream) -> None:
        self._main.advance(stream)
        if stream.request.ended:
            self.attend()
        else:
            self._scheduler.make_ready(stream)

    def _never_begin(self, request: Request) -> None:
        self._port.hold(self._replies.never_begun(request))
        self.finish(request)

    def finish(self, request: Request) -> None:
        """Note the end of a request, and begin the one that waited for it."""
        following = self._scheduler.end(request)
        if following is not None:
            self._begin(following)

    def attend(self) -> None:
        """Act on requests that have ended in other threads."""
        for request in self._scheduler.settle():
            self._begin(request)

    def wait(
        self, seconds: float | None = None, *, reading: bool = True, call: Call | None = None
    ) -> bool:
        """Wait for the port and for other threads; False at the end of input. For main.

        With `call`, wait for requests made from within it: main can run no others now.
        """
        scheduler, lock = self._scheduler, self._lock
        waiting = poll()
        waiting.register(lock.wake_main.fd, POLLIN)
        if reading:
            waiting.register(self._port.reads, POLLIN)
        lock.watch(True)
        try:
            self.attend()
            if call is not None:
                if call.queue or call.streams or call.over:
                    return True
            elif (
                scheduler.queue
                or scheduler.ready
                or not (scheduler.elsewhere or scheduler.for_threads)
            ):
                return True
            woken = waiting.poll(None if seconds is None else max(0.0, seconds * 1000))
        finally:
            lock.watch(False)
        lock.wake_main.clear()
        self.attend()
        if any(fd != lock.wake_main.fd for fd, _events in woken):
            return self.read()
        return True

    def read(self) -> bool:
        """Read once and act on it; False at the end of input."""
        return self._take(self._port.receive(self._requests.kept))

    def _take(self, received: Envelope | list[Frame] | None) -> bool:
        if type(received) is tuple:
            if len(received) == 3:
                self._answer(*received)
            else:
                self.receive([received[0]])
        elif received is None:
            return False
        else:
            assert isinstance(received, list)
            self.receive(received)
        return True

    def _look_again(self) -> None:
        """Read what has arrived: it may hold the cancel of a queued request."""
        self._port.flush()
        for _ in range(_LOOKS):
            if not self._port.readable() or self._scheduler.full:
                return
            try:
                if not self.read():
                    return
            except FramingError:  # the next read raises it again, after the queued requests
                return

    def drop_released(self) -> None:
        """Drop objects that were released; their `__del__` is user code. For main."""
        objects = self._code.objects
        if objects.dropped:
            self._lock.let_go()
            objects.drop()
            self._replies.leave_if_forked()
            self._lock.take_back()

    # --- frames -----------------------------------------------------------------------------------

    def receive(self, frames: list[Frame]) -> None:
        """Put requests where they can run, and act on everything else at once."""
        arrived = monotonic()
        for frame in frames:
            try:
                request = self._requests.read(frame)
                message = messages.parse(frame) if request is None else None
                if type(message) is messages.Request:
                    request = self._requests.of(
                        frame, message.kind == "call", message.id_term, message.body_at
                    )
            except ProtocolError as error:
                self._commands.complain(error)
                continue
            if request is not None:
                request.arrived = arrived
                if self._scheduler.begin(request):
                    self._begin(request)
            elif type(message) is Answer:
                self._answer(frame, message.call_id, message.body_at)
            elif type(message) is Cancel:
                self.cancel(message.id_term)
            elif type(message) is Recall:
                self.recall(message.id_term)
            elif type(message) is Segment:
                self._receive_shared(message)
            elif type(message) is Shutdown:
                self.stopping = True
                self.grace_ms = message.grace_ms
            elif message is not None:
                self._commands.act(message)

    def _receive_shared(self, place: Segment) -> None:
        if not place.size:
            self._shared.give_back(place.slot, place.generation)
            return
        try:
            frame = self._shared.frame(place)
        except FramingError as error:
            self._port.reader.refuse(error)
        else:
            self.receive([frame])

    def _begin(self, request: Request) -> None:
        """Give a request, whose turn it is in its session, to an executor."""
        call = self._scheduler.call_of(request)
        if call is not None:
            call.queue.append(request)
            call.wake()
            if call.lock is not None and call.id not in self._scheduler.calls:
                # The thread of the call may be done with its queue already.
                try:
                    call.queue.remove(request)
                except ValueError:  # it has not
                    return
            else:
                return
        # While main runs code, a request that needs the loop must not wait for it.
        aside = bool(self._thread.below) or get_ident() != self._thread.ident
        if aside and self._run_async(request):
            return
        if self._threads.limit:
            self._threads.run(request)
        else:
            self._scheduler.queue.append(request)

    def _run_async(self, request: Request) -> bool:
        """Give a request to the event loop, if it is known to need it; tell whether it was."""
        if not self._code.is_async(request):
            return False
        try:
            self._async.prepare()
        except Exception:  # e.g. a file named asyncio.py: main meets it again, and answers
            return False
        self._async.run(request)
        return True

    def sort_out(self) -> None:
        """Give queued requests that the loop can run to the loop: main runs code for longer."""
        queue = self._scheduler.queue
        for request in tuple(queue):
            if self._run_async(request):
                queue.remove(request)

    def _answer(self, frame: Frame, call_id: bytes, body_at: int) -> None:
        call = self._scheduler.calls.get(call_id)
        if call is not None and not call.over:
            call.answered = (frame, body_at)
            call.wake()

    def recall(self, id_term: bytes) -> bool:
        """Give back a request that has not begun, as cancelled; tell whether it was one."""
        with self._threads.taking:
            dropped = self._scheduler.drop(id_term)
        if dropped is None:
            return False
        self._never_begin(dropped)
        return True

    def cancel(self, id_term: bytes) -> None:
        """Stop a request in any executor. An unknown one is ignored: it may just have ended."""
        if self.recall(id_term):
            return
        with self._threads.taking:
            request = self._scheduler.find(id_term)
        if request is not None:
            (request.executor or self._main).cancel(request)
            self._fail_calls(request)

    def _fail_calls(self, request: Request) -> None:
        ended = self._threads.above(request)
        for call in list(self._scheduler.calls.values()):
            # Not inside of an import: there the BEAM ends the call.
            if call.request in ended and call.lock and imported_by_thread(call.thread) is None:
                call.fail(Cancelled("cancelled while it waited for a call into the BEAM"))

    def close_parked(self, why: str) -> None:
        """End the streams that wait for credit: no more credit arrives."""
        for request in list(self._scheduler.elsewhere.values()):
            if request.stream is not None and not request.can_go_on:
                request.end(why)
                request.executor.cancel(request)

    def end_all(self, why: str) -> None:
        """End whatever waits or is under way elsewhere than in main: the server leaves."""
        with self._threads.taking:
            requests = self._scheduler.unfinished()
        for request in requests:
            request.end(why)
            if request.executor is not None:
                request.executor.cancel(request)

    @property
    def unfinished(self) -> bool:
        """Whether requests are under way that end by themselves."""
        scheduler = self._scheduler
        return bool(
            scheduler.queue
            or scheduler.for_threads
            or scheduler.ready
            or scheduler.waiting
            or len(scheduler.elsewhere) > len(scheduler.streams)
        )
