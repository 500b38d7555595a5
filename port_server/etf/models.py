"""Objects with fields: dataclasses, and the models of attrs, pydantic and msgspec, as dicts.

Conversion only; no library is imported for it.
"""

from __future__ import annotations

import sys

from . import structs

TYPE_CHECKING = False
if TYPE_CHECKING:
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


def _learn_pydantic(module: Any) -> None:
    structs.replacement_by_type[module.BaseModel] = _pydantic


def _learn_root(module: Any) -> None:
    structs.replacement_by_type[module.RootModel] = _root


def _learn_msgspec(module: Any) -> None:
    structs.replacement_by_type[module.Struct] = lambda value: {
        name: field
        for name in value.__struct_fields__
        if (field := getattr(value, name)) is not module.UNSET
    }


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
