"""Start, drain, stop: the life of one server, from claiming its fds to its exit status."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import faulthandler
import os
import sys
from time import monotonic

from port_server.protocol import messages
from port_server.protocol.framing import FramingError
from port_server.runtime import beam, failure
from port_server.settings import Settings

from . import hangup, init_code
from . import stdio as stdio_module
from .async_lane import AsyncLane
from .baton import Baton
from .calls import Calls
from .cancel import Cancels
from .channel import Channel
from .control import Control
from .dispatcher import Dispatcher
from .evaluate import Evaluator
from .greeting import (
    RefusedError,
    as_init,
    changed_settings,
    check_version,
    info,
    take_templates,
    wants_logs,
    wrong_option,
)
from .heartbeat import Vitals
from .lanes import MainLane
from .page import DRAINING, SERVING, Page
from .plain import PlainRequests
from .reports import Reports
from .turns import Turns
from .window import OUTSIDE, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Final

    from port_server.protocol.framing import Frame
    from port_server.protocol.messages import Init

NoneType: Final = type(None)

_NEVER: Final = float("inf")
# How long tasks that were cancelled at the end may take to end.
_LAST_WAIT_S: Final = 0.2
SWITCH_INTERVAL_S: Final = 0.0001
_OURS: Final = {signal.SIGTERM: "sigterm", signal.SIGINT: "sigint"}
_GRACE_OVER: Final = "the server was stopped, and its grace is over"


class Server:
    """One server: its parts, and what they are told in which order."""

    __slots__ = (
        "_owned",
        "_settings",
        "_signalled",
        "async_lane",
        "baton",
        "calls",
        "cancels",
        "channel",
        "control",
        "dispatcher",
        "evaluator",
        "lane",
        "output",
        "owner",
        "page",
        "reports",
        "stdio",
        "streams",
        "token",
        "window",
    )

    def __init__(self, settings: Settings, reads: int, writes: int) -> None:
        self._settings = settings
        self._owned = False
        self._signalled: str | None = None
        self.owner: Any = None
        self.token: str | bytes | None = None
        self.stdio = stdio_module.claim(settings.pipe_bytes, reads, writes)
        self.baton = Baton()
        self.channel = Channel(self.stdio, settings)
        self.channel.keep_silent()
        self.window = Window(self._log_stray)
        self.reports = Reports(settings, self.stdio, self.channel, self.window)
        self.output = self.reports.output
        self.streams = self.reports.streams
        self._assemble(settings)
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._in_parent,
            after_in_child=self._in_child,
        )
        self.reports.install(self.control.print_later, self.control.may_wait)

    def _assemble(self, settings: Settings) -> None:
        baton, stdio, channel = self.baton, self.stdio, self.channel
        self.evaluator = Evaluator(stdio, channel, settings)
        turns = Turns(self.evaluator.namespaces.keep_context)
        self.page = Page(lambda: dispatcher.elsewhere)
        lane = MainLane(
            baton,
            stdio,
            self.evaluator,
            self.output,
            self.streams,
            turns,
            self.window,
            self.page,
        )
        self.async_lane = AsyncLane(channel, self.evaluator, self.output, settings)
        dispatcher = Dispatcher(baton, stdio, channel, lane, self.async_lane, turns, settings)
        vitals = Vitals(baton, lane, self.async_lane, dispatcher)
        self.cancels = Cancels(lane, stdio, self.window, settings, doorways=[Server._loop])
        self.control = Control(
            baton, stdio, channel, dispatcher, vitals, self.output, self.cancels, self.page
        )
        self.calls = Calls(
            baton, stdio, channel, lane, dispatcher, self.async_lane, self.control, settings
        )
        # Those that know each other both ways.
        self.evaluator.take_over = dispatcher.take_over
        self.async_lane.counted = self.page.count
        channel.lost = self.page.lose
        self.async_lane.ended = dispatcher.job_ended
        lane.attend = dispatcher.attend
        lane.cancel_elsewhere = dispatcher.cancel_elsewhere
        turns.maker_of = self.calls.maker_of
        dispatcher.calls = self.calls
        dispatcher.cancels = self.cancels
        dispatcher.vitals = vitals
        self.lane = lane
        self.dispatcher = dispatcher
        beam.connect(self.calls)

    def run(self) -> int:
        """Serve until there is nothing more to do; give the exit status."""
        faulthandler.enable(2)
        self.cancels.install()
        for number in _OURS:
            signal.signal(number, self._on_signal)
        # A thread that computes hands the GIL over this soon to one that answers: 5 ms, the
        # default, is 500 requests.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            try:
                if self._greet():
                    self._loop()
                    self._finish()
            finally:
                self.control.stop()
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
        self.channel.write_all()
        self.async_lane.stop(_LAST_WAIT_S)
        return 0

    def _loop(self) -> None:
        channel = self.channel
        reader = channel.reader
        dispatcher = self.dispatcher
        dispatch = dispatcher.dispatch
        plain = PlainRequests(self, self._settings)
        receive, answer_plain = plain.receive, plain.answer
        held = dispatcher.turns.held
        frames: list[Frame] | None
        while not (dispatcher.stopping or channel.gone):
            try:
                if held:  # for a session that another lane has: its end is to be heard as well
                    if not dispatcher.wait():
                        return
                    dispatcher.work()
                    continue
                if reader.between:
                    data = receive()
                    if data is True:
                        continue
                    if data is None:
                        return
                    if answer_plain(data):
                        continue
                    frames = reader.feed(data)
                elif (frames := channel.read()) is None:
                    return
                dispatch(frames)
                # Or their buffer would be in use during the next read, and not be used again.
                frames = None
            except FramingError:
                raise
            except BaseException as error:
                # A signal handler or a trace function that user code left behind.
                self.window.settle(alone=True)
                self.baton.recover()
                self.channel.recover()
                self.dispatcher.recover(error)
                self._log_stray(error)

    def _finish(self) -> None:
        """Finish what was read: the tasks and streams that are still under way."""
        dispatcher = self.dispatcher
        self.page.enter(DRAINING)
        reading = dispatcher.stopping and not self.channel.gone
        deadline = _NEVER
        if reading:
            grace_ms = dispatcher.grace_ms or 0
            deadline = monotonic() + grace_ms / 1000
        else:
            self.calls.fail_all()
            if self._owned and self._signalled is None:
                self.async_lane.end_all(self.calls.why)  # the BEAM is gone
        while True:
            dispatcher.work()
            if not reading:
                dispatcher.close_parked(self.calls.why)
            if not (dispatcher.unfinished or dispatcher.ready):
                return
            left = deadline - monotonic()
            if left <= 0:
                self.calls.why = _GRACE_OVER
                self.async_lane.end_all(_GRACE_OVER)
                self.calls.fail_all()
                dispatcher.close_parked(_GRACE_OVER)
                dispatcher.work()
                deadline = monotonic() + _LAST_WAIT_S
                while dispatcher.unfinished and (left := deadline - monotonic()) > 0:
                    dispatcher.wait(left, reading=False)
                return
            reading = dispatcher.wait(min(left, 0.1), reading=reading) and reading

    # --- beginning ------------------------------------------------------------------------------

    def _greet(self) -> bool:
        """Answer the first frame with hello; if it is no init it is then served like any other.

        Returns:
            Whether there was a frame.

        Raises:
            RefusedError: the init cannot be honoured.
            FramingError: what came is no frame.
        """
        frames: list[Frame] | None = []
        while not frames:
            frames = self.channel.read()
            if frames is None:
                return False
        first = as_init(frames[0])
        if first is not None:
            self._heed(first)
            del frames[0]
        else:
            self.reports.take_logs(self._settings)
        # What init_code has sent and logged comes after it.
        self.channel.begin(messages.hello(info(self.stdio.reads)))
        self.page.enter(SERVING)
        self.control.start(self._settings, owned=first is not None)
        self._owned = first is not None
        self.dispatcher.dispatch(frames)
        return True

    def _heed(self, init: Init) -> None:
        check_version(init)
        options = init.options
        self._settings = changed_settings(self._settings, options)
        self.channel.reader.max_frame_bytes = self._settings.max_frame_bytes
        self.evaluator.limit(self._settings)
        self.calls.limit(self._settings)
        self.output.window_bytes = self._settings.output_window_bytes
        self.output.delivery_window_bytes = self._settings.delivery_window_bytes
        hangup.watch(self.stdio, self._settings.hangup_grace_ms)
        page = options.get("status_page")
        if page is not None:
            if not isinstance(page, (str, bytes)):
                raise wrong_option("status_page", "a path, a binary", page)
            self.page.open(page)
        most_bytes = options.get("memory_limit_bytes")
        if most_bytes is not None:
            if type(most_bytes) is not int:
                raise wrong_option("memory_limit_bytes", "an integer", most_bytes)
            self.evaluator.memory.limit(most_bytes)
        self.owner = options.get("owner")
        self.token = options.get("token")
        if not isinstance(self.token, (str, bytes, NoneType)):
            raise wrong_option("token", "a binary", self.token)
        self.evaluator.objects.belong(self.owner, self.token or "")
        take_templates(options)
        if wants_logs(options):
            self.reports.take_logs(self._settings)
        code = options.get("init_code")
        if code is not None:
            init_code.run(code, self.evaluator, self.async_lane, self.stdio, self._settings)
            self.streams.adopt()

    # --- what happens meanwhile -----------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.window.place(frame) is not OUTSIDE:
            raise KeyboardInterrupt  # as in any program; the guard keeps it where it belongs
        self._signalled = _OURS[number]
        self.calls.why = hangup.told_by(self._signalled.upper())
        # The next read finds the end; one that waits is tried again by Python, and finds it, too.
        self.stdio.end_input()
        self.baton.hurry()  # the control thread waits for what the port was before

    def _before_fork(self) -> None:
        # Python forgets, in the child, what a handler of its kind was about to be called for: a
        # child that is terminated right after its start would live on. So it waits in the kernel.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)

    def _in_parent(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    def _in_child(self) -> None:
        self.output.disown()
        self.baton.after_fork()
        self.page.close()
        self.async_lane.after_fork()
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
        goodbye = messages.goodbye(reason)
        if self.channel.silent:  # instead of hello
            self.channel.begin(goodbye, alone=True)
            return
        self.channel.hold([goodbye])
        self.channel.write_all()


def serve(reads: int = 0, writes: int = 1) -> int:
    """Serve the port on two fds until it ends; give the exit status.

    Claims both before anything else. Ends the process itself where threads of user code would
    not let it end.
    """
    settings = Settings()
    try:
        server = Server(settings, reads, writes)
    except OSError as error:
        sys.stderr.write(f"port_server: {error}\n")
        return 1
    status = server.run()
    grace_ms = server.dispatcher.grace_ms
    hangup.leave_in_time(settings.exit_grace_ms if grace_ms is None else grace_ms, status)
    return status
