"""Writing for people and pipes, directly to file descriptors.

Python's buffers would hold back output that must leave at once.
"""

from __future__ import annotations

import os
import sys

READ_BYTES = 1 << 16


def write_all(fd: int, data: bytes) -> None:
    """Write everything; a pipe may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def complain(command: str, text: str) -> None:
    """Report a problem on stderr, under the name of the command."""
    sys.stderr.write(f"port-server {command}: {text}\n")
    sys.stderr.flush()
