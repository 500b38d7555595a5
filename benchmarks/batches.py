"""Processor time of Python for tiny requests that arrive together. Runs without a BEAM."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (1, 2, 8, 64)
_OPTIONS = b"t\0\0\0\x01w\x0bdeadline_msb\0\0\x13\x88"
_BODY = _OPTIONS + b"m\0\0\0\x051 + 1" + b"t\0\0\0\0"
_REPLY = b"w\x02okm"
_BOOT = "from port_server.server import app; app.serve()"


def _frame(number: int) -> bytes:
    request = b"\x83h\x05w\x04evalm\0\0\0\x08" + number.to_bytes(8, "big") + _BODY
    return len(request).to_bytes(4, "big") + request


def cpu_of_batches(python: str, rounds: int, requests: int) -> dict[int, float]:
    """Give the processor time of a request in ns, by how many came together; the best of rounds."""
    core = {max(os.sched_getaffinity(0))}
    best = dict.fromkeys(SIZES, float("inf"))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, core)
    try:
        with serve(python) as server:
            clock = Path(f"/proc/{server.pid}/schedstat")
            for _ in range(rounds + 1):
                for size in SIZES:
                    data = frames(size)
                    began = int(clock.read_text().split()[0])
                    for _ in range(requests // size):
                        exchange(server, data, size)
                    spent = int(clock.read_text().split()[0]) - began
                    best[size] = min(best[size], spent / (requests // size * size))
    finally:
        os.sched_setaffinity(0, before)
    return best


@contextmanager
def serve(python: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Have a server that takes frames by hand; it leaves at the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([python, "-P", "-c", _BOOT], env=env, **pipes) as server:
        yield server
        server.stdin.close()


def frames(count: int) -> bytes:
    """Give so many requests, one behind the other."""
    return b"".join(map(_frame, range(count)))


def exchange(server: subprocess.Popen[bytes], data: bytes, replies: int) -> None:
    """Send requests, and wait for so many replies."""
    os.write(server.stdin.fileno(), data)
    got = b""
    while got.count(_REPLY) < replies:
        got += os.read(server.stdout.fileno(), 65536)
