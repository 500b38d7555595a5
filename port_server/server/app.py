"""Builds a server, in dependency order, and runs it: from claiming its fds to its exit status.

Each part gets what it needs when it is built, most of it as one `Core`; none is changed by another
one afterwards.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import faulthandler
import os
import sys
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.framing import FramingError
from port_server.runtime import api, failure
from port_server.settings import Settings

from . import handshake, hangup, init_code
from .callbacks import Callbacks
from .commands import Commands
from .control import Control
from .core import Core, log_stray
from .dispatcher import Dispatcher
from .executors import Executors
from .handshake import RefusedError
from .heartbeat import Health
from .main_thread import MainThread
from .port import Port
from .scheduler import Scheduler
from .signal_guard import OUTSIDE
from .status_page import DRAINING, SERVING, StatusPage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Final

    from port_server.protocol.framing import Frame

# How long tasks that were cancelled at the end may take to end.
_LAST_WAIT_S: Final = 0.2
# Time after which a computing thread gives the GIL to a waiting one. The default, 5 ms, is the time
# of 500 requests.
_SWITCH_INTERVAL_S: Final = 0.0001
_GONE: Final = "the other side of the port is gone, and no answer comes any more"
_NEVER: Final = float("inf")
_OURS: Final = {signal.SIGTERM: "sigterm", signal.SIGINT: "sigint"}


class Server:
    """One server: its parts, what user code may do to it, and its end.

    Attributes:
        dispatcher: the main loop.
    """

    def __init__(self, core: Core, *, owned: bool) -> None:
        """Build the parts above `core`; `owned` is whether the owner has sent an init."""
        self._core = core
        self._owned = owned
        self._signalled: str | None = None
        self._executors = executors = Executors(core)
        health = Health(core, executors)
        commands = Commands(core, executors, health)
        self.dispatcher = dispatcher = Dispatcher(core, executors, commands)
        self._callbacks = Callbacks(core, executors, dispatcher, self._why)
        self._control = Control(core, executors, dispatcher, health, self._callbacks)

    def prepare(self, options: dict[Any, Any], preloaded: dict[str, Any] | None) -> None:
        """Take the signals and the forks, and run preload and init_code; RefusedError if they fail.

        `preloaded` are the names that a template has bound.
        """
        core = self._core
        core.cancels.install()
        for number in _OURS:
            signal.signal(number, self._on_signal)
        if self._owned:
            hangup.watch(core.port, core.settings.hangup_grace_ms)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        api.connect(self._callbacks)
        os.register_at_fork(
            # Python forgets, in the child, what a handler of its kind was about to be called for: a
            # child that is terminated right after its start would live on. The kernel does not.
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _OURS),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS),
            after_in_child=self._in_child,
        )
        if preloaded is not None:
            core.code.namespaces.adopt(preloaded)
        for option in ("preload", "init_code"):
            if options.get(option) is not None:
                init_code.run(core, self._executors.loop, options[option], option)
                core.stdio.adopt()

    def run(self, already_read: list[Frame]) -> int:
        """Say hello, and serve until there is nothing more to do; give the exit status."""
        port, dispatcher = self._core.port, self.dispatcher
        # Log records and messages of init_code come after it.
        port.begin(messages.hello(handshake.info(port.reads, self._core.shared.info)))
        self._core.page.enter(SERVING)
        # The thread that imports it first is the main thread to it, and another one may be first.
        import threading  # noqa: F401, PLC0415  1 ms, so after hello

        self._control.start()
        try:
            dispatcher.receive(already_read)
            self._serve()
            self._finish()
        except FramingError as error:
            handshake.say_goodbye(port, failure.describe_value_error("protocol", error))
            return 1
        finally:
            self._control.stop()
        if not port.reader.between and self._signalled is None:
            from port_server import log  # noqa: PLC0415  structlog is not for the start path

            log.warning("input_ended_inside_a_frame", missing_bytes=port.reader.missing)
        if dispatcher.stopping:
            handshake.say_goodbye(port, "shutdown")
        elif self._signalled is not None:
            handshake.say_goodbye(port, self._signalled)
        port.write_all()
        self._executors.loop.stop(_LAST_WAIT_S)
        return 0

    def _serve(self) -> None:
        dispatcher = self.dispatcher
        dispatcher.work()
        while True:
            try:
                dispatcher.serve()
            except FramingError:
                raise
            except BaseException as error:
                # A signal handler or a trace function that user code left behind.
                self._core.cancels.recover()
                self._core.lock.recover()
                self._core.port.recover()
                for request in self._executors.main.recover(error):
                    dispatcher.finish(request)
                log_stray(error)
                dispatcher.work()
            else:
                return

    def _finish(self) -> None:
        """Finish what was read: the tasks and streams that are still under way."""
        dispatcher, callbacks = self.dispatcher, self._callbacks
        self._core.page.enter(DRAINING)
        reading = dispatcher.stopping and not self._core.port.gone
        deadline = _NEVER
        if reading:
            deadline = monotonic() + dispatcher.grace_ms / 1000
        else:
            callbacks.fail_all()
            if self._owned and self._signalled is None:
                dispatcher.end_all(self._why())  # the BEAM is gone
        while True:
            dispatcher.work()
            if not reading:
                dispatcher.close_parked(self._why())
            if not dispatcher.unfinished:
                return
            left = deadline - monotonic()
            if left <= 0:
                why = "the server was stopped, and its grace is over"
                dispatcher.end_all(why)
                callbacks.fail_all(why)
                dispatcher.close_parked(why)
                dispatcher.work()
                deadline = monotonic() + _LAST_WAIT_S
                while dispatcher.unfinished and (left := deadline - monotonic()) > 0:
                    dispatcher.wait(left, reading=False)
                return
            reading = dispatcher.wait(min(left, 0.1), reading=reading) and reading

    def _why(self) -> str:
        """Why no answer comes any more."""
        if self._signalled is not None:
            return hangup.told_by(self._signalled.upper())
        # For other threads than main, where Python's handler for the signal runs.
        return hangup.told_to_end() or _GONE

    # --- signals and forks ------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._core.guard.place(frame) != OUTSIDE:
            raise KeyboardInterrupt  # as in any program; the guard keeps it where it belongs
        self._signalled = _OURS[number]
        # The next read finds the end; one that waits is tried again by Python, and finds it, too.
        self._core.port.end_input()
        self._core.lock.hurry()  # the control thread waits for what the port was before

    def _in_child(self) -> None:
        core = self._core
        core.port.disown()
        core.thread.recover()
        core.output.disown()
        core.lock.after_fork()
        core.page.close()
        self._executors.loop.after_fork()
        for number in _OURS:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)


def serve(reads: int = 0, writes: int = 1, preloaded: dict[str, Any] | None = None) -> int:
    """Serve the port on two fds until it ends; give the exit status.

    Claims both before anything else. Ends the process itself if threads of user code would keep it
    alive.
    """
    settings = Settings()
    thread = MainThread()
    scheduler = Scheduler(settings, thread)
    page = StatusPage(scheduler)
    try:
        port = Port(settings, page, reads, writes)
    except OSError as error:
        sys.stderr.write(f"port_server: {error}\n")
        return 1
    faulthandler.enable(2)
    try:
        while (frames := port.read()) == []:
            pass
        if frames is None:
            return 0
        init = handshake.as_init(frames[0])
        if init is None:
            options: dict[Any, Any] = {}
            settings = settings.replace(heartbeat_interval_ms=0)
        else:
            del frames[0]
            options = init.options
            settings = handshake.settings_of(settings, init)
            port.limit(settings)
            scheduler.limit(settings)
            handshake.open_page(page, options)
        core = Core(settings, scheduler, thread, page, port, options)
        server = Server(core, owned=init is not None)
        server.prepare(options, preloaded)
    except (RefusedError, FramingError) as error:
        handshake.say_goodbye(port, handshake.refusal(error))
        status, grace_ms = 1, settings.exit_grace_ms
    else:
        status, grace_ms = server.run(frames), server.dispatcher.grace_ms
    hangup.leave_in_time(grace_ms, status)
    return status
