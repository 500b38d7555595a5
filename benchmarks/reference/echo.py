"""The bare Python port: reads and answers one frame at a time, and does nothing else.

    echo.py          os.read and os.write, as one would write it
    echo.py tuned    pipes of 1 MiB, one kept buffer, readinto and writev

A frame is four bytes of length, the most significant first, and that many bytes.
"""

import fcntl
import io
import os
import sys


def echo() -> None:
    while header := os.read(0, 4):
        missing = int.from_bytes(header, "big")
        body = os.read(0, missing)
        missing -= len(body)
        if missing:
            parts = [body]
            while missing:
                parts.append(os.read(0, missing))
                missing -= len(parts[-1])
            body = b"".join(parts)
        frame = header + body
        written = os.write(1, frame)
        while written < len(frame):
            written += os.write(1, memoryview(frame)[written:])


def echo_tuned() -> None:
    for fd in (0, 1):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)
    pipe = io.FileIO(0)
    buffer = bytearray(1 << 16)
    while header := pipe.read(4):
        size = int.from_bytes(header, "big")
        if size > len(buffer):
            buffer = bytearray(size)
        body = memoryview(buffer)[:size]
        count = 0
        while count < size:
            count += pipe.readinto(body[count:])
        written = os.writev(1, (header, body)) - len(header)
        while written < size:
            written += os.write(1, body[written:])


if sys.argv[1:] == ["tuned"]:
    echo_tuned()
else:
    echo()
