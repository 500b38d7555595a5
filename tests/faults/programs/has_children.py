"""At work with children of several kinds, and in C itself."""

import multiprocessing
import os
import subprocess
import time

subprocess.Popen(["sleep", "1000"])
subprocess.Popen("sleep 1000 & sleep 1000", shell=True)
multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
if os.fork() == 0:
    while True:
        pass
started()
sum(range(10**12))
