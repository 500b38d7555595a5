"""Every way to write to what others believe to be the standard output."""

import ctypes
import os
import subprocess
import sys

print("printed")
sys.__stdout__.write("the original\n")
os.write(1, b"\xff\xff\xff\xff written\n")
libc = ctypes.CDLL(None)
libc.printf(b"printf\n")
libc.fflush(None)
subprocess.run(["echo", "a subprocess"], check=True)
os.system("echo a shell")
"done"
