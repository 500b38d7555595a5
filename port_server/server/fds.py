"""File descriptors of the server's own: claimed from the port, and out of reach of user code."""

from __future__ import annotations

import fcntl
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Above what shells and daemonizing libraries close by number, below any RLIMIT_NOFILE.
LOWEST_PRIVATE_FD: Final = 32


def private(fd: int) -> int:
    """Move an fd of the server to a number that programs that close low numbers do not reach."""
    moved = _private_copy(fd)
    os.close(fd)
    return moved


def claim(pipe_bytes: int, reads: int, writes: int) -> tuple[int, int]:
    """Move the port to private fds, point 0 at /dev/null and 1 at 2; give the fds.

    Raises:
        OSError: neither these fds nor 0 and 1 lead to a port.
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
    except OSError:  # started without a stderr: reserve the number
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        claimed = _private_copy(reads), _private_copy(writes)
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
    return claimed


def _private_copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_PRIVATE_FD)


def _widen(fd: int, pipe_bytes: int) -> None:
    # Missing on macOS, and refused when the user's pipes have reached their common limit.
    if is_pipe(fd) and hasattr(fcntl, "F_SETPIPE_SZ"):
        try:  # noqa: SIM105  contextlib is not for the start path
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, pipe_bytes)
        except OSError:
            pass


def is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def _are_pipes(*fds: int) -> bool:
    try:
        modes = [os.fstat(fd).st_mode for fd in fds]
    except OSError:
        return False
    return all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in modes)


def point_at_null(fd: int) -> None:
    """Let an fd lead to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd, inheritable=False)
    os.close(null)
