"""The control thread: reads the port while main runs user code, and sends the heartbeats.

It never runs user code. While requests run it ticks. With the reader lock it polls the port and
acts on frames exactly as main would. In a pause it sleeps until the next heartbeat.
"""

from __future__ import annotations

from _thread import get_ident
from select import POLLIN, POLLNVAL, poll
from time import monotonic

from port_server.protocol import outgoing
from port_server.protocol.framing import FramingError

from . import hangup
from .threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from port_server.protocol.requests import Request

    from .callbacks import Callbacks
    from .core import Core
    from .dispatcher import Dispatcher
    from .executors import Executors
    from .heartbeat import Health
    from .reader import Waker

TICK_S: Final = 0.005
# Ticks without a new request until the thread sleeps without a tick. Waking it costs main 2 us, so
# it stays awake in the short pauses of a steady client.
QUIET_TICKS: Final = 20
# Delay until a heartbeat that found the pipe taken is tried again.
_BEAT_AGAIN_S: Final = 0.02
_NEVER: Final = float("inf")


class Control:
    """The control thread of one server."""

    def __init__(
        self,
        core: Core,
        executors: Executors,
        dispatcher: Dispatcher,
        health: Health,
        callbacks: Callbacks,
    ) -> None:
        self._announced: Request | None = None
        self._callbacks = callbacks
        self._cancels = core.cancels
        self._dispatcher = dispatcher
        self._health = health
        self._interval_s = core.settings.heartbeat_interval_ms / 1000 or _NEVER
        self._lock = core.lock
        self._next_beat = _NEVER
        self._next_look = 0.0
        # Tasks that were under way at the last look, and may be at the next.
        self._older: list[Request] = []
        self._output = core.output
        self._over = False
        self._page = core.page
        self._port = core.port
        self._running_s = core.settings.running_after_ms / 1000 or _NEVER
        self._scheduler = core.scheduler
        self._threads = executors.threads

    def start(self) -> None:
        """Begin; `hello` is written."""
        self._next_beat = monotonic() + self._interval_s
        start_thread(self._run)

    def stop(self) -> None:
        """Let it end; main keeps the lock from now on."""
        self._over = True
        self._lock.wake()

    def _run(self) -> None:
        self._lock.take_control(get_ident())
        while not self._over:
            try:
                self._tick_on()
            except BaseException as error:
                # This thread must not die: it alone reads while main runs code, and it sends the
                # heartbeats. Near a memory limit a log record may fail as well.
                try:
                    from port_server import log  # noqa: PLC0415  structlog is not for the start path

                    log.error("control_thread", error=repr(error))
                except BaseException:
                    self._sleep(TICK_S)

    def _tick_on(self) -> None:
        lock, health = self._lock, self._health
        look = health.look
        seen = -1
        quiet = 0
        while not self._over:
            now = monotonic()
            look(now)
            if self._output.requests and self._output.tick(now):
                quiet = 0
            beat_s = self._beat(now)
            if self._strike_and_announce(now) < _NEVER:
                quiet = 0
            if quiet < QUIET_TICKS:
                self._sleep(min(TICK_S, beat_s))
            else:
                lock.park()
                if health.requests + lock.resumed == seen:
                    self._sleep(beat_s)
            lock.unpark()
            if (count := health.requests + lock.resumed) != seen:
                seen = count
                quiet = 0
                if not lock.urgent:
                    continue
            if lock.wanted or not lock.take():
                quiet += 1
                continue
            quiet = 0
            lock.begin_reading()
            try:
                if not self._over:
                    self._read_on()
            finally:
                lock.end_reading()

    def _read_on(self) -> None:
        """Read the port, with the lock, until main wants it back."""
        lock, port, dispatcher = self._lock, self._port, self._dispatcher
        waker = lock.waker
        port.flush()
        dispatcher.sort_out()
        waiting = poll()
        waiting.register(waker.fd, POLLIN)
        waiting.register(port.reads, POLLIN)
        while not (lock.wanted or self._over):
            dispatcher.attend()
            if port.held:
                port.flush()
            now = monotonic()
            wait_s = self._beat(now)
            if self._output.requests and self._output.tick(now):
                wait_s = min(wait_s, TICK_S)
            wait_s = min(wait_s, self._strike_and_announce(now))
            for fd, events in waiting.poll(_milliseconds(wait_s)):
                if fd == waker.fd:
                    if events & POLLNVAL:
                        self._renew(waker)
                        return
                    waker.clear()
                elif not (lock.wanted or self._read()):
                    waiting.unregister(port.reads)  # otherwise each poll would return at once

    def _read(self) -> bool:
        """Act on what one read brings; tell whether more may come. Main meets an end again."""
        if self._scheduler.full:
            return False
        try:
            more = self._dispatcher.read()
        except FramingError:
            more = False
        if not more:
            self._callbacks.fail_all()  # main may wait for a thread that waits for one
        return more

    def _beat(self, now: float) -> float:
        """Send a heartbeat, if it is time; give the seconds until the next one."""
        if now < self._next_beat:
            return self._next_beat - now
        self._page.beat(self._health.requests)
        if self._port.writing.locked():
            # Another frame is being written, or the other side does not read: do not queue one.
            self._next_beat = now + _BEAT_AGAIN_S
            return _BEAT_AGAIN_S
        self._next_beat = now + self._interval_s
        self._port.hold([outgoing.heartbeat(self._health.beat())])
        self._port.flush()
        if not self._port.held:
            self._page.beat_sent()
        return self._interval_s

    def _strike_and_announce(self, now: float) -> float:
        """Do what is due; give the seconds until something else is."""
        return min(self._cancels.tick(), self._threads.tick(), self._announce(now))

    def _announce(self, now: float) -> float:
        """Tell the owner which requests have run for long; give the seconds until the next look.

        With the reader lock or without.
        """
        if self._running_s == _NEVER:
            return _NEVER
        if self._port.writing.locked():  # as in `_beat`
            return TICK_S
        wait_s, lasting = _NEVER, []
        scheduler = self._scheduler
        if scheduler.fresh or self._older:
            # Not by a timer of the loop, which costs each turn of it 1 us.
            if now >= self._next_look:
                lasting = [request for request in self._older if not request.ended]
                self._older = scheduler.take_fresh()
                self._next_look = now + self._running_s
            wait_s = self._next_look - now
        health = self._health
        health.look(now)
        running = health.seen
        if running is not None and running is not self._announced:
            left = health.seen_at + self._running_s - now
            if left <= 0:
                self._announced = running
                lasting.append(running)
            else:
                wait_s = min(wait_s, left)
        elif running is None:
            self._announced = None
        for request in lasting:
            self._port.hold([outgoing.running(request.id_term)])
        if lasting:
            self._port.flush()
        return wait_s

    def _renew(self, waker: Waker) -> None:
        """User code has closed our fds."""
        waker.renew()
        hangup.watch_parent()

    def _sleep(self, seconds: float) -> None:
        waker = self._lock.waker
        waiting = poll()
        waiting.register(waker.fd, POLLIN)
        for _fd, events in waiting.poll(_milliseconds(seconds)):
            if events & POLLNVAL:
                self._renew(waker)
            else:
                waker.clear()


def _milliseconds(seconds: float) -> float | None:
    return None if seconds == _NEVER else max(0.0, seconds * 1000)
