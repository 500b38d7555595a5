"""Files that hide a module of the standard library, for error messages and the doctor.

Python finds an `asyncio.py` of the working directory or of PYTHONPATH before its own module, for
the server and for every library. The errors that follow seldom tell why.
"""

from __future__ import annotations

import _imp
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_LIBRARY: Final = os.path.dirname(os.__file__)  # noqa: PTH120  start path
# Packages of this name hide Python's own tests, which nothing imports.
_HARMLESS: Final = frozenset(("test",))
_REMEDY: Final = "rename it, or take its directory out of PYTHONPATH or the option cd:"


def explain(error: BaseException) -> None:
    """Add a note that names the file, if `error` is about a module that a file hides."""
    name = file = None
    if isinstance(error, ImportError):
        name, file = error.name, error.path
    elif isinstance(error, AttributeError):
        name = getattr(error.obj, "__spec__", None) and getattr(error.obj, "__name__", None)
    if type(name) is not str or "consider renaming" in str(error):  # Python 3.13 says so itself
        return
    name = name.partition(".")[0]
    file = file or getattr(sys.modules.get(name), "__file__", None)
    if name in sys.stdlib_module_names and type(file) is str and not _is_standard(file):
        note = f"{file} hides Python's own module {name}: {_REMEDY}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def found() -> Iterator[str]:
    """Give a sentence for each file on the path that hides a module of the standard library."""
    for directory in sys.path:
        place = directory or os.getcwd()  # noqa: PTH109  not on the start path
        if _is_standard(place + os.sep):
            return
        for entry in _entries(place):
            name, _dot, ending = entry.partition(".")
            path = os.path.join(place, entry)  # noqa: PTH118
            if (
                name in sys.stdlib_module_names
                and name not in _HARMLESS
                and name not in sys.builtin_module_names
                and not _imp.is_frozen(name)
                and (
                    ending == "py"
                    or ending.endswith("so")
                    or os.path.isfile(os.path.join(path, "__init__.py"))  # noqa: PTH113, PTH118
                )
            ):
                yield f"{path} hides Python's own module {name}: {_REMEDY}"


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208
    except OSError:
        return []


def _is_standard(file: str) -> bool:
    return file.startswith(_LIBRARY + os.sep)
