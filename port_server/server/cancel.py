"""Cancelling what runs in the main thread, and the dump of all stacks: two signals of the server's.

A cancel is noted by whoever has the baton. The control thread then sends SIGURG to main, again and
again until the request has ended, because code may catch what is raised and a `__del__` swallows
it. The handler looks at what runs now, not at what ran when the signal was sent: one that comes
late meets no target, and does nothing.

SIGURG, because by default it is ignored: a stray one harms nobody. Never
`PyThreadState_SetAsyncExc`: it strikes in the server's own code as well, it does not interrupt a
system call, and it strikes whatever runs by then.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import faulthandler
import sys
from _thread import get_ident
from time import monotonic

from port_server.etf import mapping, structs
from port_server.runtime import carry, failure, imports, objects, streams, targets
from port_server.runtime.beam import Cancelled
from port_server.runtime.frames import outermost_import
from port_server.runtime.garbage import Garbage
from port_server.runtime.snippet import Snippet

from .evaluate import Evaluator
from .streams import Stream
from .window import DESCRIBING, IMPORTING, SPARED, Window, guard_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Any, Final

    from port_server.settings import Settings

    from .lanes import MainLane
    from .stdio import Stdio

SIGNAL: Final = signal.SIGURG
STACKS_SIGNAL: Final = signal.SIGUSR2
STDERR_FD: Final = 2
# So many tries spare code whose locks leak. Then a leak is better than a request without an end.
SPARING_TRIES: Final = 5
# So many let it be said where the code was: a busy machine takes longer than one try for importing
# traceback. More would wait for a `__str__` without an end.
DESCRIBING_TRIES: Final = 20
_NEVER: Final = float("inf")
# What a handler raised while main was in our code waits for the next try: soon, as it meant now.
_DELIVER_S: Final = 0.005


class Cancels:
    """The cancels of requests that run in main, or wait there for one on top of them."""

    __slots__ = ("_lane", "_next", "_other", "_resend_s", "_stdio", "_tries", "_window")

    def __init__(
        self,
        lane: MainLane,
        stdio: Stdio,
        window: Window,
        settings: Settings,
        doorways: Iterable[Any],
    ) -> None:
        """Begin; `doorways` are those of `Window.know`."""
        self._resend_s = settings.cancel_resend_ms / 1000
        self._lane = lane
        self._next = 0.0
        self._other: Any = None
        self._stdio = stdio
        self._tries = 0
        self._window = window
        window.cancels = self._raise
        window.know(
            borders=(Evaluator.evaluate, Stream.advance),
            open=(
                Evaluator.answer_unusual,
                Evaluator.reply,
                Evaluator.failed,
                Evaluator.description,
                Garbage.collect,
                Snippet.run_parts,
                Stream.close,
            ),
            open_modules=(failure, targets),
            through_modules=(carry, imports, mapping, objects, streams, structs),
            describing=(failure.describe_cancelled,),
            doorways=(*doorways, type(lane).run_in_c),
        )

    def install(self) -> None:
        """Take the two signals; user code may believe that it takes them later."""
        set_handler = signal.signal
        set_handler(SIGNAL, self._on_signal)
        faulthandler.register(STACKS_SIGNAL, file=STDERR_FD, all_threads=True, chain=False)
        guard_signals(
            self._window,
            {
                SIGNAL: lambda handler: self._share(set_handler, handler),
                STACKS_SIGNAL: lambda handler: _dump_before(set_handler, handler),
            },
        )

    def add(self, id_term: bytes) -> None:
        """Let that request end, which runs or waits in main. For who has the baton."""
        lane = self._lane
        if id_term not in lane.cancelled:
            self._tries = 0
            self._next = 0.0
            lane.cancelled.add(id_term)
        self._window.alert = True
        if get_ident() != lane.main:
            self.tick()  # now: a pong that follows must not tell of a cancel which is still to come

    def tick(self) -> float:
        """Send the signal if it is time to; give the seconds until it is. For the control thread.

        With the baton or without.
        """
        if not self._window.alert:
            return _NEVER
        now = monotonic()
        if now >= self._next:
            self._next = now + (self._resend_s if self._lane.cancelled else _DELIVER_S)
            signal.pthread_kill(self._lane.main, SIGNAL)
        return self._next - now

    # --- in main ----------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._window.alert and not self._stdio.forked:
            place = self._window.place(frame)
            if place is IMPORTING:
                self._strike_after_import(frame)
            elif self._lane.cancelled:
                self._tries += 1
            self._window.strike(place)
        elif self._other is not None:
            self._other(number, frame)

    def _raise(self, place: str) -> None:
        lane = self._lane
        cancelled = lane.cancelled
        if not cancelled or cancelled.isdisjoint((lane.running, *lane.below)):
            return
        closing, since = lane.evaluator.closing
        if lane.running == closing and monotonic() - since < self._resend_s:
            return  # its `finally` has as long as after a signal
        if place is IMPORTING or (place is SPARED and self._tries <= SPARING_TRIES):
            return
        if place is DESCRIBING and self._tries <= DESCRIBING_TRIES:
            return
        raise Cancelled("cancelled")

    def _strike_after_import(self, frame: FrameType | None) -> None:
        """Have another try at the first bytecode after the import that `frame` belongs to.

        The next signal may come in the midst of the next import. Where code has its own tracer,
        that signal has to do.
        """
        machinery = outermost_import(frame)
        importer = None if machinery is None else machinery.f_back
        if importer is not None and sys.gettrace() is None:
            importer.f_trace = self._after_import
            importer.f_trace_opcodes = True
            sys.settrace(_trace_no_function)

    def _after_import(self, frame: FrameType, _event: str, _argument: Any) -> None:
        sys.settrace(None)
        frame.f_trace = None
        frame.f_trace_opcodes = False
        self._window.strike(self._window.place(frame))

    def _share(self, set_handler: Callable[..., Any], handler: Any) -> None:
        # Ours stays in place, and calls theirs for the signals that are not ours.
        set_handler(SIGNAL, self._on_signal)
        self._other = handler if callable(handler) else None


def _trace_no_function(_frame: FrameType, _event: str, _argument: Any) -> None:
    """Tell Python not to trace a function that is called."""


def _dump_before(set_handler: Callable[..., Any], handler: Any) -> None:
    """Let `handler` come after the dump. faulthandler calls what was in place when it came."""
    faulthandler.unregister(STACKS_SIGNAL)
    try:
        set_handler(STACKS_SIGNAL, handler)
    finally:
        faulthandler.register(
            STACKS_SIGNAL, file=STDERR_FD, all_threads=True, chain=callable(handler)
        )
