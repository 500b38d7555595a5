"""The control thread: reads the port while main runs user code, and sends the heartbeats.

It never runs user code. While there is work it ticks; with the baton it polls the port and routes
what comes exactly as main would; in a pause it sleeps until the next beat.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the other one brings enum: 4 ms
import _thread
from select import POLLIN, POLLNVAL
from time import monotonic

from port_server.protocol import outgoing
from port_server.protocol.framing import FramingError

from . import hangup
from .baton import waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from port_server.runtime.output import Output
    from port_server.settings import Settings

    from .baton import Baton
    from .cancel import Cancels
    from .channel import Channel
    from .dispatcher import Dispatcher
    from .heartbeat import Vitals
    from .page import Page
    from .stdio import Stdio

TICK_S: Final = 0.005
# Ticks without a new request until the thread sleeps through: waking it costs main 2 us, so not in
# the short pauses of a steady client.
QUIET_TICKS: Final = 20
# How soon a beat that found the pipe taken is tried again.
_BEAT_AGAIN_S: Final = 0.02
_NEVER: Final = float("inf")
# Its frames are few; 8 MiB are what the main thread has, because compiling may recurse.
THREAD_STACK_BYTES: Final = 8 << 20


def start_thread(run: Callable[[], None]) -> int:
    """Start a thread of the server's own, unseen by `threading`, deaf to signals; give its ident.

    Signals are for main: a system call that they interrupt there is what lets handlers run.
    """
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        old_size = _thread.stack_size(THREAD_STACK_BYTES)
        try:
            return _thread.start_new_thread(run, ())
        finally:
            _thread.stack_size(old_size)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


class Control:
    """The control thread of one server.

    Attributes:
        ident: of its thread, 0 before it is started.
    """

    __slots__ = (
        "_announced",
        "_baton",
        "_beat_s",
        "_cancels",
        "_channel",
        "_dispatcher",
        "_main",
        "_next_beat",
        "_next_look",
        "_older",
        "_output",
        "_over",
        "_page",
        "_running_s",
        "_serving",
        "_stdio",
        "_vitals",
        "ident",
    )

    def __init__(
        self,
        baton: Baton,
        stdio: Stdio,
        channel: Channel,
        dispatcher: Dispatcher,
        vitals: Vitals,
        output: Output,
        cancels: Cancels,
        page: Page,
    ) -> None:
        self.ident = 0
        self._baton = baton
        self._cancels = cancels
        self._stdio = stdio
        self._channel = channel
        self._dispatcher = dispatcher
        self._main = _thread.get_ident()
        self._output = output
        self._page = page
        self._serving = False
        self._vitals = vitals
        self._announced: bytes | None = None
        self._next_look = 0.0
        # Tasks that were under way at the last look, and may be at the next.
        self._older: list[bytes] = []
        self._beat_s = self._next_beat = self._running_s = _NEVER
        self._over = False

    def start(self, settings: Settings, *, owned: bool) -> None:
        """Begin; `hello` is written.

        Args:
            settings: with what `init` changed.
            owned: whether there was an `init`. Who pipes frames by hand waits for no heartbeats.
        """
        if owned and settings.heartbeat_interval_ms:
            self._beat_s = settings.heartbeat_interval_ms / 1000
            self._next_beat = monotonic() + self._beat_s
        if settings.running_after_ms:
            self._running_s = settings.running_after_ms / 1000
            self._vitals.async_lane.fresh = []
        self.ident = self._output.control = start_thread(self._run)

    def print_later(self) -> None:
        """Any thread: something is printed that is to be handed on if no more comes."""
        if self._serving:  # else it is seen at the next tick
            self._baton.waker.wake()

    def may_wait(self) -> bool:
        """Tell whether the code that asks may wait for an ack: another thread reads the port.

        None does before hello, nor while main is at work between requests (in a `__del__`).
        """
        channel, dispatcher, ident = self._channel, self._dispatcher, _thread.get_ident()
        if ident == self._main and self._output.running is None:
            return False
        if ident == self.ident or channel.silent or channel.gone or dispatcher.ended:
            return False
        if dispatcher.full:  # then nothing more is read, acks neither
            return False
        self._baton.hurry()
        return True

    def stop(self) -> None:
        """Let it end; main keeps the baton from now on."""
        self._over = True
        self._baton.wake()

    def _run(self) -> None:
        while not self._over:
            try:
                self._tick_on()
            except BaseException as error:
                # Must not die: nobody would read while main runs code, and no beat would come. Near
                # a memory limit a log record may be too much as well.
                try:
                    from port_server import log  # noqa: PLC0415  structlog is not for the start path

                    log.error("control_thread", error=repr(error))
                except BaseException:
                    self._sleep(TICK_S)

    def _tick_on(self) -> None:
        baton = self._baton
        look = self._vitals.look
        seen = -1
        quiet = 0
        while not self._over:
            now = monotonic()
            look(now)
            if self._output.requests:
                self._output.tick(now)
            if now >= self._next_beat:
                self._beat(now)
            if min(self._cancels.tick(), self._announce(now)) < _NEVER:
                quiet = 0
            if quiet < QUIET_TICKS:
                self._sleep(min(TICK_S, self._next_beat - now))
            else:
                baton.urgent = False
                baton.parked = True
                if baton.sequence == seen:
                    self._sleep(self._next_beat - now)
                baton.parked = False
            if baton.sequence != seen:
                seen = baton.sequence
                quiet = 0
                if not baton.urgent:
                    continue
            if baton.wanted or not baton.lock.acquire(blocking=False):
                quiet += 1
                continue
            quiet = 0
            self._serving = True
            try:
                if not self._over:
                    self._serve()
            finally:
                self._serving = False
                baton.lock.release()

    def _serve(self) -> None:
        """Read the port, with the baton, until main wants it back."""
        baton = self._baton
        channel = self._channel
        waker_fd = baton.waker.fd
        port_fd = self._stdio.reads
        baton.urgent = False
        channel.write_out()
        if self._dispatcher.mixed:
            self._dispatcher.sort_out()
        waiting = waiter(waker_fd)
        waiting.register(port_fd, POLLIN)
        while not (baton.wanted or self._over):
            self._dispatcher.attend()
            if channel.held:
                channel.write_out()
            now = monotonic()
            if now >= self._next_beat:
                self._beat(now)
            wait_s = self._next_beat - now
            if self._output.requests and self._output.tick(now):
                wait_s = min(wait_s, TICK_S)
            wait_s = min(wait_s, self._cancels.tick(), self._announce(now))
            for fd, events in waiting.poll(_milliseconds(wait_s)):
                if fd == waker_fd:
                    if events & POLLNVAL:
                        self._renew()
                        return
                    baton.waker.clear()
                elif not (baton.wanted or self._read()):
                    waiting.unregister(port_fd)  # else a poll would return at once, for ever

    def _read(self) -> bool:
        """Route what one read brings; tell whether more may come. Main meets an end again."""
        if self._dispatcher.full:
            return False
        try:
            frames = self._channel.read()
        except FramingError:
            frames = None
        if frames is None:
            self._dispatcher.ended = True
            # Main may be waiting for a thread that waits for an answer.
            calls = self._dispatcher.calls
            calls.why = hangup.told_to_end() or calls.why
            calls.fail_all()
            return False
        self._dispatcher.route(frames)
        return True

    def _beat(self, now: float) -> None:
        self._page.beat(self._dispatcher.requests)
        if self._channel.writing.locked():
            # A frame is on its way, or the other side does not read: then no beat may be queued.
            self._next_beat = now + _BEAT_AGAIN_S
            return
        self._next_beat = now + self._beat_s
        self._channel.hold([outgoing.heartbeat(self._vitals.beat())])
        self._channel.write_out()
        if not self._channel.held:
            self._page.beat_sent()

    def _announce(self, now: float) -> float:
        """Tell the owner what has run for long; give the seconds until there may be more to tell.

        With the baton or without.
        """
        vitals = self._vitals
        if self._running_s == _NEVER:
            return _NEVER
        if self._channel.writing.locked():  # as in `_beat`
            return TICK_S
        wait_s = _NEVER
        lasting: list[bytes] = []
        tasks = vitals.async_lane
        fresh = tasks.fresh
        if fresh is not None and (fresh or self._older):
            # Not by a timer of the loop, which costs each turn of it 1 us.
            if now >= self._next_look:
                lasting = [id_term for id_term in self._older if id_term in tasks.jobs]
                self._older, tasks.fresh = fresh, []
                self._next_look = now + self._running_s
            wait_s = self._next_look - now
        vitals.look(now)
        running = vitals.seen
        if running is not None and running is not self._announced:
            left = vitals.seen_at + self._running_s - now
            if left <= 0:
                self._announced = running
                lasting.append(running)
            else:
                wait_s = min(wait_s, left)
        if lasting:
            for id_term in lasting:
                self._channel.hold([outgoing.running(id_term)])
            self._channel.write_out()
        return wait_s

    def _renew(self) -> None:
        """User code has closed our fds."""
        self._baton.waker.renew()
        hangup.watch_parent()

    def _sleep(self, seconds: float) -> None:
        waker = self._baton.waker
        for _fd, events in waiter(waker.fd).poll(_milliseconds(seconds)):
            if events & POLLNVAL:
                self._renew()
            else:
                waker.clear()


def _milliseconds(seconds: float) -> float | None:
    return None if seconds == _NEVER else max(0.0, seconds * 1000)
