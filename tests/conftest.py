"""What tests of several parts share: a real server on the end of two pipes."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gate import Gate

from port_server.etf import Atom, decode, encode

SERVE = "import sys; from port_server.server.app import serve; sys.exit(serve())"
INIT = (Atom("init"), 1, {Atom("heartbeat_interval_ms"): 0})


def framed(body):
    return len(body).to_bytes(4, "big") + body


def frame(term):
    return framed(encode(term))


def frames_of(data):
    """Cut what a server wrote into terms; it must end with a whole frame."""
    terms = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        assert len(data) >= end, f"a cut frame: {data!r}"
        terms.append(decode(data[4:end], binary_as="bytes"))
        data = data[end:]
    return terms


def eval_(code, globals=None, id=b"1", **opts):
    if isinstance(code, str):
        code = code.encode()
    return (
        Atom("eval"),
        id,
        {Atom(name): value for name, value in opts.items()},
        code,
        globals or {},
    )


def call_(target, *args, id=b"1", opts=None, **kwargs):
    return (Atom("call"), id, opts or {}, target.encode(), list(args), kwargs)


def pytest_collection_modifyitems(config, items):
    """Leave out the tests of `make nightly`, unless they are asked for."""
    if os.environ.get("PYPORT_NIGHTLY") or "nightly" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Add what a fault took to the file for docs/reliability.md that PYPORT_FAULTS names."""
    began = time.monotonic()
    result = yield
    mark, path = item.get_closest_marker("fault"), os.environ.get("PYPORT_FAULTS")
    if mark and path:
        # The whole case, or what it says itself.
        said = dict(item.user_properties).get("fault_s")
        took = f"{(said or time.monotonic() - began) * 1000:.0f}"
        row = [mark.args[0], mark.kwargs["saw"], mark.kwargs["became"], took]
        with Path(path).open("a", encoding="utf-8") as rows:
            rows.write("\t".join(row) + "\n")
    return result


class Conversation:
    """A server process, its stdin and stdout in our hands. Every wait has an end."""

    def __init__(self, stderr, *, env=None, init=INIT, python=sys.executable, **popen):
        self.stderr_path = stderr
        with stderr.open("ab") as errors:
            self.process = subprocess.Popen(
                [python, "-c", SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env=dict(os.environ, **(env or {})),
                **popen,
            )
        self.buffer = b""
        self.hello = None
        if init is not None:
            self.send(init)
            self.hello = self.receive()

    def send(self, *terms):
        self.send_raw(b"".join(frame(term) for term in terms))

    def send_raw(self, data):
        self.process.stdin.write(data)

    def _read(self, deadline):
        left = max(0, deadline - time.monotonic())
        ready, _, _ = select.select([self.process.stdout], [], [], left)
        assert ready, f"no answer in time; stderr: {self.stderr}"
        return os.read(self.process.stdout.fileno(), 1 << 20)

    def receive(self, timeout=10):
        """The next message, or None at the end of the stream."""
        deadline = time.monotonic() + timeout
        while True:
            if len(self.buffer) >= 4:
                end = 4 + int.from_bytes(self.buffer[:4], "big")
                if len(self.buffer) >= end:
                    body, self.buffer = self.buffer[4:end], self.buffer[end:]
                    return decode(body, binary_as="bytes")
            data = self._read(deadline)
            if not data:
                assert not self.buffer, f"a cut frame: {self.buffer!r}"
                return None
            self.buffer += data

    def ask(self, *terms, timeout=10):
        """Send, and give the next message."""
        self.send(*terms)
        return self.receive(timeout)

    def value(self, code, globals=None, **opts):
        """The value of code that succeeds."""
        reply = self.ask(eval_(code, globals, **opts))
        assert reply[0] == "ok", reply
        return reply[2]

    def error(self, term):
        """The error map of a request that fails; binaries as text."""
        reply = self.ask(eval_(term) if isinstance(term, (str, bytes)) else term)
        assert reply[0] == "error", reply
        return text_of(reply[2])

    def rest(self):
        """Every message up to the end of the stream."""
        messages = []
        while (message := self.receive()) is not None:
            messages.append(message)
        return messages

    def end_input(self):
        self.process.stdin.close()

    def wait(self, timeout=10):
        return self.process.wait(timeout)

    @property
    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def close(self):
        for pipe in (self.process.stdin, self.process.stdout):
            if not pipe.closed:
                pipe.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def text_of(value):
    """The same value with its binaries as text."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [text_of(item) for item in value]
    if isinstance(value, dict):
        return {text_of(key): text_of(item) for key, item in value.items()}
    return value


@pytest.fixture
def start(tmp_path):
    """Start servers that are gone when the test is."""
    running = []

    def start(**options):
        conversation = Conversation(tmp_path / f"stderr-{len(running)}", **options)
        running.append(conversation)
        return conversation

    yield start
    for conversation in running:
        conversation.close()


@pytest.fixture
def gate(tmp_path):
    """What code waits for until the test opens it."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def server(start):
    """One server that has said hello."""
    return start()
