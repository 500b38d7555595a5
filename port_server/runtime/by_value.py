"""Functions and classes of `__main__` for multiprocessing, by value.

A child of multiprocessing cannot import the module that a request is. So such a function or class
is sent as what it is made of, and made once in the child, in its `__main__`. An object that comes
back to the process it is from, or to a fork of that, is the original there.
"""

from __future__ import annotations

import marshal
import os
import sys
from dis import get_instructions
from importlib import import_module as module
from itertools import count
from types import CellType, CodeType, FunctionType, MappingProxyType, ModuleType
from weakref import WeakKeyDictionary, WeakValueDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_tokens: Final[WeakKeyDictionary[Any, str]] = WeakKeyDictionary()
_numbers: Final = count()
_known: Final[WeakValueDictionary[str, Any]] = WeakValueDictionary()
_WRAPPERS: Final = (staticmethod, classmethod)
# The attributes that Python itself puts into a class.
_OF_PYTHON: Final = frozenset(("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__"))


def reduce(_pickler: Any, value: Any) -> Any:
    """Reduce a function, a class, or a part of these: `reducer_override` of ForkingPickler."""
    if type(value) is CellType:
        return make_cell, (), _contents(value), None, None, fill
    if type(value) in _WRAPPERS:
        return type(value), (value.__func__,)
    if type(value) is ModuleType:
        return module, (value.__name__,)
    if type(value) is property:
        return property, (value.fget, value.fset, value.fdel, value.__doc__)
    if type(value) is MappingProxyType:
        return make_proxy, (dict(value),)
    if type(value).__name__ == "_FIELD_BASE":  # the kinds of fields of dataclasses, as in `fields`
        return attribute, (type(value).__module__, value.name)
    if getattr(value, "__module__", None) != "__main__":
        return NotImplemented
    if type(value) is FunctionType:
        code = value.__code__
        state = {
            "globals": {name: value.__globals__[name] for name in _globals_of(value)},
            "closure": value.__closure__ or (),
            "defaults": (value.__defaults__, value.__kwdefaults__, value.__annotations__),
            "dict": value.__dict__,
        }
        cells = len(code.co_freevars)
        first = (_token(value), marshal.dumps(code), value.__name__, value.__qualname__, cells)
        return make_function, first, state, None, None, set_function
    if isinstance(value, type):
        return _reduce_class(value)
    return NotImplemented


def _reduce_class(kind: Any) -> Any:
    own = {name: one for name, one in vars(kind).items() if name not in _OF_PYTHON}
    slots = own.get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        own.pop(name, None)
    members = None
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(kind, enum.EnumMeta):
        members = {name: member.value for name, member in kind.__members__.items()}
        own = {name: one for name, one in own.items() if type(one) is FunctionType}
        own = {name: one for name, one in own.items() if one.__module__ == "__main__"}
    # These are set by the class itself, or cannot be set.
    for name in ("_abc_impl", "__abstractmethods__", "__static_attributes__"):
        own.pop(name, None)
    early = {"__slots__": own.pop("__slots__")} if "__slots__" in own else {}
    early |= {"__module__": "__main__", "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    first = (_token(kind), type(kind), kind.__name__, kind.__bases__, early, members)
    return make_class, first, own, None, None, set_class


def _token(value: Any) -> str:
    token = _tokens.get(value)
    if token is None:
        token = f"{os.getpid()}-{next(_numbers)}"
        _keep(token, value)
    return token


def _keep(token: str, value: Any) -> None:
    _tokens[value] = token
    _known[token] = value


def _globals_of(function: Any) -> set[str]:
    """Give the names of the namespace that the code, or code inside of it, may use."""
    names: set[str] = set()
    codes = [function.__code__]
    for code in codes:
        names.update(
            one.argval
            for one in get_instructions(code)
            if one.opname in {"LOAD_GLOBAL", "LOAD_NAME"}
        )
        codes += [one for one in code.co_consts if type(one) is CodeType]
    return names & set(function.__globals__)


def _contents(cell: Any) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty
        return ()


# --- in the process that reads --------------------------------------------------------------------


def fill(cell: Any, contents: tuple[Any, ...]) -> None:
    if contents:
        cell.cell_contents = contents[0]


def make_cell() -> CellType:
    """Give an empty cell."""
    return CellType()


def make_proxy(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    """Give a dict that cannot be changed."""
    return MappingProxyType(values)


def attribute(module: str, name: str) -> Any:
    """Give an attribute of a module that is imported."""
    return getattr(sys.modules[module], name)


def make_function(token: str, code: bytes, name: str, qualname: str, cells: int) -> Any:
    """Give the function of that token; a new one, without its state, if there is none."""
    function = _known.get(token)
    if function is None:
        namespace = sys.modules["__main__"].__dict__
        closure = tuple(CellType() for _ in range(cells))
        function = FunctionType(marshal.loads(code), namespace, name, None, closure)  # noqa: S302
        function.__qualname__ = qualname
        function.__module__ = "__main__"
        _keep(token, function)
        _publish(function)
        _new.add(token)
    return function


def set_function(function: Any, state: dict[str, Any]) -> None:
    """Complete a function that was just made."""
    token = _tokens[function]
    if token not in _new:
        return
    _new.discard(token)
    for name, value in state["globals"].items():
        function.__globals__.setdefault(name, value)
    for cell, sent in zip(function.__closure__ or (), state["closure"], strict=True):
        fill(cell, _contents(sent))
    function.__defaults__, function.__kwdefaults__, function.__annotations__ = state["defaults"]
    function.__dict__.update(state["dict"])


def make_class(
    token: str,
    metaclass: Any,
    name: str,
    bases: tuple[type, ...],
    early: dict[str, Any],
    members: dict[str, Any] | None,
) -> Any:
    """Give the class of that token; a new one, without its attributes, if there is none."""
    kind = _known.get(token)
    if kind is None:
        if members is None:
            kind = metaclass(name, bases, early)
        else:
            kind = bases[-1](name, members, module="__main__", qualname=early["__qualname__"])
        _keep(token, kind)
        _publish(kind)
        _new.add(token)
    return kind


def set_class(kind: Any, own: dict[str, Any]) -> None:
    """Complete a class that was just made."""
    token = _tokens[kind]
    if token in _new:
        _new.discard(token)
        for name, value in own.items():
            setattr(kind, name, value)


_new: Final[set[str]] = set()


def _publish(value: Any) -> None:
    """Put it where the pickle of its instances, which goes by name, finds it."""
    if value.__name__ == value.__qualname__:
        sys.modules["__main__"].__dict__.setdefault(value.__name__, value)
