"""A client without Elixir for tests: frames to a real server, and its frames back, by id.

A test decides which frames cross, and in which order.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time

from port_server.etf import Atom, Struct, decode, encode, read_term

MS = 0.001
# A prelude: requests and calls take the general path.
WITHOUT_C = "import sys; sys.modules['port_server.server._fast'] = None; "
START = "import sys; from port_server.server.app import serve; sys.exit(serve())"


def atoms(map):
    return {Atom(key): value for key, value in (map or {}).items()}


def message_of(body):
    """Read a message, with the large data behind its term in its places."""
    term, end = read_term(body, 1, binary_as="bytes", plain_structs=True)
    if end != len(body):
        body = encode(with_data(term, body[end:]))
    return decode(body, binary_as="bytes")


def with_data(term, data):
    if isinstance(term, Struct) and type(term.get("data")) is tuple:
        offset, size = term["data"]
        return data[offset : offset + size]
    if isinstance(term, dict):
        fields = {key: with_data(value, data) for key, value in term.items()}
        return Struct(term.module, fields) if isinstance(term, Struct) else fields
    if type(term) in {list, tuple}:
        return type(term)(with_data(item, data) for item in term)
    return term


class Port:
    """A server, and a thread that receives its frames."""

    def __init__(self, *, init=None, env=None, prelude=""):
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            bufsize=0,
        )
        self._lock = threading.Lock()
        self._boxes: dict[bytes, queue.Queue] = {}
        self.doubled: list[bytes] = []
        self._over: set[bytes] = set()
        self.beats: list[tuple[float, dict]] = []
        self.others: queue.Queue = queue.Queue()
        self._last = 0
        self._kept: list[bytes] | None = None
        threads = os.environ.get("PYPORT_TEST_THREADS")
        if threads:  # the features a second time
            init = {"threads": int(threads), "heartbeat_interval_ms": 0, **(init or {})}
        if init is not None:
            self.tell(Atom("init"), 1, {Atom(key): value for key, value in init.items()})
        self._reader = threading.Thread(target=self._take_in, daemon=True)
        self._reader.start()
        self.status()  # from here on, times are those of the server, not of its start

    def __enter__(self):
        return self

    def __exit__(self, failed, *_error):
        self.process.stdin.close()
        try:
            if not failed:  # else code may wait for what never comes
                self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(5)
            self.process.stdout.close()
            self.process.stderr.close()

    def new_id(self):
        self._last += 1
        return self._last.to_bytes(8, "big")

    def tell(self, *message):
        if self._kept is None:
            self.write(encode(message))
        else:
            self._kept.append(encode(message))

    @contextlib.contextmanager
    def at_once(self):
        """Write what is told within together, at the end."""
        self._kept = []
        yield
        kept, self._kept = self._kept, None
        self.write(*kept)

    def write(self, *terms):
        """Write whole terms, each in a frame, with one write."""
        data = b"".join(len(term).to_bytes(4, "big") + term for term in terms)
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self.process.stdin.fileno(), view) :]

    def eval(self, code, given=None, **options):
        """Send an eval; give its id."""
        name = self.new_id()
        self.tell(Atom("eval"), name, {Atom(k): v for k, v in options.items()}, code, atoms(given))
        return name

    def call(self, target, args=(), **options):
        name = self.new_id()
        options = {Atom(k): v for k, v in options.items()}
        self.tell(Atom("call"), name, options, target, list(args), {})
        return name

    def reply(self, name, timeout=10.0):
        """Wait for the next message about that id: a tuple without the id."""
        return self._box(name).get(timeout=timeout)

    def value(self, name, timeout=10.0):
        message = self.reply(name, timeout)
        assert message[0] == "ok", message
        return message[1]

    def error(self, name, timeout=10.0):
        message = self.reply(name, timeout)
        assert message[0] == "error", message
        return message[1]

    def answered(self, name):
        """Whether something was said about that id that nobody has asked for yet."""
        return not self._box(name).empty()

    def nothing(self, name, seconds=0.1):
        """Assert that nothing more is said about that id."""
        time.sleep(seconds)
        assert self._box(name).empty(), self._box(name).get()

    def status(self):
        name = self.new_id()
        self.tell(Atom("ping"), name)
        message = self.reply(name)
        assert message[0] == "pong"
        return message[1]

    def settled(self, *, seconds=3.0, **wanted):
        """Wait until the counts of the status are those; give it."""
        end = time.monotonic() + seconds
        while True:
            status = self.status()
            if all(status[key] == value for key, value in wanted.items()):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.01)

    def invoked(self):
        """Wait for the next call into the BEAM: request, call, function, arguments."""
        while (message := self.others.get(timeout=5))[0] != "invoke":
            pass
        return message[1:]

    def ended_well(self, seconds=3.0):
        """Wait until the server has ended, and assert that it did so of its own accord."""
        status = self.process.wait(seconds)
        assert status == 0, (status, self.process.stderr.read().decode())

    def _box(self, name):
        return self._boxes.setdefault(name, queue.Queue())

    def _take_in(self):
        while True:
            header = self._exactly(4)
            if header is None:
                return
            body = self._exactly(int.from_bytes(header, "big"))
            if body is None:
                return
            message = message_of(body)
            kind = message[0]
            if kind in {"ok", "error", "yield", "pong", "output"}:
                if kind in {"ok", "error", "pong"}:
                    if message[1] in self._over:
                        self.doubled.append(message[1])
                    self._over.add(message[1])
                self._box(message[1]).put((kind, *message[2:]))
            elif kind == "heartbeat":
                self.beats.append((time.monotonic(), message[1]))
            else:
                self.others.put(message)

    def _exactly(self, count):
        data = bytearray(count)  # not joined: a frame may be 100 MiB
        left = memoryview(data)
        while left:
            try:
                more = self.process.stdout.readinto(left)
            except (OSError, ValueError):
                return None
            if not more:
                return None
            left = left[more:]
        return bytes(data)
