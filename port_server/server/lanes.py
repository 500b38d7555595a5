"""The main lane: requests in the main thread, one after another, or one on top of a waiting one.

`MainLane.run` is where main enters and leaves user code: the baton is let go before and taken back
after. For plain requests plain.c does the same. What a signal raises is raised inside of
`Evaluator.evaluate`, never here: see `window`.
"""

from __future__ import annotations

import sys
from _thread import get_ident

from port_server.protocol.messages import ProtocolError
from port_server.runtime.beam import Cancelled

from .jobs import EMPTY_MAP, ExpiredError, Job, open_job
from .page import USUAL_AT, USUAL_TERM_BYTES
from .replies import leave_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from port_server.protocol.framing import Frame
    from port_server.runtime.output import Output
    from port_server.runtime.streams import Streams

    from .baton import Baton
    from .channel import Part
    from .evaluate import Evaluator
    from .page import Page
    from .stdio import Stdio
    from .turns import Turns
    from .window import Window

    # (id term, whether the window was open, the objects of the reply that is being encoded)
    Paused = tuple[bytes, list[int]]

_NEVER: Final = float("inf")


class MainLane:
    """Runs requests in the main thread.

    Attributes:
        attend: called when a stream may have begun; the dispatcher's.
        cancel_elsewhere: cancels a request that goes on as a task or a stream; the dispatcher's.
        below: the ids of the requests that wait while `running` runs on top of them.
        cancelled: the ids of those of `below` and `running` whose cancel has come.
        evaluator: what evaluates.
        main: the main thread's ident.
        page: shows which request runs. It stays there until its reply is written, or another
            begins.
        run_plain: does what `run` does for an eval with the usual options, whose frame is bytes and
            whose id has 8; None where there is no C for it.
        running: the id of the request that is being answered as the bytes of its term, or None;
            who hands its reply on resets it.
        usual_deadline_ms: what those say, counted from when the request was read; or infinity.
        usual_options: the options that plain requests come with, as the bytes of their term.
    """

    __slots__ = (
        "_acquire",
        "_baton",
        "_output",
        "_release",
        "_stdio",
        "_streams",
        "_turns",
        "_window",
        "attend",
        "below",
        "cancel_elsewhere",
        "cancelled",
        "evaluator",
        "main",
        "page",
        "run_plain",
        "running",
        "usual_deadline_ms",
        "usual_options",
    )

    attend: Callable[[], None]
    cancel_elsewhere: Callable[[bytes], bool]

    def __init__(
        self,
        baton: Baton,
        stdio: Stdio,
        evaluator: Evaluator,
        output: Output,
        streams: Streams,
        turns: Turns,
        window: Window,
        page: Page,
    ) -> None:
        self.below: list[bytes] = []
        self.cancelled = evaluator.cancelled
        self.evaluator = evaluator
        self.main = get_ident()
        self.page = page
        self.run_plain: Callable[[bytes, bytes, int], list[Part] | None] | None = None
        self.running: bytes | None = None
        self._baton = baton
        self._acquire = baton.lock.acquire
        self._release = baton.lock.release
        self._output = output
        self._stdio = stdio
        self._streams = streams
        self._turns = turns
        self._window = window
        self.usual_options = EMPTY_MAP
        self.usual_deadline_ms: float = _NEVER

    def answer(
        self, frame: Frame, kind: str, id_term: bytes, at: int, waited_ms: float
    ) -> list[Part] | None:
        """Evaluate a request with the baton let go; give its reply.

        Args:
            frame: the whole message.
            kind: "eval" or "call".
            id_term: the id as the bytes of its term.
            at: where the body begins: right behind the id.
            waited_ms: how long ago the frame was read.

        Returns:
            The reply, in parts; or None if it comes later, from another lane, or because it is
            not the turn of the request.
        """
        # Terms are prefix-free: where the bytes of the last options stand, those options do.
        end = at + len(self.usual_options)
        if frame[at:end] == self.usual_options and waited_ms < self.usual_deadline_ms:
            if (
                kind == "eval"
                and self.run_plain is not None
                and len(id_term) == USUAL_TERM_BYTES
                and type(frame) is bytes
            ):
                return self.run_in_c(frame, id_term, end)
            return self.run(frame, kind, id_term, end, None)
        evaluator = self.evaluator
        try:
            job = self.open(frame, kind, id_term, at, waited_ms)
        except (ProtocolError, ExpiredError, ValueError) as error:
            return evaluator.failed(error, "options", id_term, evaluator.exports)
        if job.special and not self._turns.begin(job):
            return None
        return self.run(frame, kind, id_term, job.at, job)

    def run(
        self, frame: Frame, kind: str, id_term: bytes, at: int, job: Job | None
    ) -> list[Part] | None:
        """Evaluate a request, whose turn it is, with the baton let go; give its reply.

        As `answer`, but `at` is where its code or target begins, and `job` is None where its
        options are the usual ones.
        """
        evaluator = self.evaluator
        output = self._output
        self.running = output.running = id_term
        page = self.page.map
        if page is not None:
            if len(id_term) == USUAL_TERM_BYTES:
                page[USUAL_AT] = id_term
            else:
                self.page.show(id_term)
        baton = self._baton
        baton.sequence += 1
        self._release()
        if baton.parked:
            baton.wake()
        try:
            try:
                # -- user code is entered: what is decoded, run, encoded, dropped may be theirs --
                context = (
                    evaluator.namespaces.new_context() if job is None else evaluator.context_of(job)
                )
                parts = context.run(
                    evaluator.evaluate, frame, kind, id_term, at, job, evaluator.exports
                )
            except BaseException as error:  # raised by a signal, while a failure was described
                parts = evaluator.interrupted(error, id_term, evaluator.exports)
            self.leave(parts is not None)
        finally:
            if not self._acquire(False):
                baton.wait()
        if job is not None and job.special:
            if not job.elsewhere:
                self._turns.end(job)
            elif job.stream:
                self.attend()
        if self._window.alert:
            self.settle(id_term, parts is not None)
        return parts

    def run_in_c(self, frame: bytes, id_term: bytes, at: int) -> list[Part] | None:
        """Do what `run_plain` does, which there must be: a frame for `Window.place` to know."""
        assert self.run_plain is not None
        return self.run_plain(frame, id_term, at)

    def settle(self, id_term: bytes, ended: bool) -> None:
        """Forget what was to be raised in a request that main is done with."""
        self._window.settle(alone=not self.below)
        if id_term in self.cancelled:
            self.cancelled.discard(id_term)
            if not ended:  # it came while a lane took over
                self.cancel_elsewhere(id_term)
        if self.cancelled:
            self._window.alert = True

    def enter(self, id_term: bytes) -> None:
        """User code of that request runs from here on, until `leave`."""
        self.running = self._output.running = id_term
        self.page.show(id_term)

    def leave(self, ended: bool) -> None:
        """Put in order what user code leaves behind; its output is handed on."""
        output = self._output
        running = self.running
        if output.requests and running is not None:
            if ended:
                output.end(running)
            else:
                output.flush_of(running)
        output.running = None
        objects = self.evaluator.objects
        if objects.dropped:  # released while this ran
            objects.drop()
            output.running = None  # a __del__ that called into the BEAM has put it back
        # -- user code is left -------------------------------------------------------------------
        if self._stdio.forked:
            leave_child(None)
        streams = self._streams
        try:
            if (
                sys.stdout is not streams.stdout
                or sys.stderr is not streams.stderr
                or sys.stdin is not streams.stdin
            ):
                streams.install()
        except AttributeError:  # `del sys.stdout`
            streams.install()

    def open(self, frame: Frame, kind: str, id_term: bytes, at: int, waited_ms: float) -> Job:
        """Read the options of a request.

        Raises:
            DecodeError, ExpiredError, ProtocolError: see `open_job`.
        """
        job = open_job(frame, kind, id_term, at, waited_ms)
        if not job.special and job.binary_as == "str":
            # A client sends the same options again and again.
            self.usual_options = bytes(frame[at : job.at])
            self.usual_deadline_ms = _NEVER if job.deadline_ms is None else job.deadline_ms
        return job

    def pause(self) -> Paused:
        """Main waits in the midst of a request: others may run on top. Give what `resume` needs."""
        running = self.running
        assert running is not None
        if self._output.requests:
            self._output.flush_of(running)
        self.below.append(running)
        self._output.running = self.running = None
        # It may wait in the midst of being encoded, and those on top have their own objects.
        return running, self.evaluator.exports.take()

    def resume(self, paused: Paused) -> None:
        """Go on with the request that `pause` left, and that the page shows."""
        running, self.evaluator.exports.ids = paused
        self.below.pop()
        self.running = self._output.running = running

    def show_below(self) -> None:
        """Show what main goes on with when the request on top has ended, if that waits below."""
        if self.below:
            self.page.show(self.below[-1])
        else:
            self.page.clear()

    def check(self) -> None:
        """Raise Cancelled if the running request, or one that it runs on top of, is cancelled.

        Not inside of an import: there the BEAM ends the call.
        """
        if (
            self.cancelled
            and not self.cancelled.isdisjoint((self.running, *self.below))
            and not self._window.importing()
        ):
            raise Cancelled("cancelled while it waited for a call into the BEAM")

    def forget(self, id_term: bytes | None) -> None:
        """Close what an exception out of nowhere has left open."""
        self._output.running = None
        if id_term is not None:
            self._output.end(id_term)

    def acknowledge(self, id_term: bytes, count: int) -> None:
        """Take in how much of a request's output was consumed."""
        self._output.ack(id_term, count)

    def delivered(self, size: int) -> None:
        """Count a message to a process; wait while too much is on its way."""
        self._output.delivered(size)

    def mute(self, id_term: bytes) -> None:
        """Throw away what a cancelled request goes on to print."""
        self._output.mute(id_term)
