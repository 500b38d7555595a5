"""The reading baton: who reads the port, and how it changes hands. No frames, no requests.

The baton is a lock. The main thread holds it always, except while user code runs: whoever answers
a request reads it as well, because a thread in between costs 7 us a message. Letting go and taking
it back costs 0.1 us. The control thread (see `control`) takes it when user code runs long, so that
pings, cancels and answers are read even then, and gives it back when asked.

Three rules make it safe, all of them resting on one store after another being seen in that order
(the GIL gives that):

1. Main counts `sequence` up before it lets go. The control thread takes a free baton only if the
   number is the one it saw a tick ago, so a stream of short requests never meets it.
2. The control thread says `parked` before it looks at the number for the last time, and main
   looks at `parked` after counting: one of them sees the other. A wake-up (2 us) is therefore only
   needed for the first request after a pause.
3. Main, finding the baton taken, sets `wanted` and then wakes the holder; while `wanted` is set
   nobody else takes it.

Tried and rejected: handing requests from a reading thread to a running one (7 us each), a
condition variable (the waiter polls the port and cannot wait for both), a signal (interrupts user
code's system calls).
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from select import POLLIN, poll

from .stdio import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_NOT_LOST: Final = b"\1\0\0\0\0\0\0\0"  # what an eventfd takes; a pipe takes it as well


class Waker:
    """Lets one thread wait for the port or for a word from another one, with the same poll."""

    __slots__ = ("_reads", "_writes", "fd")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, after user code closed the fd or in a forked child."""
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
            os.write(self._writes, _NOT_LOST)
        except OSError:  # full, which wakes as well; or closed, which a poll notices
            pass

    def clear(self) -> None:
        """Take note of having been woken."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass
        except OSError:
            self.renew()


class Baton:
    """The right to read the port, and with it to change the queue.

    Attributes:
        lock: held by whoever has the baton. The hot path uses it directly.
        resumed: how often main let go to go on with a request, not to begin one.
        sequence: how often main let go.
        parked: whether the control thread waits for a word; whoever wakes it says False.
        wanted: whether main waits for the baton.
        urgent: whether something is to be read soon, although main runs code only since just now.
    """

    __slots__ = ("lock", "parked", "resumed", "sequence", "urgent", "waker", "wanted")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.lock.acquire()
        self.sequence = 0
        self.resumed = 0
        self.parked = False
        self.wanted = False
        self.urgent = False
        self.waker = Waker()

    def let_go(self) -> None:
        """Main: user code goes on. Where it begins the lane does the same in place."""
        self.resumed += 1
        self.sequence += 1
        self.lock.release()
        if self.parked:
            self.wake()

    def take_back(self) -> None:
        """Main: user code has ended."""
        if not self.lock.acquire(blocking=False):
            self.wait()

    def wait(self) -> None:
        """Main: ask the control thread for the baton, and take it."""
        self.wanted = True
        self.waker.wake()
        self.lock.acquire()
        self.wanted = False

    def recover(self) -> None:
        """Main: have the baton, wherever an exception that is not ours has struck."""
        self.wanted = True
        self.waker.wake()
        # Not acquired in a second means that it is ours already: nobody else keeps it that long.
        self.lock.acquire(timeout=1.0)
        self.wanted = False

    def wake(self) -> None:
        """Let the control thread look around."""
        self.parked = False
        self.waker.wake()

    def hurry(self) -> None:
        """Any thread: have the port read soon, whatever main does."""
        self.urgent = True
        self.waker.wake()

    def after_fork(self) -> None:
        """Become harmless in a child: what it writes must not wake its parent."""
        self.lock = allocate_lock()
        self.lock.acquire()
        self.parked = False
        self.waker.renew()


def waiter(fd: int) -> poll:
    """Make a poll that waits for input on `fd`."""
    waiting = poll()
    waiting.register(fd, POLLIN)
    return waiting
