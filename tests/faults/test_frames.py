"""Hostile and unlucky frames on a live server.

What they do to the codec alone stands in tests/etf/test_hostile.py.
"""

from __future__ import annotations

import os
import pathlib
import random
import time
import zlib

import pytest

from port_server.etf import Atom, encode

MIB = 2**20


def rss(client):
    """Give the resident memory of a server, in bytes."""
    pages = pathlib.Path(f"/proc/{client.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def send_body(client, *bodies):
    """Send frames whose terms are bytes of the test's own, in one write."""
    data = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    client.process.stdin.write(data)
    client.process.stdin.flush()


def request(name, globals_term, code=b"1"):
    """Give the term of an eval whose globals are written by hand."""
    head = encode((Atom("eval"), name, {}, code, {}))
    assert head.endswith(b"t\0\0\0\0")
    return head[:-5] + globals_term


def one_global(value):
    """Give the term of a map with the one key x."""
    return b"t\0\0\0\1m\0\0\0\1x" + value


@pytest.mark.fault(
    "mutated terms",
    saw="`:protocol` or `:decode`, or nothing if no id is readable",
    became="goes on",
)
def test_mutated_terms(survivor):
    """Thousands of damaged messages: what stands behind them is served."""
    dice = random.Random(7)
    seeds = [
        encode(
            (Atom("eval"), b"mutated0", {Atom("deadline_ms"): 5000}, b"x", {"x": [1, 2.5, None]})
        ),
        encode((Atom("call"), b"mutated0", {}, b"math:gcd", [12, 18], {})),
        encode((Atom("release"), [1, 2, 3])),
        encode((Atom("credit"), b"mutated0", 3)),
        encode((Atom("open_session"), b"mutated0", b"s")),
        encode((Atom("close_session"), b"s")),
        encode((Atom("answer"), b"mutated0", (Atom("ok"), {1: 2}))),
    ]
    before = rss(survivor)
    for _ in range(40):
        batch = []
        for _ in range(50):
            data = bytearray(dice.choice(seeds))
            for _ in range(dice.randrange(1, 4)):
                at = dice.randrange(1, len(data))
                if dice.random() < 0.6:
                    data[at] = dice.choice(
                        (0, 1, 97, 104, 108, 109, 116, 119, 255, dice.randrange(256))
                    )
                elif dice.random() < 0.5:
                    del data[at : at + dice.randrange(1, 4)]
                else:
                    data[at:at] = dice.randbytes(dice.randrange(1, 4))
            batch.append(bytes(data))
        send_body(survivor, *batch)
        survivor.status()
    survivor.tell(Atom("close_session"), b"s")
    survivor.others.clear()
    assert rss(survivor) - before < 64 * MIB
    # A name that was damaged is a session all the same.
    opened = survivor.status()["sessions"]
    assert opened < 500
    for name in [b"s" + bytes([n]) for n in range(256)] + [bytes([n]) for n in range(256)] + [b""]:
        survivor.tell(Atom("close_session"), name)


@pytest.mark.fault("a zlib bomb", saw="`:protocol`", became="goes on")
def test_a_zlib_bomb(survivor, record_property):
    """256 MiB in a quarter of one, as a message and within one, are refused and not inflated."""
    packed = zlib.compress(bytes(2**28))
    before, began = rss(survivor), time.monotonic()
    bomb = b"P" + (2**28).to_bytes(4, "big") + packed
    send_body(survivor, b"\x83" + bomb, request(b"bomb", one_global(bomb)))
    reply = survivor.reply(b"bomb")
    assert reply[0] == "error", reply
    assert reply[2]["kind"] in {"decode", "protocol"}
    assert rss(survivor) - before < 32 * MIB
    took = time.monotonic() - began
    record_property("fault_s", took)
    assert took < 5


@pytest.mark.fault("deep nesting", saw="`:decode`, or `:encode` on the way back", became="goes on")
def test_deep_nesting(survivor):
    """A million levels are refused, a hundred thousand are not written: errors of one request."""
    before = rss(survivor)
    for level in (b"l\0\0\0\1", b"h\1", b"t\0\0\0\1a\1"):
        send_body(survivor, request(b"deep", one_global(level * 10**6)))
        reply = survivor.reply(b"deep")
        assert reply[0] == "error", reply
        assert reply[2]["kind"] in {"decode", "protocol"}
    error = survivor.error("x = []\nfor _ in range(100_000): x = [x]\nx")
    assert error["kind"] == "encode"
    assert rss(survivor) - before < 64 * MIB


@pytest.mark.fault("a 160 kB integer", saw="its answer", became="goes on")
def test_a_160_kb_integer(survivor):
    """There and back, in a time that does not grow with its square."""
    number = (1 << (8 * 160_000)) - 12_345
    began = time.monotonic()
    for _ in range(10):
        assert survivor.value("n + 1", {"n": number}) == number + 1
    assert time.monotonic() - began < 5


@pytest.mark.fault("100,000 new atoms", saw="its answer", became="goes on, and forgets them")
@pytest.mark.slow
def test_a_hundred_thousand_new_atoms(survivor, record_property):
    """They cross, and are not kept: ten times as many cost no more memory than the first."""

    def cross(turn):
        atoms = [Atom(f"fault_{turn}_{n}") for n in range(100_000)]
        began = time.monotonic()
        assert survivor.value("len(atoms)", {"atoms": atoms}) == 100_000
        return time.monotonic() - began

    cross(0)
    cross(1)
    before = rss(survivor)
    for turn in range(2, 10):
        took = cross(turn)
    record_property("fault_s", took)
    assert rss(survivor) - before < 20 * MIB


@pytest.mark.fault(
    "64 short requests in one batch", saw="its answer, before the next has run", became="goes on"
)
def test_64_short_requests_in_one_batch(survivor):
    """None waits for those behind it: the first answer is there long before the last has run."""
    code = "import time; time.sleep(0.005); n"
    names = [survivor.next_id() for _ in range(64)]
    began = time.monotonic()
    survivor.tell_together(
        *[(Atom("eval"), name, {}, code, {"n": n}) for n, name in enumerate(names)]
    )
    arrived = []
    for n, name in enumerate(names):
        assert survivor.reply(name)[2] == n
        arrived.append(time.monotonic() - began)
    # Each slept 5 ms: half of them are there in little more than half of the time.
    assert arrived[-1] >= 64 * 0.005
    assert arrived[0] < arrived[-1] / 4
    assert arrived[31] < arrived[-1] * 3 / 4
