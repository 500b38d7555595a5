"""Containers of the standard library that hold what a list, a map or a binary holds.

Conversion only; no module is imported for it.
"""

from __future__ import annotations

from . import structs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def install() -> None:
    """Have the types learnt once they are imported."""
    table = structs.replacement_by_type
    empty: dict[Any, Any] = {}
    table.update({type(view): list for view in (empty.keys(), empty.values(), empty.items())})
    table[type(type.__dict__)] = dict
    structs.when_imported("_collections", _learn_deque)
    structs.when_imported("collections", _learn_collections)
    structs.when_imported("types", _learn_types)
    structs.when_imported("array", _learn_array)
    structs.when_imported("io", _learn_io)
    structs.when_imported("pyarrow", _learn_pyarrow)


def _learn_deque(module: Any) -> None:
    structs.replacement_by_type.setdefault(module.deque, list)


def _learn_collections(module: Any) -> None:
    table = structs.replacement_by_type
    table.setdefault(module.ChainMap, dict)
    for kind in (module.UserDict, module.UserList, module.UserString):
        table.setdefault(kind, _data)


def _learn_types(module: Any) -> None:
    structs.replacement_by_type.setdefault(module.SimpleNamespace, _attributes)


def _learn_array(module: Any) -> None:
    structs.replacement_by_type.setdefault(module.array, module.array.tolist)


def _learn_io(module: Any) -> None:
    structs.replacement_by_type.setdefault(module.BytesIO, module.BytesIO.getvalue)


def _learn_pyarrow(module: Any) -> None:
    structs.replacement_by_type.setdefault(module.Buffer, memoryview)


def _data(value: Any) -> Any:
    return value.data


def _attributes(value: Any) -> dict[str, Any]:
    return dict(value.__dict__)
