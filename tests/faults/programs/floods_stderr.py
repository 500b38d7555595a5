"""Writes to stderr as fast as it goes, for `seconds`; gives how many bytes that were."""

import os
import time

line = b"x" * 99 + b"\n"
block = line * 10_000
end = time.monotonic() + seconds
written = 0
while time.monotonic() < end:
    written += os.write(2, block)
written
