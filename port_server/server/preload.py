"""The template of `preload:`: runs that code once, and forks the Pythons of a pool.

A server starts `stub.c` on its port; it connects to the template's socket and passes its fds. The
template forks, the child serves these fds, and the stub gets two bytes: 0 after the fork, and the
exit status when the child has ended. The template ends with its standard input.

On standard output are lines for the owner: those that begin with a zero byte are the template's
own, all others were printed by the code.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from select import POLLIN, poll
from time import sleep

from port_server.etf import Atom, decode
from port_server.protocol import messages
from port_server.protocol.framing import header
from port_server.runtime import failure
from port_server.runtime.namespace import Namespaces
from port_server.settings import Settings

from . import app, hangup, init_code
from .fds import point_at_null, private
from .handshake import RefusedError
from .replies import leave_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_STUB: Final = Path(__file__).with_name("_stub")
# How long a stub that has connected may take to pass its fds. It does so at once.
_STUB_S: Final = 5.0
# How long a template whose code has failed waits for the server that had it started.
_REFUSE_S: Final = 2.0
_BACKLOG: Final = 4096
# How long a template without a free fd waits before it tries again.
_NO_FD_S: Final = 0.05


def serve() -> int:
    """Serve until standard input ends, and in a child its port; give the exit status."""
    faulthandler.enable(2)
    control, owner = private(os.dup(0)), private(os.dup(1))
    point_at_null(0)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    config = _read_config(control)
    if not os.access(_STUB, os.X_OK):
        _say(owner, "stubless", str(_STUB))
        return 0
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(config["socket"])
    listener.listen(_BACKLOG)
    _say(owner, "listening", str(_STUB))
    template = _Template(control, owner, listener)
    try:
        names = _run(config["code"])
    except RefusedError as error:
        template.refuse_all(error.description)
        status = 1
    else:
        _warn_of_threads(owner)
        gc.collect()
        gc.freeze()  # so that no collection in a child writes to pages that it shares
        _say(owner, "ready")
        port = template.serve()
        if port is not None:
            return app.serve(*port, names)
        status = 0
    hangup.leave_in_time(Settings().exit_grace_ms, status)
    return status


def _read_config(control: int) -> dict[Any, Any]:
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = os.read(control, 65_536)
        if not more:
            sys.exit(0)
        data += more
    config: dict[Any, Any] = decode(data[4:])
    return config


def _say(owner: int, word: str, text: str = "") -> None:
    """Write a line for the owner, after whatever the code has printed."""
    _flush()
    os.write(owner, b"\n\0" + f"{word} {text}".replace("\n", " ").encode() + b"\n")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whatever the code has put there, and closed
            stream.flush()


def _run(code: Any) -> dict[str, Any]:
    """Run the code; give the names that it binds. RefusedError if it fails, or is no code."""
    template = os.getpid()
    try:
        snippet = init_code.snippet_of(code, "preload")
        namespace = Namespaces().fresh(snippet, {})
        if hasattr(type(snippet.run(namespace)), "__await__"):
            raise TypeError("preload cannot await, because no loop outlives a fork; init_code can")
    except RefusedError:
        raise
    except BaseException as error:
        if os.getpid() != template:  # a child of the code, which has come to its end
            leave_child(error)
        raise init_code.refused(error, "preload", Settings()) from None
    if os.getpid() != template:
        leave_child(None)
    return namespace


def _warn_of_threads(owner: int) -> None:
    main = threading.main_thread()
    if others := [thread.name for thread in threading.enumerate() if thread is not main]:
        _say(owner, "threads", ", ".join(others))


class _Template:
    """The socket of the template, and the children that it has."""

    def __init__(self, control: int, owner: int, listener: socket.socket) -> None:
        self._control = control
        self._owner = owner
        self._listener = listener
        # The connection to the stub of each child.
        self._children: dict[int, socket.socket] = {}

    def serve(self) -> tuple[int, int] | None:
        """Fork children; give the fds of the port in each of them, and None at the end."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        asked = poll()
        for fd in (self._control, woken, self._listener.fileno()):
            asked.register(fd, POLLIN)
        while True:
            for fd, _events in asked.poll():
                if fd == woken:
                    os.read(woken, 4096)
                    self._reap()
                elif fd == self._control:
                    if not os.read(self._control, 4096):
                        return None
                    _say(self._owner, "alive")
                elif port := self._start_child():
                    os.close(woken)
                    os.close(wake)
                    return port

    def _start_child(self) -> tuple[int, int] | None:
        try:
            accepted = self._accept()
        except OSError:  # no fd is free; the stub waits
            sleep(_NO_FD_S)
            return None
        return self._fork(*accepted) if accepted else None

    def refuse_all(self, description: dict[str, Any]) -> None:
        """Tell the servers that wait, of which there is at least one, why no child comes."""
        self._listener.settimeout(_REFUSE_S)
        try:
            while True:
                fds = self._accept()
                if fds is not None:
                    _refuse(*fds, description)
                self._listener.settimeout(0.05)
        except OSError:
            return

    def _accept(self) -> tuple[socket.socket, list[int]] | None:
        connection, _address = self._listener.accept()
        connection.settimeout(_STUB_S)
        try:
            _byte, fds, _flags, _from = socket.recv_fds(connection, 1, 3)
        except OSError:
            fds = []
        if len(fds) == 3:
            return connection, fds
        connection.close()  # its server was stopped meanwhile
        for fd in fds:
            os.close(fd)
        return None

    def _fork(self, connection: socket.socket, fds: list[int]) -> tuple[int, int] | None:
        _flush()
        try:
            pid = os.fork()
        except OSError as error:
            message = (
                f"the template of preload could not fork: {error.strerror}. Look at the limit on "
                f"processes (ulimit -u, pids.max of the cgroup) and at the memory"
            )
            _refuse(connection, fds, failure.describe("unavailable", "", message))
            return None
        if pid == 0:
            return self._become_child(connection, fds)
        self._children[pid] = connection
        _tell(connection, 0)
        for fd in fds:
            os.close(fd)
        return None

    def _become_child(self, connection: socket.socket, fds: list[int]) -> tuple[int, int]:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._control)
        os.close(self._owner)
        self._listener.close()
        for other in self._children.values():
            other.close()
        # Open as long as this process lives, and in no child of it. In a child of a child the
        # number may be that of another file.
        kept = [private(connection.detach())]

        def close_once() -> None:
            if kept:
                os.close(kept.pop())

        os.register_at_fork(after_in_child=close_once)
        reads, writes, stderr = fds
        os.dup2(stderr, 2)
        os.dup2(2, 1)
        os.close(stderr)
        return reads, writes

    def _reap(self) -> None:
        for pid in tuple(self._children):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # user code has waited for it
                self._children.pop(pid).close()
                continue
            if ended:
                code = os.waitstatus_to_exitcode(status)
                connection = self._children.pop(pid)
                _tell(connection, code if code >= 0 else 128 - code)
                connection.close()


def _tell(connection: socket.socket, byte: int) -> None:
    with contextlib.suppress(OSError):  # the stub was killed
        connection.sendall(bytes((byte,)))


def _refuse(connection: socket.socket, fds: list[int], description: dict[str, Any]) -> None:
    """Write a goodbye to the port of a server that gets no child."""
    frame = messages.goodbye({**description, "option": Atom("preload")})
    with contextlib.suppress(OSError):  # its server has ended
        os.write(fds[1], header(len(frame)) + frame)
    _tell(connection, 0)
    _tell(connection, 1)
    connection.close()
    for fd in fds:
        os.close(fd)
