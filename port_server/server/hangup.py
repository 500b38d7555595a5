"""Seeing to it that the process ends in time: when the port hangs up, and when the loop is left.

The loop sees the end of input by itself, and Python ends by itself, unless code of users keeps them
from it; this is for then.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import atexit
import os
import sys
from _thread import start_new_thread
from select import POLLERR, POLLHUP, poll
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from .stdio import Stdio

_PR_SET_PDEATHSIG: Final = 1

_grace_ms: int | None = None
_stdio: Stdio | None = None


def watch(stdio: Stdio, grace_ms: int) -> bool:
    """Have this process killed, with its group if it leads one, when the port hangs up.

    And have SIGTERM, for which there is a handler, end the input at once.

    Args:
        stdio: the port.
        grace_ms: how long the loop has to leave by itself.

    Returns:
        Whether the native thread does it. Else Linux kills the process, but no children of it,
        when its parent dies.
    """
    global _grace_ms, _stdio  # noqa: PLW0603  one process, one port
    _stdio = stdio
    atexit.register(_end_helpers)  # registered first, so it runs last
    try:
        from ._watch import end_input, start  # noqa: PLC0415  not everywhere built

        start(stdio.reads, stdio.writes, grace_ms)
        end_input(signal.SIGTERM, stdio.reads)
    except (ImportError, OSError):
        _die_with_parent()
        return False
    _grace_ms = grace_ms
    return True


def told_to_end() -> str:
    """Give the message about the signal that has ended the input, or an empty text.

    For other threads than main, which Python's handler for the signal runs in.
    """
    try:
        from ._watch import ended  # noqa: PLC0415  not everywhere built
    except ImportError:
        return ""
    return told_by("SIGTERM") if ended() else ""


def told_by(name: str) -> str:
    """Give the message about that signal."""
    return f"this Python was told to end by {name}, and takes nothing in"


def watch_parent() -> None:
    """Go by the parent from now on: user code has closed the fds, and others may be there now."""
    global _grace_ms
    if _grace_ms is None:
        return
    grace_ms, _grace_ms = _grace_ms, None
    try:
        from ._watch import start  # noqa: PLC0415  there since `watch`

        start(-1, -1, grace_ms)
    except OSError:  # no more threads; the owner's reaper is left
        pass


def _end_helpers() -> None:
    """Let the resource trackers of multiprocessing and joblib tidy up; then end all other children.

    Trackers are processes that remove what is left in /dev/shm once this one has ended. Here they
    would not come to it: the owner kills the process group as soon as this process has ended. Where
    the owner itself has ended, that is done here.
    """
    for name, module in tuple(sys.modules.items()):
        if name.endswith("resource_tracker"):
            stop = getattr(getattr(module, "_resource_tracker", None), "_stop", None)
            try:
                if stop is not None:
                    stop()
            except Exception:  # noqa: S110  of another version; it ends with the process group
                pass
    if _stdio is not None and os.getpgrp() == os.getpid():
        hung_up = poll()
        hung_up.register(_stdio.writes, 0)
        if any(events & (POLLERR | POLLHUP) for _fd, events in hung_up.poll(0)):
            os.killpg(0, signal.SIGKILL)


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return
    try:
        # 15 ms, and only where there is no extension.
        from ctypes import CDLL  # noqa: PLC0415

        parent = os.getppid()
        CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died just before that
        os.kill(os.getpid(), signal.SIGKILL)


def leave_in_time(grace_ms: int, status: int) -> None:
    """See to it that the process ends, whatever user code left running.

    Python waits at its end for threads, and multiprocessing for children, without a limit.
    """
    if _grace_ms is not None:
        from ._watch import leave  # noqa: PLC0415  there since `watch`

        leave(grace_ms)

    def wait() -> None:
        sleep(grace_ms / 1000)
        os._exit(status)

    start_new_thread(wait, ())
