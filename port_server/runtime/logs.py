"""Python's logging, and structlog, as log records for the BEAM's Logger.

This module imports neither, and is imported itself only when user code imports one. A record that
would reach a handler of the root logger reaches Logger, whatever handlers the code configures, and
none of them prints it to sys.stderr a second time. This module holds no lock and never raises.
"""

from __future__ import annotations

import sys
from _thread import get_ident

from . import failure
from .printed import write_to_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType
    from typing import Any, Final

    from port_server.settings import Settings

    from .output import Output
    from .stdio import Stdio

    # (level, message, fields with the server's names, fields of the caller). In any thread.
    Emit = Callable[[str, str, dict[str, Any], dict[str, Any]], None]

_DONE: Final = "_port_server_logs"
_LEVELS: Final = {
    "debug": "debug",
    "warn": "warning",
    "warning": "warning",
    "err": "error",
    "error": "error",
    "exception": "error",
    "failure": "error",
    "critical": "critical",
    "fatal": "critical",
}  # all others are `info`
# The code of these packages runs between the log call and this module.
_LOGGING: Final = ("structlog", "logging", "port_server")


class Logs:
    """Takes records and sends them."""

    __slots__ = ("_busy", "_emit", "_longest", "_output", "_standard", "_stdio")

    def __init__(self, settings: Settings, output: Output, stdio: Stdio, emit: Emit) -> None:
        self._busy: set[int] = set()
        self._emit = emit
        self._longest = settings.max_error_text_chars
        self._output = output
        self._stdio = stdio
        self._standard: frozenset[str] = frozenset()

    def send(self, level: str, message: str, known: dict[str, Any], extra: dict[str, Any]) -> None:
        """Send one record, with the request that it belongs to."""
        printed = self._output.current()
        if printed is not None:
            known["request"] = printed.id_term[5:]
        self._emit(level, failure.cut(failure.valid(message), self._longest), known, extra)

    def _guarded(self, what: Callable[[Any], None], argument: Any) -> None:
        """Call `what`, unless this thread does so already: the repr of a logged value may log."""
        thread = get_ident()
        if thread in self._busy:
            _say(argument)
            return
        self._busy.add(thread)
        try:
            what(argument)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _say(argument, error)
        finally:
            self._busy.discard(thread)

    # --- logging --------------------------------------------------------------------------------

    def change_logging(self, logging: Any) -> None:
        """Take the records of `logging`, the module, from now on."""
        kind = logging.Logger
        if hasattr(kind.callHandlers, _DONE):
            return
        self._standard = frozenset(logging.makeLogRecord({}).__dict__) | {
            "asctime",
            "message",
            "taskName",
        }
        stream_handler = logging.StreamHandler

        def callHandlers(logger: Any, record: Any) -> None:  # noqa: N802  its name there
            handlers: list[Any] = []
            at = logger
            while at is not None:
                handlers += at.handlers
                if not at.propagate:
                    break
                at = at.parent
            if at is None:  # the root was reached
                self._guarded(self._take, record)
                stderr = self._stdio.stderr
                handlers = [
                    handler
                    for handler in handlers
                    if type(handler) is not stream_handler or handler.stream is not stderr
                ]
            elif not handlers and logging.lastResort is not None:
                handlers = [logging.lastResort]
            for handler in handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)

        callHandlers.__doc__ = kind.callHandlers.__doc__
        callHandlers.__wrapped__ = kind.callHandlers  # type: ignore[attr-defined]
        setattr(callHandlers, _DONE, True)
        kind.callHandlers = callHandlers

    def _take(self, record: Any) -> None:
        fields = record.__dict__
        extra = {
            name: value
            for name, value in fields.items()
            if name not in self._standard and not name.startswith("_")
        }
        message = record.msg
        if isinstance(message, dict) and "event" in message:
            # A record of structlog, on its way to its ProcessorFormatter.
            extra |= {str(name): value for name, value in message.items()}
            for name in ("level", "logger", "timestamp"):
                extra.pop(name, None)
            text = str(extra.pop("event"))
        else:
            text = _message(record)
        if record.exc_info:
            text = _with(text, _exception(record.exc_info))
        elif record.exc_text:
            text = _with(text, record.exc_text)
        if record.stack_info:
            text = _with(text, record.stack_info)
        number = record.levelno
        level = (
            "debug"
            if number < 20
            else "info"
            if number < 30
            else "warning"
            if number < 40
            else "error"
            if number < 50
            else "critical"
        )
        known = {
            "logger": str(record.name),
            "file": str(record.pathname),
            "line": record.lineno,
            "function": str(record.funcName),
        }
        self.send(level, text, known, extra)

    # --- structlog ------------------------------------------------------------------------------

    def change_structlog(self, structlog: ModuleType) -> None:
        """Take the events of `structlog`, the module, from now on."""
        module: Any = structlog
        if hasattr(module, _DONE):
            return
        setattr(module, _DONE, True)
        drop = module.DropEvent

        def to_logger(_logger: Any, method: str, event: Any) -> Any:
            self._guarded(self._take_event, (method, event))
            raise drop

        # By default structlog prints for a terminal. The defaults are changed in place, because
        # `is_configured` must stay false for user code.
        if not module.is_configured():
            processors = module.get_config()["processors"]
            kept = [one for one in processors[:-1] if type(one).__name__ != "TimeStamper"]
            processors[:] = [*kept, to_logger]
        for kind in (module.PrintLogger, module.WriteLogger):
            self._change_print_logger(kind)

    def _take_event(self, argument: tuple[str, Any]) -> None:
        method, event = argument
        extra = {str(name): value for name, value in dict(event).items()}
        level = str(extra.pop("level", method))
        text = str(extra.pop("event", ""))
        exc_info = extra.pop("exc_info", None)
        if exc_info:
            text = _with(text, _exception(exc_info))
        for name in ("exception", "stack"):
            if name in extra:
                text = _with(text, str(extra.pop(name)))
        known = _caller()
        if "logger" in extra:
            known["logger"] = str(extra.pop("logger"))
        self.send(_LEVELS.get(level, "info"), text, known, extra)

    def _change_print_logger(self, kind: Any) -> None:
        """Keep the level of events that are rendered and then printed."""
        original = kind.msg

        def method_of(level: str) -> Any:
            def method(logger: Any, message: Any) -> Any:
                file = getattr(logger, "_file", None)
                if file is not self._stdio.stdout and file is not self._stdio.stderr:
                    return original(logger, message)
                self._guarded(self._take_line, (level, message))
                return None

            return method

        for name in ("msg", "log", "info", *_LEVELS):
            if hasattr(kind, name):
                setattr(kind, name, method_of(_LEVELS.get(name, "info")))

    def _take_line(self, argument: tuple[str, Any]) -> None:
        level, message = argument
        self.send(level, _without_colours(str(message)), _caller(), {})


def _message(record: Any) -> str:
    try:
        return str(record.getMessage())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # too few arguments, a __str__ that raises, ...
        return f"{record.msg!r} % {record.args!r} (not formatted: {type(error).__name__}: {error})"


def _exception(exc_info: Any) -> str:
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    return failure.report(error).rstrip("\n") if isinstance(error, BaseException) else ""


def _with(text: str, more: str) -> str:
    return f"{text}\n{more}" if text and more else text or more


def _caller() -> dict[str, Any]:
    """Find the place of the log call."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  as logging does
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if not isinstance(name, str) or name.partition(".")[0] not in _LOGGING:
            return {
                "logger": str(name),
                "file": frame.f_code.co_filename,
                "line": frame.f_lineno,
                "function": frame.f_code.co_name,
            }
        frame = frame.f_back
    return {}


def _without_colours(text: str) -> str:
    """Take out the escape sequences that colour a terminal."""
    parts = text.split("\x1b[")
    for at in range(1, len(parts)):
        code, end, rest = parts[at].partition("m")
        if end and all(character in "0123456789;" for character in code):
            parts[at] = rest
        else:
            parts[at] = "\x1b[" + parts[at]
    return "".join(parts)


def _say(record: object, error: BaseException | None = None) -> None:
    """Print a record that could not be sent."""
    try:
        what = getattr(record, "msg", record)
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        text = f"log: {str(what)[:1000]}{why}\n"
    except BaseException:
        text = "log: a record that cannot be shown\n"
    write_to_stderr(text.encode("utf-8", "backslashreplace"))
