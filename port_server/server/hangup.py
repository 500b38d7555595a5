"""Ends the process in time: when the port hangs up, and when the main loop has ended.

Usually the loop sees the end of input, and Python ends by itself. User code can prevent both; this
module covers that case.
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

    from .port import Port

try:
    from . import _watch
except ImportError:
    _watch = None  # type: ignore[assignment]

_PR_SET_PDEATHSIG: Final = 1

_grace_ms: int | None = None
_port: Port | None = None


def watch(port: Port, grace_ms: int) -> None:
    """Have this process killed, with its group if it leads one, when the port hangs up.

    The loop has `grace_ms` to leave by itself. And have SIGTERM, for which there is a handler, end
    the input at once. Without the native thread, Linux kills the process when its parent dies, but
    no children of it.
    """
    global _grace_ms, _port  # noqa: PLW0603  one process, one port
    _port = port
    atexit.register(_end_helpers)  # registered first, so it runs last
    try:
        if _watch is None:
            raise OSError("built without the native thread")
        _watch.start(port.reads, port.writes, grace_ms)
        _watch.end_input(signal.SIGTERM, port.reads)
    except OSError:
        _die_with_parent()
    else:
        _grace_ms = grace_ms


def told_to_end() -> str:
    """Give the message about the signal that has ended the input, or an empty text.

    For other threads than main, because Python runs its handler for the signal in main only.
    """
    return told_by("SIGTERM") if _watch is not None and _watch.ended() else ""


def told_by(name: str) -> str:
    return f"this Python was told to end by {name}, and takes no more input"


def watch_parent() -> None:
    """Watch the parent from now on: user code has closed the fds and may reuse the numbers."""
    global _grace_ms
    if _grace_ms is None:
        return
    grace_ms, _grace_ms = _grace_ms, None
    try:  # noqa: SIM105  contextlib is not for the start path
        _watch.start(-1, -1, grace_ms)
    except OSError:  # no more threads; the owner's reaper is left
        pass


def _end_helpers() -> None:
    """Let the resource trackers of multiprocessing and joblib tidy up; then end all other children.

    Trackers are processes that clean up /dev/shm after this one has ended. They would have no time
    for it: the owner kills the process group as soon as this process has ended. If the owner itself
    has ended, this function kills the group.
    """
    for name, module in tuple(sys.modules.items()):
        if name.endswith("resource_tracker"):
            stop = getattr(getattr(module, "_resource_tracker", None), "_stop", None)
            try:
                if stop is not None:
                    stop()
            except Exception:  # noqa: S110  of another version; it ends with the process group
                pass
    if _port is not None and os.getpgrp() == os.getpid():
        hung_up = poll()
        hung_up.register(_port.writes, 0)
        if any(events & (POLLERR | POLLHUP) for _fd, events in hung_up.poll(0)):
            os.killpg(0, signal.SIGKILL)


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return
    try:
        # 15 ms, and only without the extension.
        from ctypes import CDLL  # noqa: PLC0415

        parent = os.getppid()
        CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died just before that
        os.kill(os.getpid(), signal.SIGKILL)


def leave_in_time(grace_ms: int, status: int) -> None:
    """Make the process end within the grace, whatever user code left running.

    Python waits at its end for threads, and multiprocessing for children, without a limit.
    """
    if _grace_ms is not None:
        _watch.leave(grace_ms)

    def wait() -> None:
        sleep(grace_ms / 1000)
        os._exit(status)

    start_new_thread(wait, ())
