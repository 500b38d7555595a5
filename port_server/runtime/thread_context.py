"""The thread context: prints and log records of a thread belong to the request that started it.

This module changes `Thread.start`, and `ThreadPoolExecutor.submit`, whose threads outlive the
request that made them. Threads made with `_thread` belong to no request.
"""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread
    from types import ModuleType
    from typing import Any, Final

    from .imports import ImportHooks
    from .output import Output

_ATTRIBUTE: Final = "_port_server_request"


def install(output: Output, hooks: ImportHooks) -> None:
    """Change threading and concurrent.futures when they are imported."""
    hooks.add("threading", lambda module: _change_threads(module, output))
    hooks.add("concurrent.futures.thread", lambda module: _change_executors(module, output))


def _change_threads(module: Any, output: Output) -> None:
    kind = module.Thread
    start, bootstrap = kind.start, getattr(kind, "_bootstrap_inner", None)
    if bootstrap is None or hasattr(start, _ATTRIBUTE):  # a later Python; or already changed
        return

    def start_for_request(self: Thread) -> None:
        printed = output.current()
        if printed is not None:
            self.__dict__[_ATTRIBUTE] = printed
        start(self)

    def begin_for_request(self: Thread) -> None:
        printed = self.__dict__.pop(_ATTRIBUTE, None)
        if printed is None:
            bootstrap(self)
            return
        ident = get_ident()
        output.threads[ident] = printed
        try:
            bootstrap(self)
        finally:
            output.threads.pop(ident, None)

    kind.start = _like(start, start_for_request)
    kind._bootstrap_inner = _like(bootstrap, begin_for_request)  # noqa: SLF001  there is no other


def _change_executors(module: ModuleType, output: Output) -> None:
    kind: Any = module.__dict__["ThreadPoolExecutor"]
    submit = kind.submit
    if hasattr(submit, _ATTRIBUTE):
        return

    def submit_for_request(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        # Without a request as well: the thread may be one that another request has started.
        return submit(self, _Work(output, fn), *args, **kwargs)

    kind.submit = _like(submit, submit_for_request)


class _Work:
    """A function to be called in another thread, for the request of the calling code."""

    __slots__ = ("_function", "_printed", "_threads")

    def __init__(self, output: Output, function: Callable[..., Any]) -> None:
        self._threads = output.threads
        self._printed = output.current()
        self._function = function

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        threads = self._threads
        ident = get_ident()
        before = threads.pop(ident, None)
        if self._printed is not None:
            threads[ident] = self._printed
        try:
            return self._function(*args, **kwargs)
        finally:
            threads.pop(ident, None)
            if before is not None:
                threads[ident] = before

    def __repr__(self) -> str:
        return repr(self._function)


def _like(original: Any, replacement: Any) -> Any:
    for name in ("__doc__", "__module__", "__name__", "__qualname__"):
        setattr(replacement, name, getattr(original, name))
    replacement.__wrapped__ = original
    setattr(replacement, _ATTRIBUTE, True)
    return replacement
