"""Log records of the server itself, on stderr: readable on a terminal, JSON lines otherwise.

Cheap to import: the first record that is written loads structlog (130 ms), so a server without
records never loads it. A record never raises into its caller and never touches fd 1.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import Any, Final

LEVELS: Final = ("warning", "error")
LEVEL_VARIABLE: Final = "PORT_SERVER_LOG"

# On a port, stderr may be the BEAM's own: write to it only if something is wrong.
DEFAULT_LEVEL: Final = "warning"

_STDERR_FD: Final = 2

_write_record: Callable[[str, str, dict[str, Any]], None] | None = None


def level_from(setting: str | None) -> str:
    """The level of a setting; a value that is not in `LEVELS` means the default."""
    wanted = (setting or "").strip().lower()
    return wanted if wanted in LEVELS else DEFAULT_LEVEL


_threshold = LEVELS.index(level_from(os.environ.get(LEVEL_VARIABLE)))


def warning(event: str, **fields: Any) -> None:
    """Log a problem after which the server goes on."""
    if _threshold == 0:
        _record("warning", event, fields)


def error(event: str, **fields: Any) -> None:
    """Log why the server cannot go on, or a loss of data."""
    _record("error", event, fields)


def _record(level: str, event: str, fields: dict[str, Any]) -> None:
    global _write_record  # noqa: PLW0603 - made by the first record
    try:
        if _write_record is None:
            _write_record = _make_writer()
        _write_record(level, event, fields)
    except Exception as trouble:  # structlog gone, a value whose repr raises, stderr closed
        try:  # noqa: SIM105 - contextlib would be an import, and this is the last resort
            write_line(f"{level}: {event}{_plainly(fields)} (structlog failed: {trouble!r})")
        except Exception:  # noqa: S110 - no place is left to report it
            pass


def _plainly(fields: dict[str, Any]) -> str:
    text = ""
    for name, value in fields.items():
        try:
            text += f" {name}={value!r}"
        except Exception:
            text += f" {name}=?"
    return text


def write_line(line: str) -> None:
    """Write to the real stderr, not to `sys.stderr`; with one write, so lines stay whole."""
    data = (line + "\n").encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(_STDERR_FD, data) :]


def _in_order(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> dict[str, Any]:
    """Put the common fields of a record first, for readability."""
    first = {name: record.pop(name) for name in ("timestamp", "level", "event")}
    return {**first, **record}


def _make_writer() -> Callable[[str, str, dict[str, Any]], None]:
    # No global configuration: user code may configure structlog for itself.
    import structlog  # noqa: PLC0415 - the whole point of this module

    on_terminal = os.isatty(_STDERR_FD)
    render: Any
    if on_terminal:
        render = structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
    else:
        render = structlog.processors.JSONRenderer(default=repr)

    class ToStderr:
        """The logger at the end of structlog's chain."""

        def msg(self, line: str) -> None:
            write_line(line)

        warning = error = msg

    logger = structlog.wrap_logger(
        ToStderr(),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _in_order,
            render,
        ],
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )

    def write_record(level: str, event: str, fields: dict[str, Any]) -> None:
        # `event` and `level` are the record's own: a field of that name would replace them.
        named = {f"{key}_" if key in ("event", "level") else key: fields[key] for key in fields}
        getattr(logger, level)(event, **named)

    return write_record
