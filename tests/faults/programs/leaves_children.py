"""The leader of the group dies; its children do not think of it."""

import os
import subprocess
import sys

for _ in range(3):
    subprocess.Popen(["sleep", "1000"])
subprocess.Popen([sys.executable, "-c", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(1000)"])
if os.fork() == 0:
    while True:
        pass
os._exit(9)
