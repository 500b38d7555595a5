"""Calls a function with the items of many callers as one list, for `PyPort.Batcher`."""

from __future__ import annotations

from port_server.etf import Atom
from port_server.settings import Settings

from . import failure
from .targets import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Results = tuple[list[Any], dict[int, dict[Any, Any]]]


def run(target: str | bytes, items: list[Any], **kwargs: Any) -> Any:
    """Call the function that `target` names with the list of items.

    Returns:
        Its results, one for each item, and the errors by index: an exception object among the
        results is the error of its item. An awaitable of that where the function gives one.

    Raises:
        TypeError: the results are no list, or another sequence of values.
        ValueError: there is not one result for each item.
    """
    name = target.decode() if isinstance(target, bytes) else target
    results = Target(name).find()(items, **kwargs)
    if hasattr(type(results), "__await__"):
        return _awaited(name, len(items), results)
    return _results(name, len(items), results)


async def _awaited(name: str, count: int, results: Any) -> Results:
    return _results(name, count, await results)


def _results(name: str, count: int, results: Any) -> Results:
    if isinstance(results, (str, bytes, dict, set)) or not hasattr(type(results), "__iter__"):
        raise TypeError(
            f"{name} gave a value of type {type(results).__name__} for a batch of {count} items: "
            f"let it return a list with one result for each item, in their order"
        )
    values = list(results)
    if len(values) != count:
        raise ValueError(
            f"{name} gave {len(values)} results for a batch of {count} items: let it return one "
            f"for each item, in their order; an exception object stands for an item that failed"
        )
    errors = {}
    for index, value in enumerate(values):
        if isinstance(value, BaseException):
            errors[index] = _atom_keys(failure.describe_exception(value, Settings()))
            values[index] = None
    return values, errors


def _atom_keys(description: dict[str, Any]) -> dict[Any, Any]:
    frames = [_atom_keys(frame) for frame in description.get("frames", ())]
    return {Atom(key): frames if key == "frames" else value for key, value in description.items()}
