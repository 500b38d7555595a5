"""Cycles that requests leave behind are freed, however many there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from raw_client import START, WITHOUT_C, Port

from port_server.etf import Atom, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

BATCH = 100
MIB = 1 << 20

# Each is run again and again, as it stands or with a number that makes it another text each time.
KEPT = """
def f(): raise ValueError(1)
try:
    f()
except ValueError as error:
    kept = error
1
"""
OLD = """
import sys
def f(): return [[] for _ in range(10)]
class Node: pass
node = Node()
node.itself, node.data = node, f()
sys.node = node
1
"""
KINDS = {
    "functions": (100_000, "def f(x): return x\nf(1)"),
    "classes": (100_000, "class C:\n    def f(self): return 1\nC().f()"),
    "exceptions": (100_000, "def f(): raise ValueError(1)\nf()"),
    "exceptions that are kept": (100_000, KEPT),
    "closures": (100_000, "def f():\n    x = [1]\n    def g(): return x\n    return g\nf()()[0]"),
    "functions of ever new code": (10_000, "def f(): return %d\nf()"),
    "exceptions of ever new code": (10_000, "def f(): raise ValueError(%d)\nf()"),
    "cycles that live longer than their request": (20_000, OLD),
}


class Server:
    """A server that is asked many small things at once, and whose answers are counted."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.left = b""
        self.answered = 0
        return self

    def __exit__(self, *_error):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def run(self, code, first, count):
        for at in range(first, first + count, BATCH):
            texts = [code % n if "%" in code else code for n in range(at, at + BATCH)]
            terms = [encode((Atom("eval"), b"12345678", {}, text, {})) for text in texts]
            data = b"".join(len(term).to_bytes(4, "big") + term for term in terms)
            os.write(self.process.stdin.fileno(), data)
            self._take(BATCH)

    def _take(self, count):
        while count:
            self.left += os.read(self.process.stdout.fileno(), MIB)
            at = 0
            while len(self.left) - at >= 4:
                end = at + 4 + int.from_bytes(self.left[at : at + 4], "big")
                if len(self.left) < end:
                    break
                count -= b"hello" not in self.left[at : at + 16]
                at = end
            self.left = self.left[at:]

    def rss_bytes(self):
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_memory_stays_flat(kind):
    """Once the caches are full; a leak of 100 bytes a request would show."""
    count, code = KINDS[kind]
    full = 3 * count // 10
    with Server() as server:
        server.run(code, 0, full)
        before = server.rss_bytes()
        server.run(code, full, count - full)
        assert server.rss_bytes() - before < (2 * MIB if "ever new" in kind else MIB)


@pytest.mark.parametrize("prelude", ["", WITHOUT_C], ids=["in C", "in Python"])
def test_a_request_without_cycles_collects_nothing(prelude):
    """And each one with cycles does: whether there are any is told by counting references."""
    count = "import gc\nsum(stats['collections'] for stats in gc.get_stats()[1:])"
    with Port(init={"heartbeat_interval_ms": 0}, prelude=prelude) as port:

        def collections(code):
            before = port.value(port.eval(count))
            for _ in range(20):
                port.value(port.eval(code, {"n": [1]}))
            return port.value(port.eval(count)) - before

        assert collections("x = [n, 2]\nlen(x)") < 3
        assert 20 <= collections("def f(): return n\nf()") < 23
