"""Start, drain, stop: the life of one server, from claiming its fds to its exit status."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from _thread import start_new_thread
from time import sleep

from port_server.etf import Atom, codec_name, set_templates
from port_server.protocol import messages
from port_server.protocol.framing import FramingError
from port_server.protocol.messages import PROTOCOL_VERSION, Init, ProtocolError
from port_server.runtime import failure
from port_server.runtime.snippet import PLAIN, compile_snippet
from port_server.settings import Settings

from . import stdio as stdio_module
from .channel import Channel
from .dispatcher import Dispatcher
from .lanes import MainLane, leave_child
from .reports import Reports
from .window import Window, guard_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Final

    from port_server.protocol.framing import Frame
    from port_server.runtime.snippet import Snippet

NoneType: Final = type(None)

VERSION: Final = "0.1.0"
FEATURES: Final = (
    "eval",
    "call",
    "output",
    "ping",
    "shutdown",
    "cancel_queued",
    "objects",
    "sessions",
    "logging",
)
_OURS: Final = (signal.SIGTERM, signal.SIGINT)


class RefusedError(Exception):
    """The server cannot begin its service; `description` is what its goodbye says."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description["message"])
        self.description = description


class Server:
    """One server: its parts, and what they are told in which order."""

    __slots__ = (
        "_settings",
        "_signalled",
        "channel",
        "dispatcher",
        "lane",
        "output",
        "owner",
        "reports",
        "stdio",
        "streams",
        "token",
        "window",
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signalled: str | None = None
        self.owner: Any = None
        self.token: str | bytes | None = None
        self.stdio = stdio_module.claim(settings.pipe_bytes)
        self.channel = Channel(self.stdio, settings)
        self.window = Window(self._log_stray)
        self.reports = Reports(settings, self.stdio, self.channel, self.window)
        self.output = self.reports.output
        self.streams = self.reports.streams
        self.lane = MainLane(
            self.stdio, self.channel, settings, self.output, self.streams, self.window
        )
        self.dispatcher = Dispatcher(self.channel, self.lane, settings)
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._in_parent,
            after_in_child=self._in_child,
        )
        self.reports.install()

    def run(self) -> int:
        """Serve until there is nothing more to do; give the exit status."""
        faulthandler.enable(2)
        guard_signals(self.window)
        for number in _OURS:
            signal.signal(number, self._on_signal)
        try:
            self._greet()
            self._loop()
        except RefusedError as refused:
            self._say_goodbye(refused.description)
            return 1
        except FramingError as error:
            self._say_goodbye(failure.describe_value_error("protocol", error))
            return 1
        if not self.channel.reader.between and self._signalled is None:
            from port_server import log  # noqa: PLC0415  structlog is not for the start path

            log.warning("input_ended_inside_a_frame", missing_bytes=self.channel.reader.missing)
        if self.dispatcher.stopping:
            self._say_goodbye("shutdown")
        elif self._signalled is not None:
            self._say_goodbye(self._signalled)
        return 0

    def _loop(self) -> None:
        channel = self.channel
        read = channel.read
        dispatch = self.dispatcher.dispatch
        others = self.reports.others
        while not (self.dispatcher.stopping or channel.gone):
            try:
                frames = read()
                if frames is None:
                    return
                dispatch(frames)
                if others:  # log records, mostly
                    self.reports.collect()
                    channel.write_out()
                # Or their buffer would be in use during the next read, and not be used again.
                frames = None
            except FramingError:
                raise
            except BaseException as error:
                # A signal handler or a trace function that user code left behind.
                self.window.open = self.window.inside = False
                self.dispatcher.recover(error)
                self._log_stray(error)

    # --- beginning ------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Answer the first frame with hello; if it is no init it is then served like any other.

        Raises:
            RefusedError: the init cannot be honoured.
            FramingError: what came is no frame.
        """
        frames: list[Frame] | None = []
        while not frames:
            frames = self.channel.read()
            if frames is None:
                return
        first = _as_init(frames[0])
        if first is not None:
            self._heed(first)
            del frames[0]
        else:
            self.reports.take_logs(self._settings)
        self.channel.hold([messages.hello(_info())])
        self.reports.begin()
        self.channel.write_out()
        self.dispatcher.dispatch(frames)

    def _heed(self, init: Init) -> None:
        if init.version != PROTOCOL_VERSION:
            raise RefusedError(
                failure.describe(
                    "protocol",
                    "",
                    f"this server speaks version {PROTOCOL_VERSION} of the protocol, not "
                    f"{init.version}: let client and server be of the same release",
                )
            )
        options = init.options
        changes = {}
        for name, least in (
            ("max_frame_bytes", 1),
            ("max_depth", 1),
            ("max_objects", 0),
            ("output_window_bytes", 0),
        ):
            value = options.get(name)
            if value is not None:
                if type(value) is not int or value < least:
                    raise _wrong_option(name, f"an integer of at least {least}", value)
                changes[name] = value
        self._settings = self._settings.replace(**changes)
        self.channel.reader.max_frame_bytes = self._settings.max_frame_bytes
        self.lane.limit(self._settings)
        self.output.window_bytes = self._settings.output_window_bytes
        self.owner = options.get("owner")
        self.token = options.get("token")
        if not isinstance(self.token, (str, bytes, NoneType)):
            raise _wrong_option("token", "a binary", self.token)
        self.lane.objects.belong(self.owner, self.token or "")
        templates = options.get("templates")
        if templates is not None:
            try:
                set_templates(templates)
            except (TypeError, AttributeError) as error:
                raise _wrong_option("templates", f"a map of structs ({error})", templates) from None
        logging = options.get("logging", True)
        if type(logging) is not bool:
            raise _wrong_option("logging", "true or false", logging)
        if logging:
            self.reports.take_logs(self._settings)
        code = options.get("init_code")
        if code is not None:
            self._run_init_code(code)

    def _run_init_code(self, code: Any) -> None:
        try:
            snippet = _init_snippet(code)
            namespace = self.lane.namespaces.fresh(snippet, {})
            snippet.run(namespace)
        except RefusedError:
            raise
        except BaseException as error:
            if self.stdio.forked:
                leave_child(error)
            raise RefusedError(failure.describe_exception(error, self._settings)) from None
        if self.stdio.forked:
            leave_child(None)
        self.lane.namespaces.adopt(namespace)
        self.streams.adopt()

    # --- what happens meanwhile -----------------------------------------------------------------

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.window.open or self.window.inside):
            raise KeyboardInterrupt  # as in any program; the guard keeps it where it belongs
        self._signalled = signal.Signals(number).name.lower()
        # The next read finds the end; one that waits is tried again by Python, and finds it, too.
        self.stdio.end_input()

    def _before_fork(self) -> None:
        # Python forgets, in the child, what a handler of its kind was about to be called for: a
        # child that is terminated right after its start would live on. So it waits in the kernel.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)

    def _in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    def _in_child(self) -> None:
        self.output.disown()
        for number in _OURS:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    @staticmethod
    def _log_stray(error: BaseException) -> None:
        from port_server import log  # noqa: PLC0415  structlog is not for the start path

        log.error("stray_exception", type=failure.type_name(error), message=str(error))

    # --- ending ---------------------------------------------------------------------------------

    def _say_goodbye(self, reason: str | dict[str, Any]) -> None:
        self.channel.hold([messages.goodbye(reason)])
        self.channel.write_out()


def serve() -> int:
    """Serve the port on stdin and stdout until it ends; give the exit status.

    Claims both before anything else. Ends the process itself where threads of user code would
    not let it end.
    """
    settings = Settings()
    try:
        server = Server(settings)
    except OSError as error:
        sys.stderr.write(f"port_server: stdin and stdout must be open: {error}\n")
        return 1
    status = server.run()
    grace_ms = server.dispatcher.grace_ms
    _leave_in_time(settings.exit_grace_ms if grace_ms is None else grace_ms, status)
    return status


def _as_init(frame: Frame) -> Init | None:
    try:
        message = messages.parse(frame)
    except ProtocolError as error:
        if bytes(frame[:9]).endswith(b"init"):
            raise RefusedError(failure.describe_value_error("protocol", error)) from None
        return None
    return message if type(message) is Init else None


def _wrong_option(name: str, wanted: str, value: object) -> RefusedError:
    return RefusedError(
        failure.describe("protocol", "", f"the option {name} of init is {wanted}, not {value!r}")
    )


def _init_snippet(code: Any) -> Snippet:
    if type(code) is str:
        snippet = compile_snippet(code, "<init_code>")
    elif type(code) is tuple and len(code) == 4 and code[0] == "code":
        _tag, text, file, line = code
        snippet = compile_snippet(text, file, line)
    else:
        raise _wrong_option("init_code", "a binary or {code, Source, File, Line}", code)
    if snippet.kind is not PLAIN:
        raise _wrong_option(
            "init_code", "plain code, without top-level yield or await", snippet.kind
        )
    return snippet


def _info() -> dict[str, Any]:
    uname = os.uname()
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "libc": _libc(),
        "machine": uname.machine,
        "os_pid": os.getpid(),
        "codec": codec_name,
        "server_version": VERSION,
        "features": [Atom(feature) for feature in FEATURES],
        "executable": sys.executable or "",
    }


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        pass
    try:
        return "musl" if any(name.startswith("ld-musl") for name in os.listdir("/lib")) else ""  # noqa: PTH208
    except OSError:
        return ""


def _leave_in_time(grace_ms: int, status: int) -> None:
    """See to it that the process ends, whatever user code left running.

    Python waits at its end for threads, and multiprocessing for children, without a limit.
    """

    def wait() -> None:
        sleep(grace_ms / 1000)
        os._exit(status)

    start_new_thread(wait, ())
