"""Targets of calls: `module.sub:qual.name` -> the callable. Imports the module, does not call it.

Looked up anew each time, because modules are reloaded and attributes patched.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

# Targets kept. Far more than a program calls; generated names must not accumulate.
_LIMIT: Final = 1024


class TargetError(ValueError):
    """A target of the wrong form. A missing target is an ImportError or AttributeError."""


class Target:
    """A parsed target."""

    __slots__ = ("_module", "_names")

    def __init__(self, text: str) -> None:
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
            # Another thread imports it and has not defined the name yet: wait, as `import` does.
            __import__(self._module)
            found = sys.modules[self._module]
            for name in self._names:
                found = getattr(found, name)
        return found


class ObjectTarget:
    """An object, or one of its attributes by dotted names. Made for one call."""

    __slots__ = ("_names", "_object")

    def __init__(self, object: Any, name: object = None) -> None:  # the wire's word
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
        found = self._object
        for name in self._names:
            found = getattr(found, name)
        return found


class Targets:
    """The targets parsed so far.

    Attributes:
        finders: a callable for each that finds its function, by its text.
    """

    __slots__ = ("finders",)

    def __init__(self) -> None:
        self.finders: dict[str, Callable[[], Any]] = {}

    def finder(self, text: str) -> Callable[[], Any]:
        """Give a callable that finds the function of a target.

        Raises:
            TargetError: it is not written like one.
        """
        find = self.finders.get(text)
        if find is None:
            find = Target(text).find
            if len(self.finders) < _LIMIT:
                self.finders[text] = find
        return find
