"""Log records of the server itself, on stderr: readable on a terminal, JSON lines otherwise.

Cheap to import: structlog (130 ms) is loaded by the first record that is written, so a server that
has nothing to say never pays for it. A record never raises into its caller and never touches fd 1.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import Any, Final

LEVELS: Final = ("warning", "error")
LEVEL_VARIABLE: Final = "PORT_SERVER_LOG"

# On a port, stderr may be the BEAM's own: say nothing there unless something is wrong.
DEFAULT_LEVEL: Final = "warning"

_STDERR_FD: Final = 2

_write_record: Callable[[str, str, dict[str, Any]], None] | None = None


def level_from(setting: str | None) -> str:
    """The level that a setting asks for; one that is none of `LEVELS` means the default."""
    wanted = (setting or "").strip().lower()
    return wanted if wanted in LEVELS else DEFAULT_LEVEL


_threshold = LEVELS.index(level_from(os.environ.get(LEVEL_VARIABLE)))


def warning(event: str, **fields: Any) -> None:
    """Record that something was wrong and the server goes on."""
    if _threshold == 0:
        _record("warning", event, fields)


def error(event: str, **fields: Any) -> None:
    """Record why the server cannot go on, or lost something."""
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
        except Exception:  # noqa: S110 - there is nowhere left to say it
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
    """Write to the real stderr, whatever became of `sys.stderr`; one write, so lines stay whole."""
    data = (line + "\n").encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(_STDERR_FD, data) :]


def _in_order(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> dict[str, Any]:
    """What every record has comes first: people read these lines, too."""
    first = {name: record.pop(name) for name in ("timestamp", "level", "event")}
    return {**first, **record}


def _make_writer() -> Callable[[str, str, dict[str, Any]], None]:
    # Nothing is configured globally: the structlog of the code that people run here is theirs.
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
