"""Exception -> error description: the map that docs/protocol.md calls an error map.

traceback (8 to 10 ms) is imported on the first failure only. The server's own frames are left
out everywhere. User code cannot make this module raise: an exception whose `__str__` fails gets a
description as well.
"""

from __future__ import annotations

import os
import sys

from port_server.etf import Atom, EtfError, encode

from . import environment, shadows, sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from traceback import StackSummary, TracebackException
    from typing import Any, Final

    from port_server.settings import Settings

_OWN_DIRECTORY: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120  start path

_PYTHON: Final = Atom("python")
_DEBUGGER: Final = (
    "breakpoint() and pdb read from a terminal, and a server has none. To debug here: mix "
    "py_port.debug lets an editor attach by debugpy; python -m pdb -p PID attaches from a terminal "
    "(Python 3.14, the PID stands in PyPort.status/1); PyPort.stacks/1 shows where code is; remote-"
    'pdb listens on a socket (env: [{"PYTHONBREAKPOINT", "remote_pdb.set_trace"}])'
)
_MODULE: Final[Any] = type.__dict__["__module__"]
_QUALNAME: Final[Any] = type.__dict__["__qualname__"]


def describe(kind: str, type: str, message: str, **more: Any) -> dict[str, Any]:
    """Describe a failure that is not an exception of user code: no traceback, no frames."""
    return {
        "kind": Atom(kind),
        "type": type,
        "message": message,
        "traceback": "",
        "frames": [],
        **more,
    }


def describe_value_error(kind: str, error: EtfError | ValueError) -> dict[str, Any]:
    """Describe a value that could not be read or written, or that cannot be what it should be."""
    return describe(kind, type_name(error), str(error))


def describe_cancelled(
    error: BaseException, settings: Settings, kind: str = "cancelled"
) -> dict[str, Any]:
    """Describe a request that was told to end, with its place in the code as a traceback.

    `error` is Cancelled, or an exception that the code has raised instead.
    """
    return {**describe_exception(error, settings), "kind": Atom(kind), "begun": True}


def describe_exception(error: BaseException, settings: Settings) -> dict[str, Any]:
    """Describe an exception of user code; its `traceback` is what Python itself would print."""
    try:
        return _describe(error, settings)
    except BaseException as second:  # out of memory while formatting, a hostile __class__, ...
        try:
            shadows.explain(second)
            why = "; ".join((_text(second), *getattr(second, "__notes__", ())))
            message = (
                f"{_text(error)} (its traceback could not be made: {type_name(second)}: {why})"
            )
        except BaseException:
            return describe_unseen(error)
        return describe("python", type_name(error), message)


def describe_unseen(error: BaseException) -> dict[str, Any]:
    """Describe an exception that raises when it is looked at."""
    return describe("python", type_name(error), "the exception could not be described")


def type_name(error: BaseException) -> str:
    """Name the exception's class; see `class_name`."""
    return class_name(type(error))


def class_name(kind: type) -> str:
    """Name a class as Python prints it: those of builtins and `__main__` without a module.

    By the attributes that every class has, whatever its metaclass makes of their names.
    """
    name = _plain(_QUALNAME.__get__(kind))
    try:
        module = _MODULE.__get__(kind)
    except AttributeError:  # deleted
        return name
    if not isinstance(module, str) or module in {"builtins", "__main__"}:
        return name
    return f"{_plain(module)}.{name}"


def _plain(text: str) -> str:
    # Of a subclass, any method may be user code.
    return valid(str.__str__(text))


def _describe(error: BaseException, settings: Settings) -> dict[str, Any]:
    import traceback  # noqa: PLC0415  see the top

    _add_hint(error)
    sources.publish_all()
    report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _leave_out_own_frames(report)
    limit = settings.max_error_text_chars
    attributes = attributes_of(error, limit)
    frames = [
        {
            "file": frame.filename,
            "line": frame.lineno or 0,
            "function": frame.name,
            "source": frame.line or None,
        }
        for frame in _ends(report.stack, settings.max_error_frames)
    ]
    if isinstance(error, SyntaxError) and error.filename is not None and not frames:
        frames = [
            {
                "file": str(error.filename),
                "line": error.lineno or 0,
                "function": "<module>",
                "source": str(error.text).strip() if error.text else None,
            }
        ]
    return {
        "kind": _PYTHON,
        "type": type_name(error),
        "message": cut(_text(error), limit),
        "traceback": cut(valid("".join(report.format())), limit),
        "frames": [{name: _clean(value) for name, value in frame.items()} for frame in frames],
        **({"attributes": attributes} if attributes else {}),
    }


def attributes_of(error: BaseException, most_bytes: int) -> list[tuple[str, bytes]]:
    """Write the attributes of an exception that can be written: each a term of its own.

    The other side leaves out one that it cannot read.
    """
    found = []
    for name, value in dict(getattr(error, "__dict__", ())).items():
        if not isinstance(name, str) or name.startswith("__"):  # __notes__ are in the traceback
            continue
        try:
            term = encode(value, max_bytes=most_bytes)
        except Exception:  # noqa: S112  without a term, too large, or a conversion that raises
            continue
        found.append((valid(name), term))
        most_bytes -= len(term)
    return found


def _add_hint(error: BaseException) -> None:
    """Add a note to an exception whose message alone does not say what to do."""
    shadows.explain(error)
    environment.explain(error)
    if type_name(error) == "bdb.BdbQuit" and not getattr(error, "__notes__", ()):
        error.add_note(_DEBUGGER)


def _ends(stack: StackSummary, limit: int) -> list[Any]:
    """Give the first frames, of the caller, and the last frames, of the failure."""
    if len(stack) <= limit:
        return list(stack)
    return [*stack[: limit // 2], *stack[-(limit - limit // 2) :]]


def _leave_out_own_frames(report: TracebackException) -> None:
    pending: list[Any] = [report]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.stack[:] = [frame for frame in one.stack if not _is_own(frame.filename)]
        pending += (one.__cause__, one.__context__, *(one.exceptions or ()))


def _is_own(file: str) -> bool:
    return file.startswith(_OWN_DIRECTORY)


def _text(error: BaseException) -> str:
    try:
        return valid(str(error))
    except BaseException:
        return f"<{type_name(error)} whose __str__ fails>"


def _clean(value: Any) -> Any:
    return valid(value) if isinstance(value, str) else value


def valid(text: str) -> str:
    """Replace lone surrogates, because a reply with one in a message could not be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def cut(text: str, limit: int) -> str:
    """Leave out the middle of a text that is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def report(error: BaseException) -> str:
    """Give the text that Python would print of `error`, without the server's own frames."""
    import traceback  # noqa: PLC0415  see the top

    sources.publish_all()
    found = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _leave_out_own_frames(found)
    return "".join(found.format())


def print_to_stderr(error: BaseException) -> None:
    """Write the report to sys.stderr, for failures that belong to no request."""
    sys.stderr.write(report(error))
