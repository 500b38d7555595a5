"""A module that is missing: in which Python, and which other environment has it.

PYPORT_PACKAGES is set by the client: `name=directory` of the packages of each environment that it
knows, separated by colons.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_VARIABLE: Final = "PYPORT_PACKAGES"


def explain(error: BaseException) -> None:
    """Add a note to a ModuleNotFoundError of the import system."""
    if not isinstance(error, ModuleNotFoundError) or type(error.name) is not str:
        return
    note = _note(error.name.partition(".")[0])
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _note(module: str) -> str:
    own, others = None, []
    environments = list(_environments())
    for name, directory in environments:
        if directory in sys.path:
            own = name
        # A package that is here lacks a module of its own: another environment is no answer.
        elif module not in sys.modules and _has(directory, module):
            others.append(f":{name}")
    note = f"This is Python {sys.version.partition(' ')[0]} ({sys.executable})"
    if own:
        note += f" in the environment :{own}"
    elif environments:
        note += " in no environment of config :py_port, :uv_init"
    if others:
        found = f"{module} is in the environment {' and in '.join(others)}"
        return f"{note}. {found}: start the server or pool with python_env: {others[0]}"
    if own:
        note += (
            ". To add a package: name it in pyproject.toml, run mix py_port.lock and mix compile"
        )
    return note


def _environments() -> Iterator[tuple[str, str]]:
    for entry in os.environ.get(_VARIABLE, "").split(":"):
        name, _equals, directory = entry.partition("=")
        if directory:
            yield name, directory


def _has(directory: str, module: str) -> bool:
    from importlib.machinery import PathFinder  # noqa: PLC0415  for errors alone

    return PathFinder.find_spec(module, [directory]) is not None
