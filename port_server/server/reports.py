"""What user code says besides its replies: output and log records, as frames.

Called in any thread, in signal handlers and in `__del__`. What belongs to whom stands in
`runtime.output`, how a record is made in `runtime.logs`; here is only when and how it leaves.
"""

from __future__ import annotations

from _thread import get_ident

from port_server.protocol import messages
from port_server.runtime import carry, failure, sources
from port_server.runtime.imports import ImportHooks
from port_server.runtime.objects import shown
from port_server.runtime.output import Output, write_to_stderr
from port_server.runtime.streams import Streams, explain_input

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from port_server.runtime.logs import Logs
    from port_server.settings import Settings

    from .channel import Channel
    from .stdio import Stdio
    from .window import Window


class Reports:
    """The way out for output and log records.

    Attributes:
        hooks: what is done when user code imports a module.
        output: what requests print.
        streams: sys.stdout, sys.stderr and sys.stdin, which are in place from now on.
    """

    __slots__ = (
        "_channel",
        "_logs",
        "_main",
        "_stdio",
        "hooks",
        "output",
        "streams",
    )

    def __init__(self, settings: Settings, stdio: Stdio, channel: Channel, window: Window) -> None:
        self._channel = channel
        self._logs: Logs | None = None
        self._main = get_ident()
        self._stdio = stdio
        self.hooks = ImportHooks()
        self.output = Output(settings, self._emit)
        self.output.window = window
        self.streams = Streams(self.output)
        self.streams.install()
        explain_input()

    def install(
        self,
        begun: Callable[[], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
    ) -> None:
        """Follow the code into threads.

        Args:
            begun: see `Output.begun`.
            may_wait: see `Output.may_wait`.
        """
        self.output.begun = begun
        if may_wait is not None:
            self.output.may_wait = may_wait
        self.hooks.install()
        self.hooks.add("linecache", sources.prepare)
        carry.install(self.output, self.hooks)

    def take_logs(self, settings: Settings) -> None:
        """Take log records as well; otherwise Python does with them what it always does."""

        def logs() -> Logs:
            if self._logs is None:
                # Most servers never log: not worth half a millisecond of every start.
                from port_server.runtime.logs import Logs  # noqa: PLC0415

                self._logs = Logs(settings, self.output, self.streams, self._emit_log)
            return self._logs

        self.hooks.add("logging", lambda module: logs().change_logging(module))
        self.hooks.add("structlog", lambda module: logs().change_structlog(module))

    # --- output ---------------------------------------------------------------------------------

    def _emit(self, id_term: bytes, stream: str, text: bytes, now: bool) -> None:
        self._post(messages.output(id_term, stream, text), now=now)

    # --- log records ----------------------------------------------------------------------------

    def _emit_log(
        self, level: str, message: str, known: dict[str, Any], extra: dict[str, Any]
    ) -> None:
        if self._stdio.forked:
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

    # --- both -----------------------------------------------------------------------------------

    def _post(self, frame: bytes, *, now: bool) -> None:
        self._channel.hold([frame])
        # What main holds leaves with the reply; nobody comes by for other threads.
        if now or get_ident() != self._main:
            self._channel.write_out()
