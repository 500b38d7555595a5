"""Objects with fields: dataclasses, and the models of attrs, pydantic and msgspec, as dicts.

Conversion only; no library is imported for it.
"""

from __future__ import annotations

import sys

from . import structs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def install() -> None:
    """Have the types learnt once they are imported."""
    structs.when_imported("pydantic.main", _learn_pydantic)
    structs.when_imported("pydantic.v1.main", _learn_pydantic)
    structs.when_imported("pydantic.root_model", _learn_root)
    structs.when_imported("msgspec", _learn_msgspec)


def fields_of(value: Any) -> dict[str, Any] | None:
    """Give the fields of a dataclass or of a class of attrs; None for another one."""
    kind = type(value)
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None and "dataclasses" in sys.modules:
        wanted = getattr(sys.modules["dataclasses"], "_FIELD", None)
        return {
            name: getattr(value, name)
            for name, field in fields.items()
            if field._field_type is wanted  # noqa: SLF001  ClassVar and InitVar are no fields
        }
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None and "attr" in sys.modules:
        return {field.name: getattr(value, field.name) for field in attributes}
    return None


# Functions that read the models of libraries, by the base of these.
_readers: dict[type, Callable[[Any], Any]] = {}


def both_ways(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]] | None:
    """Give what makes an instance of a class with fields, and what reads them; None for another."""
    structs.learn_imported_types()
    read = next((_readers[base] for base in kind.__mro__ if base in _readers), None)
    if hasattr(kind, "__attrs_attrs__") or hasattr(kind, "__dataclass_fields__"):
        read = _fields
    return None if read is None else (constructor(kind), read)


def constructor(kind: type) -> Callable[[dict[str, Any]], Any]:
    """Give what makes an instance of a class of the fields, by their names."""
    # The parameters of attrs have names of their own: _a is a.
    names = {
        field.name: field.alias or field.name for field in getattr(kind, "__attrs_attrs__", ())
    }
    return lambda given: kind(**{names.get(name, name): given[name] for name in given})


def _fields(value: Any) -> dict[str, Any]:
    return fields_of(value) or {}


def _learn(kind: type, read: Callable[[Any], Any]) -> None:
    _readers[kind] = read
    structs.replacement_by_type.setdefault(kind, read)


def _learn_pydantic(module: Any) -> None:
    _learn(module.BaseModel, _pydantic)


def _learn_root(module: Any) -> None:
    structs.replacement_by_type.setdefault(module.RootModel, _root)


def _learn_msgspec(module: Any) -> None:
    def read(value: Any) -> dict[str, Any]:
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return {name: field for name, field in fields.items() if field is not module.UNSET}

    _learn(module.Struct, read)


def _pydantic(value: Any) -> Any:
    fields = value.__dict__
    names = getattr(type(value), "model_fields", None)
    if names is None:  # pydantic 1
        return fields["__root__"] if "__root__" in fields else dict(fields)
    # The rest of its __dict__ are cached properties.
    found = {name: fields[name] for name in names if name in fields}
    return {**found, **(value.__pydantic_extra__ or {})}


def _root(value: Any) -> Any:
    return value.root
