"""What a call names: `module.sub:qual.name` -> the callable. Imports the module, calls nothing.

Looked up anew each time, because modules are reloaded and attributes patched.
"""

from __future__ import annotations

import sys

from .timed import Timed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

# Targets kept. Far above what a program calls; made-up ones must not pile up.
_LIMIT: Final = 1024


class TargetError(ValueError):
    """A target of the wrong shape. One that does not exist is an ImportError or AttributeError."""


class Target(Timed):
    """A parsed target."""

    __slots__ = ("_module", "_names")

    def __init__(self, text: str) -> None:
        super().__init__()
        module, colon, name = text.partition(":")
        if not colon or not module or not name or "" in name.split("."):
            raise TargetError(
                f'a target is "module:function", like "math:sqrt" or "os.path:join", not "{text}"'
            )
        self._module = module
        self._names = name.split(".")

    def find(self) -> Any:
        """Give what it names.

        Raises:
            ImportError: there is no such module, or it cannot be imported.
            AttributeError: the module has no such name.
        """
        found: Any = sys.modules.get(self._module)
        if found is None:
            __import__(self._module)
            found = sys.modules[self._module]
        try:
            for name in self._names:
                found = getattr(found, name)
        except AttributeError:
            spec = getattr(sys.modules.get(self._module), "__spec__", None)
            if not getattr(spec, "_initializing", False):
                raise
            # Another thread is importing it, and has not come to that name: wait, as `import` does.
            __import__(self._module)
            found = sys.modules[self._module]
            for name in self._names:
                found = getattr(found, name)
        return found


class ObjectTarget(Timed):
    """An object, or by dotted names something of it. Made for one call."""

    __slots__ = ("_names", "_object")

    def __init__(self, object: Any, name: object = None) -> None:  # the wire's word
        super().__init__()
        self._object = object
        if name is None:
            self._names = []
        elif isinstance(name, str) and name and "" not in name.split("."):
            self._names = name.split(".")
        else:
            raise TargetError(
                f"the second element of a target {{object, name}} is the name of an attribute, "
                f'like "fit" or "str.upper", not {name!r}'
            )

    def find(self) -> Any:
        """Give what it names.

        Raises:
            AttributeError: the object has no such attribute.
        """
        # Given away, because who timed the target last keeps it, and would keep the object alive.
        found, self._object = self._object, None
        for name in self._names:
            found = getattr(found, name)
        return found


class Targets:
    """The targets parsed so far."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[str, Target] = {}

    def get(self, text: str) -> Target:
        """Parse a target.

        Raises:
            TargetError: it is not written like one.
        """
        target = self._entries.get(text)
        if target is None:
            target = Target(text)
            if len(self._entries) < _LIMIT:
                self._entries[text] = target
        return target
