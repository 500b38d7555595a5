"""The public functions of a module, for `use PyPort.Module`: names, parameters, types, texts.

Imports the module, so its code runs. The answer is one term, a map with binaries for keys.
"""

from __future__ import annotations

import importlib
import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from port_server.etf import encode

_SIMPLE = {
    bool: "boolean()",
    int: "integer()",
    float: "float()",
    str: "String.t()",
    bytes: "binary()",
    type(None): "nil",
    None: "nil",
}
_LISTS = (list, Sequence)
_MAPS = (dict, Mapping)


def spec_of(hint: Any, *, given: bool = False) -> str:
    """Give the type of Elixir, as source, for a type hint; of an argument if `given`."""
    if given and hint is float:
        return "number()"
    try:
        if hint in _SIMPLE:
            return _SIMPLE[hint]
    except TypeError:  # not hashable
        return "term()"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    inner = [spec_of(one, given=given) for one in arguments if one is not Ellipsis]
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(dict.fromkeys(inner))
    if origin in _LISTS and len(inner) == 1:
        return f"[{inner[0]}]"
    if origin in _MAPS and len(inner) == 2:
        return f"%{{optional({inner[0]}) => {inner[1]}}}"
    if origin is tuple and inner and Ellipsis not in arguments:
        return "{" + ", ".join(inner) + "}"
    if hint is list or origin in _LISTS:
        return "list()"
    if hint is dict or origin in _MAPS:
        return "map()"
    return "tuple()" if hint is tuple or origin is tuple else "term()"


def functions_of(module: Any) -> list[dict[str, Any]]:
    """Describe the public functions of a module, in the order of their names."""
    listed = getattr(module, "__all__", None)
    names = [name for name in dir(module) if not name.startswith("_")] if listed is None else listed
    found = []
    for name in sorted(set(names)):
        function = getattr(module, name, None)
        if not inspect.isroutine(inspect.unwrap(function) if callable(function) else function):
            continue
        if listed is None and getattr(function, "__module__", None) != module.__name__:
            continue  # imported from elsewhere
        found.append(_described(name, function))
    return found


def _described(name: str, function: Any) -> dict[str, Any]:
    described = {"name": name, "doc": inspect.getdoc(function) or ""}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of those in C
        return {**described, "params": [], "var": True, "keywords": True, "returns": "term()"}
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that exist for a type checker only
        hints = {}
    parameters = signature.parameters.values()
    return {
        **described,
        "params": [
            {
                "name": one.name,
                "optional": one.default is not one.empty,
                "named": one.kind is not one.POSITIONAL_ONLY,
                "positional": one.kind is not one.KEYWORD_ONLY,
                "type": spec_of(hints.get(one.name), given=True) if one.name in hints else "term()",
            }
            for one in parameters
            if one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
        ],
        "var": any(one.kind is one.VAR_POSITIONAL for one in parameters),
        "keywords": any(one.kind is one.VAR_KEYWORD for one in parameters),
        "returns": spec_of(hints["return"]) if "return" in hints else "term()",
    }


def main(name: str) -> None:
    """Write the functions of the module of that name, and its file, to stdout."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what the module prints
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    with os.fdopen(answers, "wb") as stdout:
        stdout.write(encode({"file": file, "functions": functions_of(module)}))
