"""`doctor`: prints versions and the platform, checks that a server answers, and gives advice."""

from __future__ import annotations

import os
import platform
import select
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import port_server
from port_server import etf, log
from port_server.cli import FAILED, OK
from port_server.protocol.framing import FrameReader, header
from port_server.protocol.messages import PROTOCOL_VERSION
from port_server.runtime import shadows
from port_server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE_S = 10.0  # a server that takes longer to answer counts as dead
ROUND_TRIPS = 300
LABEL_WIDTH = 16
# Messages that a server sends without a request: on a busy machine a heartbeat (one each second)
# arrives between two answers.
UNASKED = ("heartbeat", "log")

NO_NATIVE_HINT = """\
The native codec is missing, so encoding and decoding are some 20 times slower. Install again where
a C compiler is at hand: on Debian `apt-get install gcc python3-dev`, on Alpine `apk add gcc
musl-dev python3-dev`, then `pip install --force-reinstall --no-cache-dir port-server`."""


class Trouble(Exception):  # noqa: N818 - a finding, told to people
    """The server failed a check; the text says which."""


class _Child:
    """A server started for the check, on pipes."""

    def __init__(self, command: Sequence[str]) -> None:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._frames = FrameReader(Settings().max_frame_bytes)
        self._ready: list[Any] = []

    def send(self, term: object) -> None:
        body = etf.encode(term)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(header(len(body)) + body)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Trouble(self._last_words()) from None

    def receive(self) -> Any:
        """The next message that answers something."""
        while True:
            message = self._next()
            if not (isinstance(message, tuple) and message and message[0] in UNASKED):
                return message

    def _next(self) -> Any:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while not self._ready:
            if not select.select([fd], [], [], PATIENCE_S)[0]:
                raise Trouble(f"no answer within {PATIENCE_S:.0f} s")
            data = os.read(fd, 65536)
            if not data:
                raise Trouble(self._last_words())
            self._ready += self._frames.feed(data)
            if self._frames.refusal is not None:
                raise Trouble(f"it wrote no frames: {self._frames.refusal}")
        return etf.decode(self._ready.pop(0))

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "it closed its output and does not end"
        said = self._process.stderr.read().decode(errors="replace").strip()
        return f"it ended with status {status}" + (f" and said:\n{said}" if said else "")

    def leave(self) -> int:
        """Close its input and see it end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Trouble("it does not end when its input does") from None

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.wait()


def _atom_keyed(message: Any, tag: str) -> tuple[Any, ...]:
    if not isinstance(message, tuple) or not message or message[0] != tag:
        raise Trouble(f"expected {tag}, it answered {message!r}")
    return message


def _say(label: str, text: object) -> None:
    print(f"{label + ':':<{LABEL_WIDTH}}{text}")  # noqa: T201 - a report is printed


def run_doctor() -> int:
    """Print the whole picture; FAILED if a server cannot work here."""
    hints: list[str] = []
    _say("port-server", f"{_version('port-server')}, protocol version {PROTOCOL_VERSION}")
    _say("installed in", Path(port_server.__file__).parent)
    _say("python", f"{platform.python_implementation()} {platform.python_version()}")
    _say("executable", sys.executable)
    _say("runs on", f"{platform.system()} {platform.release()}, {platform.machine()}, {_libc()}")
    _say("codec", _codec(hints))
    _say("erlang-py", _version("erlang-py"))
    _say("structlog", _version("structlog"))
    _say("log level", _log_level(hints))
    try:
        _round_trip()
    except (Trouble, OSError, etf.EtfError) as trouble:
        _say("server", f"does not work: {trouble}")
        status = FAILED
    else:
        status = OK
    for text in (*hints, *shadows.found()):
        print(f"\n{text}")  # noqa: T201 - a report is printed
    print("\nEverything works." if status == OK else "\nThis installation does not work.")  # noqa: T201
    return status


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _libc() -> str:
    name, version = platform.libc_ver()
    if name:
        return f"{name} {version}"
    return "musl" if any(Path("/lib").glob("ld-musl-*")) else "an unknown libc"


def _codec(hints: list[str]) -> str:
    if etf.codec_name == "native":
        return "native"
    if os.environ.get("PORT_SERVER_CODEC") == "erlang-py":
        return "erlang-py, because PORT_SERVER_CODEC asks for it"
    try:
        import port_server.etf.native  # noqa: F401, PLC0415 - to learn why it cannot be loaded
    except ImportError as error:
        hints.append(NO_NATIVE_HINT)
        return f"erlang-py, because the native one cannot be loaded: {error}"
    return str(etf.codec_name)


def _log_level(hints: list[str]) -> str:
    setting = os.environ.get(log.LEVEL_VARIABLE)
    level = log.level_from(setting)
    if setting and setting.strip().lower() != level:
        hints.append(
            f"{log.LEVEL_VARIABLE} is {setting!r}; it may be {', '.join(log.LEVELS)}."
            f" Until then it counts as {level}."
        )
    return level


def _round_trip() -> None:
    child = _Child([sys.executable, "-m", "port_server", "serve"])
    try:
        eval_, empty = etf.Atom("eval"), dict[Any, Any]()
        child.send((etf.Atom("init"), PROTOCOL_VERSION, empty))
        _tag, version, info = _atom_keyed(child.receive(), "hello")
        started_ms = (time.perf_counter() - child.started) * 1000
        if version != PROTOCOL_VERSION:
            raise Trouble(f"it speaks protocol version {version}, not {PROTOCOL_VERSION}")
        data = {"rows": [1, 2.5, None, True, "é", 1 << 80], "t": (1, etf.Atom("a"))}
        child.send((eval_, b"data", empty, "data", {"data": data}))
        answer = _atom_keyed(child.receive(), "ok")[2]
        if answer != data:
            raise Trouble(f"sent {data!r}, it answered {answer!r}")
        latencies = []
        for _ in range(ROUND_TRIPS):
            begun = time.perf_counter()
            child.send((eval_, b"1", empty, "1 + 1", empty))
            if child.receive()[2] != 2:
                raise Trouble("1 + 1 is not 2")
            latencies.append((time.perf_counter() - begun) * 1e6)
        ended = child.leave()
        if ended != 0:
            raise Trouble(f"it ended with status {ended} where 0 was expected")
    finally:
        child.close()
    codec = info.get("codec", "unknown")
    _say("server", f"answers; codec {codec}, process {info.get('os_pid')}")
    _say("start", f"{started_ms:.0f} ms to the first answer")
    middle, slowest = statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]
    _say("round trip", f"{middle:.0f} us in the middle, {slowest:.0f} us at the 99th percentile")
