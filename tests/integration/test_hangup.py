"""The other side of the port dies: soon nothing is left, whatever code is doing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from port_client import Client

from port_server.etf import Atom, encode

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are looked at through /proc"
)

# Stands in for the BEAM: starts a server as a port is started, as the leader of its own group, says
# its pid, sends it what comes on stdin, and shows what it says, until it is killed.
OWNER = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    process_group=0 if sys.argv[2] == "leads" else None,
)
os.write(1, b"%d\\n" % child.pid)
if os.fork():
    # No stdin of the child's is left open here: its end must be the other one's alone.
    os.close(child.stdin.fileno())
    while True:
        data = os.read(child.stdout.fileno(), 65536)
        if not data: os._exit(0)
        os.write(1, data)
os.close(child.stdout.fileno())
while True:
    data = os.read(0, 65536)
    if not data: os._exit(0)
    os.write(child.stdin.fileno(), data)
"""
START = "import sys; from port_server.server.app import serve; sys.exit(serve())"
WITHOUT_EXTENSION = "import sys; sys.modules['port_server.server._watch'] = None; " + START


class Owner:
    """A process that owns a server; `kill` ends it as `kill -9` ends a BEAM."""

    def __init__(self, *, init=True, start=START, leads=True):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, start, "leads" if leads else "does not"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._said = b""
        self.server = int(self.until(b"\n"))
        if init:
            self.tell(Atom("init"), 1, {Atom("heartbeat_interval_ms"): 100})
            self.until(b"hello")

    def tell(self, *message):
        data = encode(message)
        self.process.stdin.write(len(data).to_bytes(4, "big") + data)

    def run(self, code):
        """Send an eval; wait until its code says that it is under way."""
        code = "print('under way', flush=True)\n" + code
        self.tell(Atom("eval"), b"1", {}, code, {})
        self.until(b"under way")

    def until(self, text):
        end = time.monotonic() + 20
        while text not in self._said:
            left = end - time.monotonic()
            assert left > 0, self._said
            select.select([self.process.stdout], [], [], left)
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, self._said
            self._said += data
        before, _text, self._said = self._said.partition(text)
        return before

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # both halves, as if they were one
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        if self.process.poll() is None:
            self.kill()
        for pid in members(self.server):
            os.kill(pid, signal.SIGKILL)


def members(group):
    """Give the processes of a group that are not dead."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, _parent, pgrp = look_at(entry.name)
            if pgrp == str(group) and state not in "ZX":
                found.append(int(entry.name))
    return found


def alive(pid):
    """Tell whether there is such a process."""
    return look_at(pid)[0] not in "ZX"


def look_at(pid):
    """Give state, parent and group of a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return "X", "0", "0"


def gone_in_time(condition, seconds=1.0):
    """Tell whether nothing is left within a second."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


BUSY = {
    "idle": None,
    "a Python loop": "while True: pass",
    "a loop that catches everything": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "C code that holds the GIL": "sum(range(10**12))",
    "a regular expression": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "a sleep": "import time; time.sleep(1000)",
    "signals ignored": (
        "import signal\n"
        "for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass"
    ),
    "every fd closed": "import os; os.closerange(3, 1000)\nwhile True: pass",
    "a child": "import subprocess; subprocess.run(['sleep', '1000'])",
    "a child in the background": "import subprocess; child = subprocess.Popen(['sleep', '1000'])\n"
    "import builtins; builtins.child = child; sum(range(10**12))",
    "forked children": (
        "import os, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        while True: time.sleep(1)\n"
        "while True: pass"
    ),
    "multiprocessing": (
        "import multiprocessing, time\n"
        "context = multiprocessing.get_context('fork')\n"
        "for _ in range(2): context.Process(target=time.sleep, args=(1000,)).start()\n"
        "time.sleep(1000)"
    ),
    "a thread that computes": (
        "import threading\n"
        "def loop():\n    while True: pass\n"
        "threading.Thread(target=loop).start()\n"
        "while True: pass"
    ),
    "an exit that takes its time": (
        "import atexit, time\natexit.register(time.sleep, 1000)\nwhile True: pass"
    ),
}


@pytest.mark.parametrize("what", BUSY)
def test_nothing_is_left_a_second_after_the_owner_was_killed(what):
    """Idle, in Python, in C that holds the GIL, with children."""
    with Owner() as owner:
        if BUSY[what] is not None:
            owner.run(BUSY[what])
            # The fds' end is noticed with the next beat.
            time.sleep(0.3 if what == "every fd closed" else 0.1)
        assert members(owner.server)
        owner.kill()
        assert gone_in_time(lambda: not members(owner.server)), members(owner.server)


def test_a_stopped_server_goes_as_well():
    """The kernel continues it when its group is orphaned; then the thread sees it."""
    with Owner() as owner:
        owner.run("while True: pass")
        os.kill(owner.server, signal.SIGSTOP)
        time.sleep(0.05)
        owner.kill()
        os.kill(owner.server, signal.SIGCONT)
        assert gone_in_time(lambda: not members(owner.server))


def test_a_server_that_leads_no_group_goes_alone():
    """The group is somebody else's."""
    with Owner(leads=False) as owner:
        owner.run("import subprocess\nsubprocess.Popen(['sleep', '1000'])\nwhile True: pass")
        assert gone_in_time(lambda: len(members(owner.process.pid)) == 4)
        group = members(owner.process.pid)
        (child,) = [pid for pid in group if look_at(pid)[1] == str(owner.server)]
        for pid in set(group) - {owner.server, child}:
            os.kill(pid, signal.SIGKILL)
        assert gone_in_time(lambda: not alive(owner.server))
        assert members(owner.process.pid) == [child]
        os.killpg(owner.process.pid, signal.SIGKILL)


def test_it_waits_until_a_quick_end_is_over():
    """The orderly path has 200 ms to begin, and 500 ms then: atexit runs, and helpers tidy up."""
    with Owner() as owner:
        read, write = os.pipe()
        owner.run(
            f"import atexit, os, subprocess, time\n"
            f"out = os.open('/proc/{os.getpid()}/fd/{write}', os.O_WRONLY)\n"
            f"import builtins; builtins.out = out\n"
            f"subprocess.Popen(['sleep', '1000'])\n"
            f"atexit.register(os.write, out, b'orderly')\n"
            f"atexit.register(time.sleep, 0.3)"
        )
        owner.until(b"ok")
        assert len(members(owner.server)) == 2
        os.close(write)
        owner.kill()
        assert os.read(read, 10) == b"orderly"
        os.close(read)
        # Its child as well, although nobody else is there to kill it.
        assert gone_in_time(lambda: not members(owner.server))


def test_who_closes_its_end_of_stdin_only_still_gets_its_replies():
    """That is no hang-up: somebody reads."""
    with Client() as client:
        request = client.send_eval("import time; time.sleep(1.0); 7")
        client.process.stdin.close()
        assert client.reply(request)[2] == 7
        assert client.process.wait(10) == 0


def test_without_an_init_it_ends_when_it_is_done():
    """A person who pipes frames by hand gets every answer, however long it takes."""
    with Client(init=False) as client:
        request = client.send_eval("import time; time.sleep(1.0); 7")
        client.process.stdin.close()
        assert client.reply(request)[2] == 7
        assert client.process.wait(10) == 0


def test_a_forked_child_has_no_such_thread():
    """It is the server's, and what the child does is the child's business."""
    with Owner(leads=False) as owner:
        owner.run(
            "import os, time\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    os.setsid()\n"
            "    time.sleep(1.5)\n"
            "    os._exit(0)\n"
            "print('child', pid, flush=True)\n"
            "while True: pass"
        )
        owner.kill()
        assert gone_in_time(lambda: not alive(owner.server))


def test_without_the_extension_the_kernel_does_it():
    """The server dies with its parent; children are left to the reaper."""
    with Owner(start=WITHOUT_EXTENSION) as owner:
        owner.run("sum(range(10**12))")
        owner.process.kill()
        owner.process.wait()
        assert gone_in_time(lambda: not alive(owner.server))
