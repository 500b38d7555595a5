"""Goes, and leaves threads behind that wait, and one that prints."""

import threading
import time

gate = threading.Event()
for _ in range(10):
    threading.Thread(target=gate.wait).start()


def mutter():
    while not gate.is_set():
        print("still here")
        time.sleep(0.05)


threading.Thread(target=mutter).start()
import builtins

builtins.gate = gate
