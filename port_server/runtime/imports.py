"""Hooks that run when user code first imports a module. The server does not import it itself.

logging, structlog and similar modules are too slow for a start, and most requests do not need them.
So the server adapts them when they are imported.
"""

from __future__ import annotations

import sys

from .printed import write_to_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Hook = Callable[[ModuleType], None]


class ImportHooks:
    """The first finder on `sys.meta_path`. For a few names it adds a hook to what others find."""

    __slots__ = ("_hooks",)

    def __init__(self) -> None:
        self._hooks: dict[str, Hook] = {}

    def install(self) -> None:
        """Begin; `add` has called the hooks of modules that were imported before."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop looking."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def add(self, name: str, hook: Hook) -> None:
        """Call `hook` with the module of that name, now if it is loaded, and after each import."""
        module = sys.modules.get(name)
        if module is not None:
            _call(hook, module)
        self._hooks[name] = hook

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Have the other finders find it, and put the hook behind its loader."""
        # Kept for good: a module that is found may not be imported, and modules are reloaded.
        hook = self._hooks.get(name)
        if hook is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, hook)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads as `loader` does, then calls the hook. Only the import itself ever sees it."""

    __slots__ = ("_hook", "_loader")

    def __init__(self, loader: Any, hook: Hook) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # Before the module runs, because it may look at its own spec, and other code may later.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _call(self._hook, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _call(hook: Hook, module: ModuleType) -> None:
    # A failing hook must not fail the import of user code.
    try:
        hook(module)
    except Exception as error:
        text = f"port_server: {module.__name__} could not be prepared: {error!r}\n"
        write_to_stderr(text.encode("utf-8", "backslashreplace"))
