"""Output and log records of user code, as frames.

Called in any thread, in signal handlers and in `__del__`. `runtime.output` decides to which request
a print belongs, and `runtime.logs` makes records; this module sends them.
"""

from __future__ import annotations

from _thread import get_ident
from os import SEEK_END, lseek

from port_server.protocol import messages
from port_server.runtime import failure, main_module, sources, thread_context
from port_server.runtime.imports import ImportHooks
from port_server.runtime.objects import shown
from port_server.runtime.output import Output
from port_server.runtime.printed import STDERR_FD, write_to_stderr
from port_server.runtime.stdio import Stdio, explain_input

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from port_server.protocol.requests import Request
    from port_server.runtime.logs import Logs
    from port_server.settings import Settings

    from .cancel import Cancels
    from .main_thread import MainThread
    from .port import Port
    from .reader import ReaderLock
    from .scheduler import Scheduler


class Stderr:
    """The file of fd 2, in which what children and C code write to fds 1 and 2 ends up.

    The owner reads it. It is told about new text before the last reply of the request that the text
    may belong to. A look takes 1.5 % of a small request. So the file is looked at after requests
    off the fast path, as the first one of its code, and after each once code has written there.

    Attributes:
        used: whether code has written there.
    """

    __slots__ = ("_main", "_port", "_reports", "_scheduler", "_size", "used")

    def __init__(
        self, port: Port, main: MainThread, scheduler: Scheduler, *, reports: bool
    ) -> None:
        self._main = main
        self._port = port
        self._reports = reports
        self._scheduler = scheduler
        self._size = stderr_size()
        self.used = False

    def report(self, request: Request) -> None:
        """Tell the owner which requests were under way while the file has grown, if it has."""
        size = stderr_size()
        grown, self._size = size != self._size, size
        if not (grown and self._reports) or self._port.forked:
            return
        self.used = True
        running = self._main.running
        under_way = {request.id_term: None, **dict.fromkeys(self._scheduler.elsewhere)}
        if running is not None:
            under_way[running.id_term] = None
        self._port.hold([messages.stderr(list(under_way))])


def stderr_size() -> int:
    """Give the size of the file, 0 if fd 2 is no file."""
    try:
        return lseek(STDERR_FD, 0, SEEK_END)
    except OSError:
        return 0


class Reports:
    """The way out for output and log records.

    Attributes:
        output: what requests print.
        stdio: sys.stdin, sys.stdout and sys.stderr, which are in place from now on.
    """

    def __init__(
        self,
        settings: Settings,
        port: Port,
        main: MainThread,
        lock: ReaderLock,
        cancels: Cancels,
        *,
        logging: bool,
    ) -> None:
        """Put the streams in place, follow the code into threads, and take log records if asked."""
        self._logs: Logs | None = None
        self._main = main
        self._port = port
        self.output = Output(settings, self._emit, main, lock, cancels)
        self.stdio = Stdio(self.output)
        self.stdio.install()
        explain_input()
        hooks = ImportHooks()
        hooks.install()
        hooks.add("linecache", sources.prepare)
        thread_context.install(self.output, hooks)
        main_module.install(hooks)
        if not logging:
            return

        def logs() -> Logs:
            if self._logs is None:
                # Most servers never log: not worth half a millisecond of every start.
                from port_server.runtime.logs import Logs  # noqa: PLC0415

                self._logs = Logs(settings, self.output, self.stdio, self._emit_log)
            return self._logs

        hooks.add("logging", lambda module: logs().change_logging(module))
        hooks.add("structlog", lambda module: logs().change_structlog(module))

    def _emit(self, id_term: bytes, stream: str, text: bytes, now: bool) -> None:
        self._post(messages.output(id_term, stream, text), now=now)

    def _emit_log(
        self, level: str, message: str, known: dict[str, Any], extra: dict[str, Any]
    ) -> None:
        if self._port.forked:
            text = f"{level}: {known.get('logger', '')}: {message}\n"
            write_to_stderr(text.encode("utf-8", "backslashreplace"))
            return
        try:
            record = messages.log(level, message, known, extra, shown)
        except ValueError:  # a cycle, a lone surrogate, ...
            texts = {failure.valid(key): shown(value) for key, value in extra.items()}
            record = messages.log(level, message, known, texts, shown)
        self._post(record, now=True)
        self.output.delivered(len(record))

    def _post(self, frame: bytes, *, now: bool) -> None:
        self._port.hold([frame])
        # Frames that main holds leave with the reply; other threads have no such moment.
        if now or get_ident() != self._main.ident:
            self._port.flush()
