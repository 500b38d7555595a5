"""The signal guard: whether an exception may be raised at the place where a thread is now.

Python runs signal handlers between any two bytecodes. A handler may raise while the code of a
request runs. An exception in the server's own code would lose bytes that were just read, or the
count of bytes just written, and the stream of frames would be out of step. So the stack decides,
which costs the fast path no time. The guard walks outward from the innermost frame to the first
border, a function that runs user code and catches its exceptions. If it meets no frame of the
server before the border, the exception is raised. Otherwise it waits until that frame is left, or
is logged if it belongs to no request.

Tried and rejected: a flag that is set and reset around user code. It costs every request, it is
wrong for the few bytecodes before and after it is set, and it does not cover objects, threads and
namespaces through which user code calls into the server.
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

# The kinds of places where a thread may be, from the most to the least interruptible: in user code;
# in a library whose locks leak if it is interrupted; in the description of a failure; inside of an
# import; in the server's code.
BORDER: Final = 0  # of a frame only, as the last two
OPEN: Final = 1
SPARED: Final = 2
DESCRIBING: Final = 3
IMPORTING: Final = 4
INSIDE: Final = 5
FOREIGN: Final = 6
THROUGH: Final = 7
OUTSIDE: Final = 8  # in the server's code, with no user code below on the stack

_OWN_DIRECTORY: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120  start path
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120
# Python code has `acquire(); try:` and `with lock:`: an exception between the two leaks the lock.
_SPARED_FILES: Final = (f"{_LIBRARY}threading.py", f"{_LIBRARY}logging{os.sep}")
# Conversions that change nothing of the server: to interrupt them is like interrupting user code.
_LIKE_USER_CODE: Final = tuple(
    f"{_OWN_DIRECTORY}etf{os.sep}{name}.py" for name in ("arrays", "dlpack", "tables")
)
# Most files whose kind is kept: user code brings files of its own.
_MOST_FILES: Final = 4096


class SignalGuard:
    """Tells the server's frames from those of user code, and so where an exception may be raised.

    Attributes:
        codes: kinds of single functions of the server, by their code.
    """

    def __init__(
        self,
        borders: Iterable[Any],
        open: Iterable[Any],
        open_modules: Iterable[Any],
        open_files: Iterable[str],
        through_modules: Iterable[Any],
        describing: Iterable[Any],
    ) -> None:
        """Learn which functions of the server are not protected.

        Args:
            borders: functions that run user code, and make a reply of each exception in them.
            open: functions called by those that may be interrupted at any place.
            open_modules: modules of such functions.
            open_files: files of such modules that are imported later.
            through_modules: modules whose functions call user code and handle its exceptions, but
                must not be interrupted themselves.
            describing: functions that describe a failure.
        """
        self.codes: dict[CodeType, int] = {
            **{function.__code__: OPEN for function in open},
            **{function.__code__: DESCRIBING for function in describing},
            **{function.__code__: BORDER for function in borders},
        }
        self._own_files: dict[str, int] = {
            **dict.fromkeys(IMPORT_FILES, IMPORTING),
            **dict.fromkeys(_LIKE_USER_CODE, FOREIGN),
            **{str(module.__file__): OPEN for module in open_modules},
            **dict.fromkeys(open_files, OPEN),
            **{str(module.__file__): THROUGH for module in through_modules},
        }
        # Kinds of all functions in a file, for the files met so far.
        self._files = self._own_files.copy()

    def _learn(self, file: str) -> int:
        """Find out the kind of a file, and keep it."""
        if file.startswith(_OWN_DIRECTORY):
            kind = INSIDE
        else:
            kind = SPARED if file.startswith(_SPARED_FILES) else FOREIGN
        if len(self._files) >= _MOST_FILES:
            self._files = self._own_files.copy()
        self._files[file] = kind
        return kind

    def place(self, frame: FrameType | None) -> int:
        """Tell where a thread is whose innermost frame this is."""
        return self.place_of(codes_of(frame))

    def place_of(self, codes: list[CodeType]) -> int:
        """Tell where a thread is whose frames, the innermost first, run these codes."""
        place = OPEN
        foreign = False
        for code in codes:
            kind = self.codes.get(code)
            if kind is None:
                kind = self._files.get(code.co_filename) or self._learn(code.co_filename)
            if kind == BORDER:
                return place
            if place == INSIDE:  # for any caller
                pass
            elif kind == DESCRIBING:
                place = place if place == IMPORTING else DESCRIBING
            elif kind == IMPORTING:
                place = IMPORTING
            elif kind in {FOREIGN, SPARED}:
                foreign = True
                place = SPARED if kind == SPARED and place == OPEN else place
            elif kind == INSIDE or (kind == THROUGH and not foreign):
                place = INSIDE
        return OUTSIDE

    def place_of_caller(self) -> int:
        """Give the place of the user code that has called the calling function of the server."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  there is no other
        while frame is not None and frame.f_code.co_filename.startswith(_OWN_DIRECTORY):
            frame = frame.f_back
        return self.place(frame)


def codes_of(frame: FrameType | None) -> list[CodeType]:
    """Give the codes that a thread runs whose innermost frame this is, the innermost first."""
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes


class Guarded:
    """A handler of user code whose exceptions are raised only where the guard allows it."""

    __slots__ = ("_guard", "_take", "handler")

    def __init__(
        self, guard: SignalGuard, take: Callable[[BaseException, int], None], handler: Handler
    ) -> None:
        self._guard = guard
        self._take = take
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        place = self._guard.place(frame)
        if place in {OPEN, SPARED, IMPORTING}:
            self.handler(number, frame)
            return
        try:
            self.handler(number, frame)
        except BaseException as error:
            self._take(error, place)


def guard_signals(
    guard: SignalGuard,
    take_error: Callable[[BaseException, int], None],
    taken: dict[int, Callable[[Any], Any]],
) -> None:
    """Let `signal.signal` wrap handlers, and `signal.getsignal` give them back unwrapped.

    That module has its own from `_signal`, and asks there each time.

    Args:
        guard: tells where they may raise.
        take_error: takes an exception raised at another place, and the place.
        taken: functions to call instead of `signal.signal` for the signals that the server needs
            itself; each takes the handler, and gives the previous one.
    """
    set_handler, get_handler = signal.signal, signal.getsignal
    # The handlers that `signal.getsignal` shows to user code.
    believed: dict[int, Any] = {}

    def guarded_signal(signalnum: int, handler: Any) -> Any:
        if callable(handler) and type(handler) is not Guarded:
            handler = Guarded(guard, take_error, handler)
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
