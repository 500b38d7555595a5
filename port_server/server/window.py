"""The window: whether a signal handler of user code may raise where the main thread is just now.

Python runs handlers between any two bytecodes. One that raises while a request's code runs does
what its author meant; one that raises in the server's own code would lose bytes that were just
read, or the count of those just written, and with it the stream's step. So `signal.signal` wraps
what it is given: outside of the window a handler still runs, but what it raises is kept, or logged.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    Handler = Callable[[int, FrameType | None], Any]


class Window:
    """Open while user code runs.

    Attributes:
        open: whether a handler may raise.
        inside: whether it is closed for a moment only, with user code below on the stack.
    """

    __slots__ = ("_report", "_reporting", "_waiting", "inside", "open")

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        self.open = False
        self.inside = False
        self._waiting: list[BaseException] = []
        self._report = report
        self._reporting = False

    def close_for_a_moment(self) -> bool:
        """Close it for something that must not be cut short; give what `reopen` takes."""
        was_open, self.open = self.open, False
        self.inside = was_open
        return was_open

    def reopen(self, was_open: bool) -> None:
        """Open it again, if it was; what a handler wanted to raise meanwhile is raised now."""
        self.inside = False
        self.open = was_open
        if self._waiting:
            raise self._waiting.pop()

    def take(self, error: BaseException) -> None:
        """Take what a handler raised while the window was closed."""
        if self.inside:
            self._waiting.append(error)
        elif not self._reporting:  # one that rings meanwhile finds the logger half way through
            self._reporting = True
            try:
                self._report(error)
            except BaseException:  # noqa: S110  a failing report must not do what is prevented here
                pass
            finally:
                self._reporting = False


class Guarded:
    """A handler of user code, kept from raising outside of the window."""

    __slots__ = ("_window", "handler")

    def __init__(self, window: Window, handler: Handler) -> None:
        self._window = window
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._window.open:
            self.handler(number, frame)
            return
        try:
            self.handler(number, frame)
        except BaseException as error:
            self._window.take(error)


def guard_signals(window: Window) -> None:
    """Let `signal.signal` wrap handlers, and `signal.getsignal` give them back unwrapped."""
    set_handler, get_handler = signal.signal, signal.getsignal

    def guarded_signal(signalnum: int, handler: Any) -> Any:
        if callable(handler) and type(handler) is not Guarded:
            handler = Guarded(window, handler)
        return _unwrapped(set_handler(signalnum, handler))

    def guarded_getsignal(signalnum: int) -> Any:
        return _unwrapped(get_handler(signalnum))

    for function, original in ((guarded_signal, set_handler), (guarded_getsignal, get_handler)):
        function.__name__ = function.__qualname__ = original.__name__
        function.__doc__ = original.__doc__
        function.__module__ = original.__module__
    signal.signal = guarded_signal
    signal.getsignal = guarded_getsignal


def _unwrapped(handler: Any) -> Any:
    return handler.handler if type(handler) is Guarded else handler
