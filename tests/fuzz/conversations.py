"""Whole conversations with a server, made up from a seed: frames doubled, damaged and cut off.

Meanwhile threads print, signals come, calls into the BEAM are answered late, twice or never. If the
server's C was built with sanitizers, they find the rest.

    python conversations.py SECONDS [SEED]

goes on for that long, or has the one conversation of a seed. The bytes that a failed one has sent,
and the server's stderr, are left in build/fuzz/findings.
"""

import contextlib
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from port_server.etf import Atom, decode, encode

SERVE = "import sys; from port_server.server.app import serve; sys.exit(serve())"
# From the last byte to the end of the process; sanitizers and a crowded machine take their time.
PATIENCE_S = 30
FINDINGS = pathlib.Path("build/fuzz/findings")
OWNER = decode(
    bytes.fromhex("8358770d6e6f6e6f6465406e6f686f7374") + (85).to_bytes(4, "big") + bytes(8)
)
CALLBACK = {
    Atom("__struct__"): Atom("Elixir.PyPort.Callback"),
    Atom("index"): 0,
    Atom("arity"): 1,
}

PLAIN = [
    "1 + 1",
    "x",
    "1 / 0",
    "def",
    "print('a' * 100)",
    "print('é' * 10_000); x",
    "[n * 1.5 for n in range(100)]",
    "{'a': [None, True, (1, 2)], 'b': b'bytes'}",
    "object()",
    "b'x' * 200_000",
    "raise KeyboardInterrupt",
    "import sys; sys.exit(3)",
    "class A:\n    def __del__(self): print('gone')\nA(); 1",
    "import logging; logging.warning('%s', 'w' * 1000)",
    "import port_server; port_server.send(to, ('hi', 1))",
    "import time; time.sleep(0.01)",
    "while True: pass",
    "f = lambda: f()\nf()",
    "import os, signal; os.kill(os.getpid(), signal.SIGURG); 'sent'",
    "import signal as s\ns.signal(s.SIGUSR1, lambda *_: None)\ns.raise_signal(s.SIGUSR1)",
    "import threading\nfor _ in 'abc': threading.Thread(target=print, args=('t' * 500,)).start()",
    (
        "import threading, time\n"
        "def work():\n    for n in range(50): print(n); time.sleep(0.0005)\n"
        "t = threading.Thread(target=work); t.start(); t.join()"
    ),
    "import _thread\n_thread.start_new_thread(print, ('raw',)); 1",
    "call(1)",
    "try: call(2)\nexcept BaseException as error: print(error)",
    "import threading\nt = threading.Thread(target=call, args=(3,)); t.start(); t.join()",
    "import asyncio\nawait asyncio.sleep(0.005); print('slept')",
    "import asyncio\nawait asyncio.gather(*(call(n) for n in range(3)))",
]
STREAMS = [
    "for n in range(20): yield n",
    "while True: yield 'x' * 100",
    "import asyncio\nfor n in range(5):\n    await asyncio.sleep(0.001)\n    yield n",
    "yield 1\nraise ValueError('late')",
]
TARGETS = [
    ("math:sqrt", [2.0]),
    ("builtins:len", [[1, 2]]),
    ("no_such:thing", []),
    ("json:dumps", [{"a": 1}]),
]
SIGNALS = [signal.SIGURG, signal.SIGUSR2, signal.SIGCHLD, signal.SIGWINCH]
TAGS = {
    "hello",
    "ok",
    "error",
    "output",
    "log",
    "yield",
    "invoke",
    "send",
    "heartbeat",
    "pong",
    "goodbye",
}
FINAL = {"ok", "error"}
# These words must not be on stderr, whatever was sent.
TROUBLE = re.compile(
    r"AddressSanitizer|runtime error:|Fatal Python error|control_thread|SystemError"
)


class FindingError(Exception):
    """Something that must not be."""


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


class Conversation:
    """One conversation: what is sent, what came back, and whether that is as it should be."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.sent = bytearray()
        # id -> how many final replies there must be, or None where that cannot be known.
        self.owed: dict[bytes, int | None] = {}
        self.answered: dict[bytes, int] = {}
        self.ids: list[bytes] = []
        self.sessions = [b"s%d" % n for n in range(3)]
        self.calls: list[bytes] = []
        self.objects: list[int] = []
        self.read = b""
        self.hello = False
        self.pong = False
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  until the process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            bufsize=0,
        )
        os.set_blocking(self.process.stdin.fileno(), False)  # type: ignore[union-attr]

    # --- what is sent ---------------------------------------------------------------------------

    def init(self) -> bytes:
        options = {
            "owner": OWNER,
            "token": b"t",
            "heartbeat_interval_ms": self.dice.choice([0, 5, 50]),
            "output_window_bytes": self.dice.choice([0, 2_000]),
            "delivery_window_bytes": self.dice.choice([0, 2_000]),
            "max_frame_bytes": 1 << 20,
        }
        return encode((Atom("init"), 1, {Atom(key): value for key, value in options.items()}))

    def new_id(self) -> bytes:
        # Far from each other: one that is damaged is none of the others.
        name = self.dice.randbytes(8 if self.dice.random() < 0.9 else 11)
        self.ids.append(name)
        return name

    def any_id(self) -> bytes:
        return self.dice.choice(self.ids) if self.ids and self.dice.random() < 0.9 else b"nobody"

    def request(self, codes: list[str] = PLAIN) -> bytes:
        dice = self.dice
        name = self.new_id()
        self.owed[name] = 1
        options: dict[Any, Any] = {}
        if dice.random() < 0.3:
            options[Atom("deadline_ms")] = dice.choice([0, 1, 5_000])
        if dice.random() < 0.15:
            options[Atom("session")] = dice.choice(self.sessions)
        if dice.random() < 0.1:
            options[Atom("return")] = Atom(dice.choice(["value", "object", "globals"]))
        if dice.random() < 0.05 and self.calls:
            options[Atom("parent")] = dice.choice(self.calls)
        if dice.random() < 0.15:
            target, args = dice.choice(TARGETS)
            options.pop(Atom("return"), None)
            return encode((Atom("call"), name, options, target.encode(), args, {}))
        code = dice.choice(codes)
        if dice.random() < 0.15:
            code = dice.choice(STREAMS)
            options.pop(Atom("return"), None)
            options |= {Atom("stream"): True, Atom("credit"): dice.choice([0, 1, 100])}
        names = {"x": dice.choice([1, "text", [1, 2.5, None]]), "to": OWNER, "call": CALLBACK}
        return encode((Atom("eval"), name, options, code.encode(), names))

    def control(self) -> bytes:
        dice = self.dice
        name = self.any_id()
        return encode(
            dice.choice(
                [
                    (Atom("cancel"), name),
                    (Atom("cancel"), name),
                    (Atom("ping"), b"p" + name),
                    (Atom("credit"), name, dice.choice([1, 1000])),
                    (Atom("ack"), name, dice.choice([1, 10_000])),
                    (Atom("ack"), b"", dice.choice([500, 1 << 30])),
                    (Atom("release"), [dice.randrange(1, 20), *self.objects[-2:]]),
                    (Atom("open_session"), b"o" + name, dice.choice(self.sessions)),
                    (Atom("close_session"), dice.choice(self.sessions)),
                    (Atom("answer"), dice.choice([*self.calls, b"nobody"]), (Atom("ok"), 1)),
                    (Atom("dance"), b"d" + name, 1, 2),
                ]
            )
        )

    def damaged(self) -> bytes:
        """A message of which nobody knows what it says."""
        # Its id may be damaged, so that nobody could end it.
        body = bytearray(self.request([code for code in PLAIN if "while True" not in code]))
        self.owed[self.ids[-1]] = None
        for _ in range(self.dice.randrange(1, 4)):
            at = self.dice.randrange(len(body))
            what = self.dice.random()
            if what < 0.4:
                body[at] = self.dice.choice(
                    (0, 1, 97, 104, 108, 109, 116, 119, 255, self.dice.randrange(256))
                )
            elif what < 0.6:
                del body[at : at + self.dice.randrange(1, 9)]
            elif what < 0.8:
                body[at:at] = self.dice.randbytes(self.dice.randrange(1, 9))
            else:
                del body[at:]
            if not body:
                break
        return bytes(body)

    def messages(self) -> list[bytes]:
        """Some messages, in the order in which they go out."""
        dice = self.dice
        made = []
        for _ in range(dice.randrange(5, 60)):
            what = dice.random()
            body = (
                self.request() if what < 0.6 else self.control() if what < 0.9 else self.damaged()
            )
            made.append(body)
            # Twice, but for what goes on until its id is cancelled, which ends one of them.
            if dice.random() < 0.05 and b"while True" not in body:
                made.append(body)
                if what < 0.6:
                    self.owed[self.ids[-1]] = None
        for _ in range(dice.randrange(4)):  # out of order
            one, other = dice.randrange(len(made)), dice.randrange(len(made))
            made[one], made[other] = made[other], made[one]
        return made

    # --- the conversation -----------------------------------------------------------------------

    def hold(self) -> None:
        dice = self.dice
        self.send(framed(self.init()))
        # It takes its signals before that.
        self.until(lambda: self.hello, "no hello")
        data = b"".join(framed(body) for body in self.messages())
        while data:
            count = dice.choice([1, 3, 50, 1000, 70_000, len(data)])
            self.send(data[:count])
            data = data[count:]
            if dice.random() < 0.2:
                self.listen(dice.random() * 0.01)
            if dice.random() < 0.05:
                self.process.send_signal(dice.choice(SIGNALS))
            if dice.random() < 0.01:
                self.process.send_signal(signal.SIGSTOP)
                time.sleep(0.002)
                self.process.send_signal(signal.SIGCONT)
        self.finish()

    def finish(self) -> None:
        dice = self.dice
        # Every request is told to end, since some would go on for ever.
        for name in self.ids:
            self.send(framed(encode((Atom("cancel"), name))))
            if dice.random() < 0.1:
                self.listen(0)
        ending = dice.choice(["eof", "eof", "cut", "shutdown", "term", "too long"])
        exact = ending in ("eof", "cut")
        if ending == "cut":
            self.send(framed(encode((Atom("ping"), b"cut")))[: dice.randrange(1, 8)])
        elif ending == "shutdown":
            self.send(framed(encode((Atom("shutdown"), dice.choice([0, 100])))))
        elif ending == "term":
            # Frames that are not read by then are lost, cancels too.
            self.send(framed(encode((Atom("ping"), b"read"))))
            self.until(lambda: self.pong, "no pong")
            self.process.send_signal(signal.SIGTERM)
        elif ending == "too long":
            self.send((1 << 30).to_bytes(4, "big") + b"x" * 10)
        if ending != "term" or dice.random() < 0.5:
            with contextlib.suppress(OSError):
                self.process.stdin.close()  # type: ignore[union-attr]
        self.until(lambda: not self.listen(0.1), f"it has not ended after {ending}")
        status = self.process.wait(PATIENCE_S)
        if status not in (0, 1):
            raise FindingError(f"exit status {status} after {ending}")
        if self.read:
            raise FindingError(f"a cut frame at the end, after {ending}: {self.read[:60]!r}")
        for name, count in self.answered.items():
            most = self.owed.get(name)
            if most is not None and count > most:
                raise FindingError(f"{count} final replies to {name!r}")
        if exact and (missing := self.open()):
            raise FindingError(f"no final reply to {missing} after {ending}")
        self.look_at_stderr()

    def until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            self.listen(0.05)
            if time.monotonic() > deadline:
                # Its stacks, for the person who reads the finding.
                self.process.send_signal(signal.SIGUSR2)
                time.sleep(1)
                raise FindingError(f"{what} within {PATIENCE_S} s; open: {self.open()}")

    def open(self) -> list[bytes]:
        return [name for name, owed in self.owed.items() if owed and not self.answered.get(name)]

    def send(self, data: bytes) -> None:
        """Send all of it, and take in what comes: a server that is not read reads no more."""
        self.sent += data
        deadline = time.monotonic() + PATIENCE_S
        while data:
            try:
                data = data[os.write(self.process.stdin.fileno(), data) :]  # type: ignore[union-attr]
            except BlockingIOError:
                self.listen(0.01)
            except BrokenPipeError:  # it has left, as it may after some endings
                return
            if time.monotonic() > deadline:
                raise FindingError("it reads no further")

    def listen(self, seconds: float) -> bool:
        """Take in what comes; tell whether more may."""
        out = self.process.stdout.fileno()  # type: ignore[union-attr]
        if not select.select([out], [], [], seconds)[0]:
            return True
        data = os.read(out, 1 << 20)
        self.read += data
        while len(self.read) >= 4:
            end = 4 + int.from_bytes(self.read[:4], "big")
            if len(self.read) < end:
                break
            body, self.read = self.read[4:end], self.read[end:]
            self.take(body)
        return bool(data)

    def take(self, body: bytes) -> None:
        try:
            frame = decode(body, binary_as="bytes")
        except Exception as error:
            raise FindingError(f"a frame that cannot be read: {body[:60]!r}") from error
        tag = frame[0]
        if (
            tag not in TAGS
            or (tag == "hello") == self.hello
            or (tag == "goodbye" and not self.hello)
        ):
            raise FindingError(f"{tag} at this place")
        self.hello = True
        self.pong = self.pong or (tag == "pong" and frame[1] == b"read")
        if tag in FINAL:
            self.answered[frame[1]] = self.answered.get(frame[1], 0) + 1
            if len(frame) > 3 and tag == "ok":
                self.objects += frame[3]
        elif tag == "invoke":
            self.calls.append(frame[2])
            if self.dice.random() < 0.7:
                for _ in range(self.dice.choice([1, 1, 2])):
                    outcome = self.dice.choice(
                        [(Atom("ok"), 5), (Atom("error"), {Atom("kind"): Atom("exit")}), 7]
                    )
                    self.answer(frame[2], outcome)

    def answer(self, call: bytes, outcome: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            data = framed(encode((Atom("answer"), call, outcome)))
            # Between two frames, or they would be one: only where all of the last is out.
            if self.whole():
                os.write(self.process.stdin.fileno(), data)  # type: ignore[union-attr]
                self.sent += data

    def whole(self) -> bool:
        at = 0
        while at + 4 <= len(self.sent):
            at += 4 + int.from_bytes(self.sent[at : at + 4], "big")
        return at == len(self.sent)

    def look_at_stderr(self) -> None:
        found = TROUBLE.search(self.errors())
        if found:
            raise FindingError(f"on stderr: {found.group()}")

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self.stderr.close()


def converse(seed: int) -> str | None:
    """Have the conversation of that seed; give what was wrong with it."""
    conversation = Conversation(seed)
    try:
        conversation.hold()
    except FindingError as finding:
        return f"seed {seed}: {finding}\n{keep(seed, conversation)}"
    finally:
        conversation.close()
    return None


def keep(seed: int, conversation: Conversation) -> str:
    FINDINGS.mkdir(parents=True, exist_ok=True)
    where = FINDINGS / f"conversation-{seed}"
    where.with_suffix(".frames").write_bytes(conversation.sent)
    where.with_suffix(".stderr").write_text(conversation.errors())
    return f"see {where}.*"


def main(seconds: float, seed: int | None) -> int:
    if seed is not None:
        finding = converse(seed)
        sys.stdout.write(f"{finding or f'seed {seed}: nothing found'}\n")
        return int(finding is not None)
    end = time.monotonic() + seconds
    seed = int(time.time() * 1000) & 0xFFFFFFF
    first, findings = seed, 0
    while time.monotonic() < end:
        finding = converse(seed)
        if finding:
            sys.stdout.write(f"{finding}\n")
            sys.stdout.flush()
            findings += 1
        seed += 1
    sys.stdout.write(f"{seed - first} conversations from seed {first} on, {findings} findings\n")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
