"""Goes, and leaves a thread behind that computes."""

import builtins
import threading

builtins.spinning = True


def spin():
    while builtins.spinning:
        pass


threading.Thread(target=spin).start()
