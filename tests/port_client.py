"""A client of a real server, for tests: frames over pipes, no BEAM."""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time

import pytest

from port_server.etf import Atom, decode, encode

BOOT = "import sys; from port_server.server import app; sys.exit(app.serve())"
TOKEN = "token-of-this-server"
PATIENCE_S = 20  # the machine is shared; a promise about time has its own assertion


try:
    from port_server.server import control  # noqa: F401  reads the port while code runs

    HAS_CONTROL_THREAD = True
except ImportError:
    HAS_CONTROL_THREAD = False
needs_control_thread = pytest.mark.skipif(
    not HAS_CONTROL_THREAD, reason="nobody reads the port while code runs"
)


class Client:
    """One server process. Every wait has an end."""

    def __init__(self, init=None, *, code=BOOT, env=None):
        # Not a pipe: one that nobody reads would fill.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=None if env is None else {**os.environ, **env},
        )
        self._data = b""
        self._count = 0
        self.others = []  # frames that nobody has asked for yet
        if init is not False:
            options = {"token": TOKEN, "heartbeat_interval_ms": 0} | (init or {})
            self.tell(Atom("init"), 1, atoms(options))
            self.hello = self.receive(lambda frame: frame[0] == "hello")

    def tell(self, *message):
        """Send one message."""
        data = encode(message)
        self.process.stdin.write(len(data).to_bytes(4, "big") + data)
        self.process.stdin.flush()

    def tell_together(self, *messages):
        """Send messages in one write."""
        data = b""
        for message in messages:
            term = encode(message)
            data += len(term).to_bytes(4, "big") + term
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def next_id(self):
        """Give a fresh request id."""
        self._count += 1
        return self._count.to_bytes(8, "big")

    def next_frame(self, patience_s=PATIENCE_S):
        """Give the next frame; None at the end."""
        deadline = time.monotonic() + patience_s
        while True:
            if len(self._data) >= 4:
                end = 4 + int.from_bytes(self._data[:4], "big")
                if len(self._data) >= end:
                    frame, self._data = self._data[4:end], self._data[end:]
                    return decode(frame, binary_as="bytes")
            left = deadline - time.monotonic()
            assert left > 0, f"no frame came in time; others: {self.others!r}"
            if select.select([self.process.stdout], [], [], left)[0]:
                more = os.read(self.process.stdout.fileno(), 1 << 20)
                if not more:
                    return None
                self._data += more

    def receive(self, wanted, patience_s=PATIENCE_S):
        """Give the first frame that is wanted; keep the others."""
        for at, frame in enumerate(self.others):
            if wanted(frame):
                return self.others.pop(at)
        while True:
            frame = self.next_frame(patience_s)
            assert frame is not None, f"the server ended: {self.stderr()}"
            if wanted(frame):
                return frame
            self.others.append(frame)

    def reply(self, id, patience_s=PATIENCE_S):
        """Give the terminal reply to a request."""
        return self.receive(
            lambda frame: frame[0] in ("ok", "error") and frame[1] == id, patience_s
        )

    def send_eval(self, code, names=None, options=None):
        """Send an eval; give its id."""
        request = self.next_id()
        self.tell(Atom("eval"), request, atoms(options or {}), code, names or {})
        return request

    def eval(self, code, names=None, **options):
        """Give the whole reply to an eval."""
        return self.reply(self.send_eval(code, names, options))

    def call(self, target, args=(), kwargs=None, **options):
        """Give the whole reply to a call."""
        request = self.next_id()
        self.tell(Atom("call"), request, atoms(options), target, list(args), kwargs or {})
        return self.reply(request)

    def value(self, code, names=None, **options):
        """Give the value of an eval that must succeed."""
        reply = self.eval(code, names, **options)
        assert reply[0] == "ok", reply
        return reply[2]

    def error(self, code, names=None, **options):
        """Give the error map of an eval that must fail."""
        reply = self.eval(code, names, **options)
        assert reply[0] == "error", reply
        return reply[2]

    def output(self, id):
        """Take what a request printed so far, as pairs of stream and text, neighbours joined."""
        printed = []
        for frame in [frame for frame in self.others if frame[0] == "output" and frame[1] == id]:
            self.others.remove(frame)
            if printed and printed[-1][0] == frame[2]:
                printed[-1] = (frame[2], printed[-1][1] + frame[3])
            else:
                printed.append((frame[2], frame[3]))
        return printed

    def status(self):
        """Give what a ping is answered with."""
        request = self.next_id()
        self.tell(Atom("ping"), request)
        return self.receive(lambda frame: frame[0] == "pong" and frame[1] == request)[2]

    def end(self):
        """Close the port; give what the server wrote to stderr."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        deadline = time.monotonic() + PATIENCE_S
        while self.next_frame(max(0.1, deadline - time.monotonic())) is not None:
            pass
        self.process.wait(PATIENCE_S)
        return self.stderr()

    def stderr(self):
        """Give what the server wrote to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def atoms(options):
    """Turn the keys of a map into atoms."""
    return {Atom(key): value for key, value in options.items()}
