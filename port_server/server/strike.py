"""Raising an exception in another thread, at a place where that breaks nothing.

The request must stand on the stack of the thread, and the frames of the thread must be in user
code. From Python 3.12 on `sys.monitoring` calls back in the thread, before its next bytecode there;
so the look and the exception are one step. On 3.11 `_fast.strike` sets the exception that Python
raises before the next bytecode, and `_fast.guarded` drops it where the request ends meanwhile.

Tried and rejected: `PyThreadState_SetAsyncExc` on all versions. From 3.13 on Python raises such an
exception one check later than it was set, which may be inside of `Condition.__exit__`: 6 of 400
strikes left a lock taken for good.
"""

from __future__ import annotations

import sys
from _thread import get_ident

from port_server.runtime.api import Cancelled, Ended

from .signal_guard import BORDER, codes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any, Final

    from port_server.protocol.requests import Request

    from .signal_guard import SignalGuard

try:
    from . import _fast
except ImportError:
    _fast = None  # type: ignore[assignment]

_monitoring: Final[Any] = getattr(sys, "monitoring", None)
# Ids of tools that no debugger, profiler or coverage tool has by convention.
_TOOLS: Final = (4, 3)


def guarded(
    stack: list[Request], request: Request, function: Callable[..., Any], *args: Any
) -> Any:
    """Call `function` with `request` on top of `stack`."""
    if _fast is not None and _monitoring is None:
        return _fast.guarded(stack, request, function, *args)
    stack.append(request)
    try:
        return function(*args)
    finally:
        stack.pop()


def _exception(request: Request) -> type[Cancelled]:
    return Ended if request.why_ended else Cancelled


class Strikes:
    """Raises exceptions in threads. For the control thread."""

    def __init__(self, guard: SignalGuard) -> None:
        self._guard = guard
        # By ident of the thread: the request, the requests that run there, the worst place for it.
        self._targets: dict[int, tuple[Request, list[Request], int]] = {}
        self._tool: int | None = None
        self._watched: set[CodeType] = set()

    def strike(self, request: Request, stack: list[Request], worst: int) -> bool:
        """End a request in its thread, if this is a moment for it; tell whether it was.

        The request must be on the stack of the thread, which must be at a place of the kind `worst`
        or, in the order of signal_guard.py, of one before it.
        """
        ident = request.thread
        codes = codes_of(sys._current_frames().get(ident))  # noqa: SLF001  there is no other
        if request not in stack or self._guard.place_of(codes) > worst:
            return False
        if _monitoring is None:
            # If the thread goes on meanwhile it runs others by then.
            return _fast is not None and _fast.strike(
                ident, stack, request, codes, _exception(request)
            )
        if self._guard.codes.get(codes[0]) == BORDER or not self._has_tool():
            return False
        self._targets[ident] = request, stack, worst
        self._watched.add(codes[0])
        _monitoring.set_local_events(self._tool, codes[0], _monitoring.events.INSTRUCTION)
        return True

    def settle(self) -> None:
        """Watch no code any longer, if no exception is to be raised."""
        if self._watched and not self._targets:
            while self._watched:
                _monitoring.set_local_events(self._tool, self._watched.pop(), 0)

    def forget(self, ident: int) -> None:
        """Raise nothing in a thread: its request has ended."""
        self._targets.pop(ident, None)

    def _has_tool(self) -> bool:
        for tool in _TOOLS if self._tool is None else ():
            try:
                _monitoring.use_tool_id(tool, "port_server")
            except ValueError:  # user code has it
                continue
            self._tool = tool
            _monitoring.register_callback(
                tool, _monitoring.events.INSTRUCTION, self._before_instruction
            )
            break
        return self._tool is not None

    def _before_instruction(self, _code: CodeType, _offset: int) -> None:
        target = self._targets.get(get_ident())
        if target is None:  # another thread runs the same code
            return
        request, stack, worst = target
        if request not in stack:
            self.forget(get_ident())
        elif self._guard.place(sys._getframe(1)) <= worst:  # noqa: SLF001
            self.forget(get_ident())
            raise _exception(request)
