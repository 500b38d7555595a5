"""Children that go on with the code of the request: one returns from it, one raises, one exits, one prints."""

import os

parent = os.getpid()
for deed in range(4):
    if os.fork() == 0:
        print("from a child")
        os.write(1, b"and from its fd\n")
        if deed == 1:
            raise ValueError("in a child")
        if deed == 2:
            raise SystemExit(7)
        if deed == 3:
            os._exit(0)
        break

if os.getpid() == parent:
    for _ in range(4):
        os.wait()
os.getpid() == parent
