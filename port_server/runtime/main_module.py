"""`sys.modules["__main__"]`: the namespace of the request whose code asks.

pickle, typing, dataclasses, unittest and others look names of `__main__` up there. The module finds
the namespace on the stack, when it is asked: a request has no cost from it. Libraries that need
more than names are adapted when user code imports them: inspect, multiprocessing, numba.
"""

from __future__ import annotations

import sys
from _thread import get_ident

from .sources import Source, file_of_class, is_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any, Final

    from .imports import ImportHooks

_Module: Final[Any] = type(sys)  # types.ModuleType, without its module
# Code above the frames of this module belongs to another request.
_BORDER: Final = "port_server.server.evaluate"


class MainModule(_Module):  # type: ignore[misc]
    """Names of the running request: of the code that asks, else of the main thread's."""

    def __getattribute__(self, name: str) -> Any:
        found: dict[str, Any] | None = None
        for found in _namespaces():
            if name in found:
                return found[name]
        if name == "__dict__":
            return {} if found is None else found
        if name in {"__class__", "__dir__", "__repr__"}:
            return object.__getattribute__(self, name)
        raise AttributeError(f"{self!r} has no attribute {name!r}")

    def __repr__(self) -> str:  # a part of pickle's messages
        return (
            "<module '__main__' of this request, which has no names of other requests: define "
            "classes and functions that they share in init_code, in the session or in a module>"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        del self.__dict__[name]

    def __dir__(self) -> list[str]:
        return list(self.__dict__)


def install(hooks: ImportHooks) -> None:
    """Put the module in place. For the main thread."""
    global _main, _original
    _main, _original = get_ident(), sys.modules.get("__main__")
    sys.modules["__main__"] = MainModule("__main__")
    hooks.add("inspect", _change_inspect)
    hooks.add("multiprocessing.reduction", _change_multiprocessing)
    hooks.add("numba.core.caching", _change_numba)


_main = 0
_original: Any = None  # its globals are in use


def _namespaces() -> Iterator[dict[str, Any]]:
    """Give the namespaces of the calling code, the innermost first, then those of the main thread.

    Code of init_code that a request has called has a namespace of its own.
    """
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  its caller's caller
    for start in (frame, None):
        if start is None:
            if get_ident() == _main:
                return
            start = sys._current_frames().get(_main)  # noqa: PLW2901, SLF001
        frame = start
        while frame is not None and frame.f_globals.get("__name__") != _BORDER:
            namespace = frame.f_globals
            if type(namespace.get("__loader__")) is Source:
                yield namespace
            frame = frame.f_back


def _change_inspect(inspect: Any) -> None:
    """Let it find the file of a class of `__main__`, for which it looks at the module alone."""
    original = inspect.getfile

    def getfile(object: Any) -> str:
        if isinstance(object, type) and object.__module__ == "__main__":
            file = file_of_class(object)
            if file is not None:
                return file
        found: str = original(object)
        return found

    getfile.__doc__ = original.__doc__
    inspect.getfile = getfile


def _change_multiprocessing(reduction: Any) -> None:
    from . import by_value  # noqa: PLC0415  most programs do not need it

    reduction.ForkingPickler.reducer_override = by_value.reduce


def _change_numba(caching: Any) -> None:
    """Let `cache=True` take functions of `__main__`, as it takes those of notebooks."""
    notebooks: Any = getattr(caching, "IPythonCacheLocator", None) or caching._IPythonCacheLocator  # noqa: SLF001

    class Locator(notebooks):  # type: ignore[misc]
        def get_cache_path(self) -> str:
            os = caching.os
            base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            path: str = caching.config.CACHE_DIR or os.path.join(base, "numba", "py_port")
            return path

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Any:
            if not is_source(py_file):
                return None
            locator = cls(py_func, py_file)
            locator.ensure_cache_path()
            return locator

    caching.CacheImpl._locator_classes.insert(0, Locator)  # noqa: SLF001
