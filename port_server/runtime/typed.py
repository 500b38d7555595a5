"""Arguments of a typed call: instances of classes, made of maps by the type hints of a function.

Classes with fields (dataclasses, attrs, pydantic, msgspec, TypedDict, NamedTuple) are made of maps,
enums of the value or the name of a member, and tuples, sets and deques of lists; also inside of
lists, maps and optional types. All other values stay what they are. Runs user code: constructors.
"""

from __future__ import annotations

import collections
import collections.abc
import enum
import inspect
import types
import typing

from port_server.etf import DecodeError, Struct
from port_server.etf.errors import path_of
from port_server.etf.models import constructor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_Step = tuple[typing.Any, ...]
_LISTS = (list, tuple, set, frozenset, collections.deque)
_MOST_NAMED = 20  # members of an enum, or fields, in a message


def bind(
    function: Any, args: list[Any], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the arguments of a call as the type hints of the function say.

    Raises:
        DecodeError: a value cannot be made; or the hints cannot be read.
        TypeError: the function does not take these arguments, as in any call.
    """
    try:
        bound = inspect.signature(function).bind(*args, **keywords)
    except ValueError:  # of a function in C, which has no hints either
        return tuple(args), keywords
    hints = _hints(function)
    at = 0
    for name, value in bound.arguments.items():
        hint, kind = hints.get(name), bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            made = tuple(_make(hint, one, (at + index,)) for index, one in enumerate(value))
            bound.arguments[name] = made
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: _make(hint, value[key], (key,)) for key in value}
        else:
            bound.arguments[name] = _make(hint, value, (name if name in keywords else at,))
            at += 1
    return bound.args, bound.kwargs


def _hints(function: Any) -> dict[str, Any]:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    if isinstance(function, type):
        if hasattr(function, "__dataclass_fields__") or hasattr(function, "__attrs_attrs__"):
            return _read_hints(function)
        function = function.__init__  # type: ignore[misc]
    elif not hasattr(function, "__annotations__") and hasattr(type(function), "__call__"):  # noqa: B004
        function = type(function).__call__
    return _read_hints(function)


def _read_hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of, include_extras=False)
    except NameError as error:
        raise DecodeError(
            f"the type hints of {getattr(of, '__qualname__', of)} cannot be read: {error}",
            "Import what they name where the module is run, not only for type checkers, or call it "
            "without typed: true",
        ) from None
    except TypeError:  # no function, class or module
        return {}


def _make(hint: Any, value: Any, steps: _Step) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(hint, "__supertype__"):
        return _make(hint.__supertype__, value, steps)
    if origin is typing.Union or origin is types.UnionType:
        return _any_of(inner, value, steps)
    kind = origin or hint
    if not isinstance(kind, type):
        return value  # no hint, Any, a type variable, a literal
    if isinstance(value, _LISTS):
        return _list(kind, inner, value, steps)
    if issubclass(kind, enum.Enum):
        return _member(kind, value, steps)
    if isinstance(value, dict) and not isinstance(value, Struct):
        return _map(kind, inner, value, steps)
    return value


def _any_of(kinds: tuple[Any, ...], value: Any, steps: _Step) -> Any:
    """Make one of the types of a union: the first that the value is of, else the first it makes."""
    first = None
    for kind in kinds:
        if isinstance(kind, type) and type(value) is kind:
            return value
    for kind in kinds:
        try:
            made = _make(kind, value, steps)
        except DecodeError as error:
            first = first or error
            continue
        if made is not value or not isinstance(typing.get_origin(kind) or kind, type):
            return made
    if first is not None and isinstance(value, dict):
        raise first
    return value


def _list(kind: type, inner: tuple[Any, ...], value: Any, steps: _Step) -> Any:
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*value)
    if issubclass(kind, tuple) and inner and inner[-1:] != (...,):
        inner += (None,) * (len(value) - len(inner))
        return tuple(_make(inner[index], one, (*steps, index)) for index, one in enumerate(value))
    if not issubclass(kind, (*_LISTS, collections.abc.Collection, collections.abc.Iterable)):
        return value
    made = [_make(inner[0] if inner else None, one, (*steps, at)) for at, one in enumerate(value)]
    if kind in (tuple, set, frozenset, collections.deque):
        return kind(made)
    if issubclass(collections.abc.Set, kind) or not isinstance(value, list):
        return type(value)(made)
    return made


def _member(kind: type[enum.Enum], value: Any, steps: _Step) -> Any:
    for key in (value, str(value)) if isinstance(value, str) else (value,):
        try:
            return kind(key)
        except ValueError:
            pass
    if isinstance(value, str) and value in kind.__members__:
        return kind.__members__[value]
    raise DecodeError(
        f"{value!r} is no {kind.__qualname__}",
        f"Its members are {_named(kind.__members__)}",
        path=path_of(list(steps)),
    )


def _map(kind: type, inner: tuple[Any, ...], value: dict[Any, Any], steps: _Step) -> Any:
    if issubclass(kind, (dict, collections.abc.Mapping)) and not typing.is_typeddict(kind):
        hint = inner[1] if len(inner) == 2 else None
        return {key: _make(hint, one, (*steps, key)) for key, one in value.items()}
    for method in ("model_validate", "parse_obj"):  # pydantic 2 and 1
        if hasattr(kind, method):
            return getattr(kind, method)(_plain(value))
    if hasattr(kind, "__struct_fields__"):
        import msgspec  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

        return msgspec.convert(_plain(value), kind)
    names = _field_names(kind)
    if names is None:
        return value
    hints = _read_hints(kind)
    given = {str(key): _make(hints.get(key), one, (*steps, key)) for key, one in value.items()}
    unknown = [name for name in given if name not in names]
    missing = [name for name, needed in names.items() if needed and name not in given]
    if unknown or missing:
        what = f"has no field {_named(unknown)}" if unknown else f"needs {_named(missing)}"
        raise DecodeError(
            f"{kind.__qualname__} {what}",
            f"Its fields are {_named(names)}",
            path=path_of(list(steps)),
        )
    return constructor(kind)(given)


def _field_names(kind: type) -> dict[str, bool] | None:
    """Give the names of the fields, each with whether it is needed; None for another class."""
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        import dataclasses  # noqa: PLC0415

        none = dataclasses.MISSING
        return {
            field.name: field.default is none and field.default_factory is none
            for field in dataclasses.fields(kind)
            if field.init
        }
    if hasattr(kind, "__attrs_attrs__"):
        import attr  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

        return {one.name: one.default is attr.NOTHING for one in attr.fields(kind) if one.init}
    if typing.is_typeddict(kind):
        needed = kind.__required_keys__  # type: ignore[attr-defined]
        return {name: name in needed for name in kind.__annotations__}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return {name: name not in kind._field_defaults for name in kind._fields}  # type: ignore[attr-defined]
    return None


def _plain(value: Any) -> Any:
    """Give a map with keys that are exactly str, which some libraries insist on."""
    if type(value) is dict:
        return {
            str(key) if isinstance(key, str) else key: _plain(one) for key, one in value.items()
        }
    return [_plain(one) for one in value] if type(value) is list else value


def _named(names: Mapping[str, Any] | list[str]) -> str:
    shown = [repr(str(name)) for name in names][: _MOST_NAMED + 1]
    return ", ".join([*shown[:_MOST_NAMED], *(["..."] if len(shown) > _MOST_NAMED else [])])
