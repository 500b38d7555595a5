"""The server's own threads, invisible to `threading` and without signals; and its event loop."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any, Final

# As much as the main thread has, because compiling may recurse; the server itself needs little.
_STACK_BYTES: Final = 8 << 20


def start_thread(run: Callable[[], None]) -> int:
    """Start a thread; give its ident.

    Signals are for main: a system call that they interrupt there is what lets handlers run.
    """
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        old_size = _thread.stack_size(_STACK_BYTES)
        try:
            return _thread.start_new_thread(run, ())
        finally:
            _thread.stack_size(old_size)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def release(lock: Any) -> None:
    """Release a lock, if it is held."""
    try:  # noqa: SIM105  contextlib is an import
        lock.release()
    except RuntimeError:
        pass


def new_loop(threads: int) -> asyncio.AbstractEventLoop:
    """Give an event loop, uvloop's where that is installed, whose executor has so many threads."""
    import asyncio  # noqa: PLC0415  43 ms, for the requests that await
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    try:
        import uvloop  # noqa: PLC0415  an option
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(threads, "asyncio"))
    return loop
