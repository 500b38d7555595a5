"""Cancelling requests of the main thread, and what signal handlers of user code have raised there.

A cancel is noted by the holder of the reader lock. The control thread then sends SIGURG to main,
again and again until the request has ended, because code may catch what is raised and a `__del__`
swallows it. The handler looks at the request that runs now, not at the one that ran when the signal
was sent: a late signal finds no target and does nothing. SIGURG, because it is ignored by default,
so a stray one harms no process.

No exception is raised inside of an import, because that would leave broken modules behind.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import faulthandler
import sys
from _thread import get_ident
from time import monotonic

from port_server.runtime.api import Cancelled
from port_server.runtime.frames import outermost_import

from .signal_guard import DESCRIBING, IMPORTING, INSIDE, OPEN, OUTSIDE, SPARED, guard_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Final

    from port_server.protocol.requests import Request
    from port_server.settings import Settings

    from .main_thread import MainThread
    from .port import Port
    from .signal_guard import SignalGuard

SIGNAL: Final = signal.SIGURG
STACKS_SIGNAL: Final = signal.SIGUSR2
STDERR_FD: Final = 2
# Tries that spare code whose locks leak. After these a leak is better than an endless request.
_SPARING_TRIES: Final = 5
# Tries that spare the description of a failure: on a busy machine the import of traceback takes
# longer than one try. There is a limit because a `__str__` may never return.
_DESCRIBING_TRIES: Final = 20
_NEVER: Final = float("inf")
# Delay until an exception of a handler, raised in the server's code, is raised again: short,
# because the handler raised it for this moment.
_DELIVER_S: Final = 0.005


class Cancels:
    """The exceptions that are to be raised in the main thread.

    Attributes:
        alert: whether one waits: of a cancel, or of a handler.
    """

    def __init__(
        self,
        guard: SignalGuard,
        main: MainThread,
        port: Port,
        settings: Settings,
        report: Callable[[BaseException], None],
    ) -> None:
        """Begin; `report` gets exceptions that belong to no request."""
        self._guard = guard
        self._main = main
        self._next = 0.0
        self._other: Any = None
        self._port = port
        self._report = report
        self._reporting = False
        self._resend_s = settings.cancel_resend_ms / 1000
        self._tries = 0
        self._waiting: list[BaseException] = []
        self.alert = False

    def install(self) -> None:
        """Take the two signals; user code may believe that it takes them later."""
        set_handler = signal.signal
        set_handler(SIGNAL, self._on_signal)
        faulthandler.register(STACKS_SIGNAL, file=STDERR_FD, all_threads=True, chain=False)
        guard_signals(
            self._guard,
            self.take,
            {
                SIGNAL: lambda handler: self._share(set_handler, handler),
                STACKS_SIGNAL: lambda handler: _dump_before(set_handler, handler),
            },
        )

    # --- any thread -------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Let a request end, which runs or waits in main. For the holder of the reader lock."""
        if not request.cancelled:
            self._tries = 0
            self._next = 0.0
            request.cancelled = True
        self.alert = True
        if get_ident() != self._main.ident:
            self.tick()  # now: a pong that follows must not tell of a cancel which is still to come

    def tick(self) -> float:
        """Send the signal if it is time; give the seconds until it is. For the control thread."""
        if not self.alert:
            return _NEVER
        now = monotonic()
        if now >= self._next:
            self._next = now + (self._resend_s if self._main.cancelled else _DELIVER_S)
            signal.pthread_kill(self._main.ident, SIGNAL)
        return self._next - now

    # --- in main ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Cancelled if the running request, or one that it runs on top of, is cancelled.

        Not inside of an import: there the BEAM ends the call that waits.
        """
        if self._main.cancelled and self._guard.place_of_caller() != IMPORTING:
            raise Cancelled("cancelled while it waited for a call into the BEAM")

    def deliver(self) -> None:
        """Raise the waiting exception, if the calling code of the server returns to user code."""
        if self.alert and get_ident() == self._main.ident:
            self._strike(self._guard.place_of_caller())

    def settle(self, request: Request, *, ended: bool) -> None:
        """Note that main is done with a request, which has ended or goes on elsewhere."""
        alone = not self._main.below
        while alone and self._waiting:
            self._tell(self._waiting.pop(0))
        self.alert = bool(self._waiting) or any(below.cancelled for below in self._main.below)
        if request.cancelled and not ended and request.executor is not None:
            request.executor.cancel(request)  # it came while another executor took over

    def recover(self) -> None:
        """Forget the waiting exceptions: a stray exception has ended every request."""
        self.alert = False
        while self._waiting:
            self._tell(self._waiting.pop(0))

    def take(self, error: BaseException, place: int) -> None:
        """Keep an exception that a handler raised where it must not be raised."""
        if place in {INSIDE, DESCRIBING}:
            self._waiting.append(error)
            self.alert = True
        else:
            self._tell(error)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.alert or self._port.forked:
            if self._other is not None:
                self._other(number, frame)
            return
        place = self._guard.place(frame)
        if place == IMPORTING:
            self._strike_after_import(frame)
        elif self._main.cancelled:
            self._tries += 1
        self._strike(place)

    def _strike(self, place: int) -> None:
        """Raise the waiting exception, if `place` allows it."""
        if place in {INSIDE, OUTSIDE}:
            return
        running = self._main.running
        if running is not None and monotonic() - running.closing < self._resend_s:
            return  # the `finally` of a stream has as long as after a signal
        if self._main.cancelled and place <= worst_place(self._tries):
            raise Cancelled("cancelled")
        if self._waiting and place != DESCRIBING:
            raise self._waiting.pop(0)

    def _strike_after_import(self, frame: FrameType | None) -> None:
        """Try again at the first bytecode after the import that `frame` belongs to.

        The next signal may arrive in the middle of the next import. If code has its own tracer,
        only that signal is left.
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
        self._strike(self._guard.place(frame))

    def _tell(self, error: BaseException) -> None:
        if self._reporting:  # a second report would enter the logger while the first is in it
            return
        self._reporting = True
        try:
            self._report(error)
        except BaseException:  # noqa: S110  a failing report must not do what is prevented here
            pass
        finally:
            self._reporting = False

    def _share(self, set_handler: Callable[..., Any], handler: Any) -> None:
        # Ours stays in place, and calls theirs for the signals that are not ours.
        set_handler(SIGNAL, self._on_signal)
        self._other = handler if callable(handler) else None


def worst_place(tries: float) -> int:
    """Give the last kind of place, in the order of signal_guard.py, where a cancel is raised."""
    if tries <= _SPARING_TRIES:
        return OPEN
    return SPARED if tries <= _DESCRIBING_TRIES else DESCRIBING


def _trace_no_function(_frame: FrameType, _event: str, _argument: Any) -> None:
    """Tell Python not to trace a function that is called."""


def _dump_before(set_handler: Callable[..., Any], handler: Any) -> None:
    """Run `handler` after the dump. faulthandler calls the handler that was installed before it."""
    faulthandler.unregister(STACKS_SIGNAL)
    try:
        set_handler(STACKS_SIGNAL, handler)
    finally:
        faulthandler.register(
            STACKS_SIGNAL, file=STDERR_FD, all_threads=True, chain=callable(handler)
        )
