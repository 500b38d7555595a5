"""The reader lock: the right to read the port, and how threads pass it on. No frames, no requests.

The main thread holds it always, except while user code runs: the thread that answers a request
reads it as well, because a thread in between costs 7 us a message. Letting go and taking it back
costs 0.1 us. The control thread takes it when user code runs long, so that pings, cancels and
answers are read even then, and gives it back when asked.

Three rules make it safe. All of them rest on one store after another being seen in that order,
which the GIL gives:

1. Main counts how often it lets go, before it does: requests that begin, and those that go on. The
   control thread takes a free lock only if the count is the one it saw a tick ago, so a stream of
   short requests never meets it.
2. The control thread sets `parked` before it looks at the count for the last time, and main looks
   at `parked` after counting: one of them sees the other. So main wakes it (2 us) only for the
   first request after a pause.
3. Main, finding the lock taken, sets `wanted` and then wakes the holder. While `wanted` is set no
   other thread takes the lock.

Tried and rejected: handing requests from a reading thread to a running one (7 us each), a condition
variable (the waiter polls the port and cannot wait for both), a signal (interrupts system calls of
user code).
"""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident

from .fds import private
from .threads import release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from .main_thread import MainThread
    from .port import Port
    from .scheduler import Scheduler

_WORD: Final = b"\1\0\0\0\0\0\0\0"  # the size that an eventfd needs; a pipe takes it as well


class Waker:
    """Lets one thread wait for the port or for another thread, with the same poll.

    Attributes:
        fd: becomes readable by `wake`.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Open new fds, after user code closed them or in a forked child."""
        if hasattr(os, "eventfd"):
            self.fd = private(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._writes = self.fd
            return
        reads, writes = os.pipe()
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        self.fd = private(reads)
        self._writes = private(writes)

    def wake(self) -> None:
        """Let `fd` become readable. Safe from any thread and in a signal handler."""
        try:  # noqa: SIM105  contextlib is an import
            os.write(self._writes, _WORD)
        except OSError:  # full, which wakes as well; or closed, which a poll notices
            pass

    def clear(self) -> None:
        """Make `fd` unreadable again."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass
        except OSError:
            self.renew()


class ReaderLock:
    """The right to read the port, and with it to change the scheduler.

    Attributes:
        free: the lock itself, for the hot path: it holds one element while no thread has the lock.
            Adding and taking one is a third of what a lock of Python's costs.
        control_ident: the ident of the control thread, 0 before there is one.
        parked: whether the control thread waits to be woken.
        reading: whether the control thread polls the port.
        resumed: how often main let go to go on with a request.
        urgent: whether the port is to be read soon, although main has only just begun to run code.
        waker: wakes the control thread.
        wanted: whether main waits for the lock.
        watching: whether main waits for more than the port, on the waker of `watch`.
    """

    def __init__(self, port: Port, scheduler: Scheduler, main: MainThread) -> None:
        self._main = main
        self._port = port
        self._scheduler = scheduler
        self._new_lock()
        self.control_ident = 0
        self.parked = False
        self.reading = False
        self.resumed = 0
        self.urgent = False
        self.wake_main = Waker()
        self.waker = Waker()
        self.wanted = False
        self.watching = False

    def _new_lock(self) -> None:
        self.free: list[None] = []
        self._returned = allocate_lock()
        self._returned.acquire()

    # --- main -------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """User code goes on. At the begin of a request its executor does the same in place."""
        self.resumed += 1
        self.free.append(None)
        if self.parked:
            self.wake()

    def take_back(self) -> None:
        """User code has ended."""
        if not self.take():
            self.wait()

    def wait(self, timeout_s: float = -1) -> None:
        """Ask the control thread for the lock, and take it; without a timeout it comes."""
        self.wanted = True
        self.waker.wake()
        while not self.take() and self._returned.acquire(timeout=timeout_s):
            pass
        self.wanted = False

    def recover(self) -> None:
        """Take the lock after a stray exception, which may have been raised at any place."""
        # If it does not come within a second main has it already: no other thread keeps it long.
        self.wait(1.0)

    def take(self) -> bool:
        """Take the lock if it is free; tell whether it was."""
        try:
            self.free.pop()
        except IndexError:
            return False
        return True

    # --- the control thread -----------------------------------------------------------------------

    def take_control(self, ident: int) -> None:
        """Make the calling thread, which has that ident, the control thread."""
        self.control_ident = ident

    def park(self) -> None:
        """Ask to be woken by the next request."""
        self.urgent = False
        self.parked = True

    def unpark(self) -> None:
        """Note that the control thread is awake."""
        self.parked = False

    def begin_reading(self) -> None:
        """Read the port from now on, with the lock."""
        self.reading = True
        self.urgent = False

    def end_reading(self) -> None:
        """Let go of the lock."""
        self.reading = False
        self.free.append(None)
        if self.wanted:
            release(self._returned)  # which main has seen by itself, if it is free

    # --- any thread -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the control thread."""
        self.parked = False
        self.waker.wake()

    def hurry(self) -> None:
        """Have the port read soon, whatever main does."""
        self.urgent = True
        self.waker.wake()

    def watch(self, watching: bool) -> None:
        """Have `nudge` wake main, or no longer."""
        self.watching = watching

    def nudge(self, waited_for: bool) -> None:
        """Wake the holder for ends in other threads, if `waited_for`, or if main waits for them."""
        if self.watching:
            self.wake_main.wake()
        if waited_for:
            self.hurry()

    def print_later(self) -> None:
        """Have the control thread hand on printed text."""
        if self.reading or self.parked:  # otherwise the next tick does
            self.wake()

    def may_wait(self) -> bool:
        """Tell whether the code that asks may wait for an ack: another thread reads the port.

        No thread reads it before hello, nor while main works between requests (in a `__del__`).
        """
        port, ident = self._port, get_ident()
        if ident == self._main.ident and self._main.running is None:
            return False
        if ident == self.control_ident or port.silent or port.gone or port.ended:
            return False
        if self._scheduler.full:  # then reading has stopped, for acks as well
            return False
        self.hurry()
        return True

    def after_fork(self) -> None:
        """Become harmless in a child: what it writes must not wake its parent."""
        self._new_lock()
        self.parked = False
        self.waker.renew()
        self.wake_main.renew()
