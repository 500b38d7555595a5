"""Reads the frames of a thread: whether an import is under way there, and all stacks as text.

Runs no user code. A caller that looks at other threads holds the GIL, so their frames stand still.
"""

from __future__ import annotations

import sys

from . import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from types import FrameType
    from typing import Final

# An exception raised in these files leaves half-initialised modules or a held import lock behind.
IMPORT_FILES: Final = frozenset(
    ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
)
# As many as faulthandler writes.
_MOST_FRAMES: Final = 100


def outermost_import(frame: FrameType | None) -> FrameType | None:
    """Give the outermost frame of the import machinery on the stack of `frame`, or None."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename in IMPORT_FILES:
            found = frame
        frame = frame.f_back
    return found


def imported_name(frame: FrameType | None) -> str | None:
    """Give the name of the module that is imported on the stack of `frame`, None without an import.

    Of nested imports it is the outermost one, the one in user code. Imports that describe a failure
    do not count, because the code has ended.
    """
    found = outermost_import(frame)
    outer = found
    while outer is not None and outer.f_code.co_filename != failure.__file__:
        outer = outer.f_back
    if found is None or outer is not None:
        return None
    variables = found.f_locals
    name = variables.get("name") or getattr(variables.get("spec"), "name", None)
    return name if type(name) is str else "a module"


def imported_by_thread(ident: int) -> str | None:
    """Give the same for the thread with that ident."""
    return imported_name(sys._current_frames().get(ident))  # noqa: SLF001  there is no other


def stacks(main: int, left_out: Container[int]) -> str:
    """Give the stacks of all threads but those left out, in the format of faulthandler.

    Args:
        main: the ident of the main thread, which comes first.
        left_out: idents of threads; those of all threads are left out in vain.
    """
    every = sys._current_frames()  # noqa: SLF001  there is no other
    # All are left out where main asks before the control thread has run its first bytecode.
    frames = {ident: frame for ident, frame in every.items() if ident not in left_out} or every
    idents = sorted(frames, key=lambda ident: ident != main)
    return "\n".join([_stack(ident, frames[ident]) for ident in idents])


def _stack(ident: int, frame: FrameType | None) -> str:
    lines = [f"Thread 0x{ident:016x} (most recent call first):"]
    while frame is not None:
        if len(lines) > _MOST_FRAMES:
            lines.append("  ...")
            break
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
        frame = frame.f_back
    return "\n".join([*lines, ""])
