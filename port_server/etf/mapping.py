"""Conversions for Python values without a term of their own, as the last step of a codec.

Conversion only. No module is imported to look at a value: a type whose module is not imported has
no values.
"""

from __future__ import annotations

import sys

from . import containers, models, scalars, structs
from .terms import Atom, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

scalars.install()
containers.install()
models.install()

_BUILTINS = frozenset((int, float, str, bytes, bytearray, memoryview, list, tuple, dict))


# Atoms are interned weakly, and a field's name would be made and forgotten with every value. These
# names come from conversions in this process, never from the wire; the bound is for odd ones.
_field_names: dict[str, Atom] = {}
_MOST_FIELD_NAMES = 4096


def _field_name(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    if len(_field_names) >= _MOST_FIELD_NAMES:
        _field_names.clear()
    return _field_names.setdefault(key, Atom(key))


def as_struct(module: Atom, fields: Any) -> Struct:
    """Make a Struct of the result of a `to_struct`: string keys become atoms."""
    if type(fields) is Struct:
        return fields
    names = _field_names
    return Struct(module, {names.get(key) or _field_name(key): fields[key] for key in fields})


def _instance(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def resolve(value: Any) -> Any:
    """Give the value to encode in place of `value`, or NotImplemented if there is none.

    In this order: a type registered in `structs` gives its Struct; an enum member its value; a
    type whose base is registered (the nearest in the method resolution order) what that one gives;
    subclasses of built-in types NotImplemented, because they go as their base; objects with fields
    a dict with string keys; UUIDs and paths their text.
    """
    kind = type(value)
    table, replacements = structs.to_struct_by_type, structs.replacement_by_type
    if kind in replacements:
        return replacements[kind](value)
    known = table.get(kind)
    if known is not None:
        return as_struct(known[0], known[1](value))
    if _instance(value, "enum", "Enum"):
        return value.value
    structs.learn_imported_types()
    for base in kind.__mro__:
        if base in replacements:
            return replacements[base](value)
        known = table.get(base)
        if known is not None:
            return as_struct(known[0], known[1](value))
        if base in _BUILTINS:
            return NotImplemented
    fields = models.fields_of(value)
    if fields is not None:
        return fields
    if _instance(value, "uuid", "UUID"):
        return str(value)
    if _instance(value, "pathlib", "PurePath"):
        return bytes(value)  # a file name is bytes; surrogates would not survive as text
    return NotImplemented


def name_of(value: object) -> str:
    """Name the type of a value the way Python's own messages do."""
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
