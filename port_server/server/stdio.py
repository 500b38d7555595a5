"""Claims the fds of the port, before any user code runs, and hands out the private ones.

Afterwards no print, C library or child process can touch a frame: 0 is /dev/null, 1 is stderr,
the port is on two numbers that no child inherits. A forked child, which does inherit them, finds
/dev/null there.

The Elixir client starts Python with 0 and 1 in that state already, and the port on two numbers
that it names: code that runs before this module (a wrapper script, `sitecustomize`, a `.pth` file)
can neither write into the first frame nor read it.
"""

from __future__ import annotations

import fcntl
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Above what shells and daemonizing libraries close by number, below any RLIMIT_NOFILE.
LOWEST_PRIVATE_FD: Final = 32


class Stdio:
    """The port's private fds.

    Attributes:
        reads: where frames come from; -1 is never used.
        writes: where frames go.
        forked: whether this process is a forked child, and the port therefore not its own.
    """

    __slots__ = ("forked", "reads", "writes")

    def __init__(self, reads: int, writes: int) -> None:
        self.reads = reads
        self.writes = writes
        self.forked = False

    def end_input(self) -> None:
        """Let the next read find the end of input; what was read before is not lost.

        Safe in a signal handler: a read that the signal interrupted is tried again by Python
        after the handler, and then reads from /dev/null. Raising from the handler instead could
        throw away bytes that the read had just returned.
        """
        _point_at_null(self.reads)

    def disown(self) -> None:
        """Become a forked child: neither fd leads to the port any more."""
        self.forked = True
        _point_at_null(self.reads)
        _point_at_null(self.writes)


def claim(pipe_bytes: int, reads: int = 0, writes: int = 1) -> Stdio:
    """Move the port to private fds, point 0 at /dev/null and 1 at 2.

    Args:
        pipe_bytes: the capacity to ask for.
        reads: the fd that frames come from. If `reads` or `writes` is no pipe, the port is on 0
            and 1: a program between Elixir and Python has put it there (ssh, docker).
        writes: the fd that frames go to.

    Raises:
        OSError: the port is on none of these.
    """
    if (reads, writes) != (0, 1) and not _are_pipes(reads, writes):
        if not _are_pipes(0, 1):
            raise OSError(
                f"fds {reads} and {writes}, on which Elixir and Python talk, did not reach Python: "
                f"a program in between (see the option `python:`) has closed them. Let it pass "
                f"them on (in Python: subprocess.run(..., pass_fds=({reads}, {writes}))), or start "
                f"Python with them as stdin and stdout (in a shell: <&{reads} >&{writes})"
            )
        reads, writes = 0, 1
    try:
        os.fstat(2)
    except OSError:  # started without a stderr: the numbers must not go to something else
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        stdio = Stdio(_private_copy(reads), _private_copy(writes))
    except OSError as error:
        raise OSError(f"stdin and stdout must be open: {error}") from None
    for fd in (reads, writes):
        _widen(fd, pipe_bytes)
        if fd > 2:
            os.close(fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    os.register_at_fork(before=_expect_no_warning, after_in_child=stdio.disown)
    return stdio


def _expect_no_warning() -> None:
    """Before a fork: Python 3.12 and later warn of any process that has threads.

    Ours would make every fork of the user's warn, and holds no lock that a child could miss: the
    child never comes back to the server's code.
    """
    import warnings  # noqa: PLC0415  not on the start path

    # Known already, it is only moved to where nothing that came meanwhile is asked before it.
    warnings.filterwarnings(
        "ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning
    )


def private(fd: int) -> int:
    """Move an fd of the server's own to where programs that close low numbers do not reach it."""
    moved = _private_copy(fd)
    os.close(fd)
    return moved


def _private_copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_PRIVATE_FD)


def _widen(fd: int, pipe_bytes: int) -> None:
    # Not on macOS, and refused where a user's pipes already take up what is allowed together.
    if stat.S_ISFIFO(os.fstat(fd).st_mode) and hasattr(fcntl, "F_SETPIPE_SZ"):
        try:  # noqa: SIM105  contextlib is not for the start path
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, pipe_bytes)
        except OSError:
            pass


def _are_pipes(*fds: int) -> bool:
    try:
        modes = [os.fstat(fd).st_mode for fd in fds]
    except OSError:
        return False
    return all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in modes)


def _point_at_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd, inheritable=False)
    os.close(null)
