"""Writes where the port is: a stray byte between two frames, or something else in its place.

`what` says which; `mark` is the file that tells that it is done. The private file descriptors are those of pipes above 31.
"""

import fcntl
import os


def is_writable_pipe(fd):
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return target.startswith("pipe:") and flags & os.O_ACCMODE == os.O_WRONLY


[port] = [fd for fd in range(32, 256) if is_writable_pipe(fd)]
if what == "replaced":
    os.dup2(os.open(os.devnull, os.O_WRONLY), port)
else:
    os.write(port, what)
open(mark, "w").close()
