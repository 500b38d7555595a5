"""The window: whether an exception may be raised where the main thread is just now.

Python runs signal handlers between any two bytecodes. One that raises while a request's code runs
does what its author meant; one that raises in the server's own code would lose bytes that were
just read, or the count of those just written, and with it the stream's step. So what is to be
raised is decided by the stack: nothing of the fast path pays for it. Going outward from where the
signal hit, the first border (the functions that run user code and answer for what it raises) is
reached, with no frame of ours before it: then it is raised. Else it waits until such a frame is
left, or is logged where no request is to blame.

Tried and rejected: a flag that is set and reset around user code. It costs every request, it is
wrong for the few bytecodes before and after it is set, and it knows nothing of the objects,
threads and namespaces that user code reaches into ours through.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import os
import sys

from port_server.runtime.frames import IMPORT_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType
    from typing import Any, Final

    Handler = Callable[[int, FrameType | None], Any]

# Where main is: in user code; there, but in a library whose locks leak when they are cut short, or
# inside of an import; where what was cut short is described; in ours with user code below on the
# stack; in ours alone.
OPEN: Final = "open"
SPARED: Final = "spared"
IMPORTING: Final = "importing"
DESCRIBING: Final = "describing"
INSIDE: Final = "inside"
OUTSIDE: Final = "outside"

_OWN_DIRECTORY: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120  start path
# `acquire(); try:` and `with lock:` in Python code: between the two nobody lets go.
_SPARED_PACKAGES: Final = frozenset(("logging", "threading"))


class Window:
    """Where main is, and what waits to be raised there.

    Attributes:
        alert: whether anything waits: a cancel or what a handler raised. All that others look at.
        cancels: raises Cancelled if the request that runs is cancelled and the place allows it;
            set by who knows that.
        evaluating: tells whether C that a doorway has called evaluates a request; set by who knows.
        waiting: what handlers raised in our code, with user code below on the stack.
    """

    __slots__ = (
        "_borders",
        "_describing",
        "_doorways",
        "_open",
        "_open_files",
        "_report",
        "_reporting",
        "_through_files",
        "alert",
        "cancels",
        "evaluating",
        "waiting",
    )

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        self.alert = False
        self.cancels: Callable[[str], None] = _nothing
        self.evaluating: Callable[[], bool] = bool
        self.waiting: list[BaseException] = []
        self._borders: frozenset[CodeType] = frozenset()
        self._describing: frozenset[CodeType] = frozenset()
        self._doorways: frozenset[CodeType] = frozenset()
        self._open: frozenset[CodeType] = frozenset()
        self._open_files: frozenset[str] = frozenset()
        self._through_files: frozenset[str] = frozenset()
        self._report = report
        self._reporting = False

    def know(
        self,
        borders: Iterable[Any],
        open: Iterable[Any] = (),
        open_modules: Iterable[Any] = (),
        through_modules: Iterable[Any] = (),
        describing: Iterable[Any] = (),
        doorways: Iterable[Any] = (),
    ) -> None:
        """Learn what of ours is not to be protected.

        Args:
            borders: functions that run user code, and make a reply of whatever is raised in them.
            open: functions called by those that leave nothing half done wherever they are cut.
            open_modules: modules of such functions.
            through_modules: modules whose functions call user code and cope with what it raises,
                but not with being cut short themselves.
            describing: functions that describe what was cut short.
            doorways: functions that call C which runs user code and makes a reply of whatever is
                raised in it: borders while `evaluating`. They call nothing that is in `open`.
        """
        self._describing = frozenset(function.__code__ for function in describing)
        self._borders = frozenset(function.__code__ for function in borders)
        self._doorways = frozenset(function.__code__ for function in doorways)
        self._open = frozenset(function.__code__ for function in open) | self._borders
        self._open_files = frozenset([module.__file__ for module in open_modules])
        self._through_files = frozenset([module.__file__ for module in through_modules])

    def place(self, innermost: FrameType | None) -> str:
        """Tell where main is whose innermost frame this is."""
        frame = innermost
        place = OPEN
        foreign = False
        while frame is not None:
            code = frame.f_code
            if code in self._borders:
                return place
            # Not where it is only just going to call, or is back.
            if code in self._doorways and frame is not innermost and self.evaluating():
                return place
            if code in self._describing:
                place = DESCRIBING if place is not INSIDE and place is not IMPORTING else place
            elif place is not INSIDE:
                file = code.co_filename
                if file in IMPORT_FILES:
                    place = IMPORTING
                elif file.startswith(_OWN_DIRECTORY):
                    if not (
                        code in self._open
                        or file in self._open_files
                        or (foreign and file in self._through_files)
                    ):
                        place = INSIDE
                else:
                    foreign = True
                    module = frame.f_globals.get("__name__")
                    if type(module) is str and module.partition(".")[0] in _SPARED_PACKAGES:
                        place = SPARED if place is OPEN else place
            frame = frame.f_back
        return OUTSIDE

    def importing(self) -> bool:
        """Tell whether the request whose code has called this is inside of an import. For main."""
        frame = sys._getframe(1)  # noqa: SLF001  there is no other
        while frame is not None and frame.f_code not in self._borders | self._doorways:
            if frame.f_code.co_filename in IMPORT_FILES:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def deliver(self) -> None:
        """Raise what waits, if the code of ours that calls this is left to user code. For main."""
        frame = sys._getframe(1)  # noqa: SLF001  there is no other
        while frame is not None and frame.f_code.co_filename.startswith(_OWN_DIRECTORY):
            frame = frame.f_back  # type: ignore[assignment]
        self.strike(self.place(frame))

    def strike(self, place: str) -> None:
        """Raise what waits, if this is the place for it. For main."""
        if place is not INSIDE and place is not OUTSIDE:
            self.cancels(place)
            if self.waiting and place is not DESCRIBING:
                raise self.waiting.pop(0)

    def settle(self, *, alone: bool) -> None:
        """Note that a request has ended; with `alone` nobody is left to raise anything in."""
        self.alert = False
        while alone and self.waiting:
            self._tell(self.waiting.pop(0))
        if self.waiting:
            self.alert = True

    def take(self, error: BaseException, place: str) -> None:
        """Take what a handler raised where it must not be raised."""
        if place is INSIDE or place is DESCRIBING:
            self.waiting.append(error)
            self.alert = True
        else:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if self._reporting:  # one that rings meanwhile finds the logger half way through
            return
        self._reporting = True
        try:
            self._report(error)
        except BaseException:  # noqa: S110  a failing report must not do what is prevented here
            pass
        finally:
            self._reporting = False


def _nothing(_place: str) -> None:
    pass


class Guarded:
    """A handler of user code, kept from raising where it must not."""

    __slots__ = ("_window", "handler")

    def __init__(self, window: Window, handler: Handler) -> None:
        self._window = window
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        place = self._window.place(frame)
        if place is OPEN or place is SPARED or place is IMPORTING:
            self.handler(number, frame)
            return
        try:
            self.handler(number, frame)
        except BaseException as error:
            self._window.take(error, place)


def guard_signals(window: Window, taken: dict[int, Callable[[Any], Any]]) -> None:
    """Let `signal.signal` wrap handlers, and `signal.getsignal` give them back unwrapped.

    That module has its own from `_signal`, and asks there each time.

    Args:
        window: where they may raise.
        taken: what to call instead of `signal.signal` for the signals that the server needs
            itself; takes the handler, and gives the one before.
    """
    set_handler, get_handler = signal.signal, signal.getsignal
    # What user code believes to be in place.
    believed: dict[int, Any] = {}

    def guarded_signal(signalnum: int, handler: Any) -> Any:
        if callable(handler) and type(handler) is not Guarded:
            handler = Guarded(window, handler)
        take = taken.get(signalnum)
        if take is None:
            return _unwrapped(set_handler(signalnum, handler))
        if not callable(handler) and handler not in _NO_HANDLERS:
            set_handler(signalnum, handler)  # raises what it raises
        take(handler)
        before = believed.get(signalnum, signal.SIG_DFL)
        believed[signalnum] = handler
        return _unwrapped(before)

    def guarded_getsignal(signalnum: int) -> Any:
        if signalnum in taken:
            return _unwrapped(believed.get(signalnum, signal.SIG_DFL))
        return _unwrapped(get_handler(signalnum))

    for function, original in ((guarded_signal, set_handler), (guarded_getsignal, get_handler)):
        function.__name__ = function.__qualname__ = original.__name__
        function.__doc__ = original.__doc__
        function.__module__ = original.__module__
    signal.signal = guarded_signal
    signal.getsignal = guarded_getsignal


_NO_HANDLERS: Final = (signal.SIG_DFL, signal.SIG_IGN)


def _unwrapped(handler: Any) -> Any:
    return handler.handler if type(handler) is Guarded else handler
