"""The codec against the others: ratios of times, all from one run, as a Markdown table.

    python benchmarks/codec/bench.py [--rounds 100] [--only floats] [--check]

Every codec gets its own format of the same value. A round measures all codecs of a case one after
the other, each for a millisecond or one call, so that a noisy machine hurts all alike; the best
round counts, as anything above it is other people's work. --check exits with 1 if a
promise of docs/performance.md is broken.
"""

from __future__ import annotations

import argparse
import json
import marshal
import pickle
import platform
import random
import sys
import time
from typing import TYPE_CHECKING, Any

import erlang
import msgspec
import orjson

from port_server.etf import native

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import erlpack
except ImportError:
    erlpack = None

TIMES = "\N{MULTIPLICATION SIGN}"
Case = tuple[str, Any]


def document(size: int) -> Any:
    """Make a JSON-like document of about `size` bytes."""
    random.seed(2)
    rows: list[Any] = []
    total = 0
    while total < size:
        row = {
            "id": random.randrange(10**9),
            "name": random.choice(["Ada", "Grace", "Edsger", "Barbara"]) + str(len(rows)),
            "email": f"user{len(rows)}@example.org",
            "active": random.random() < 0.5,
            "score": random.random() * 100,
            "tags": random.sample(["red", "green", "blue", "violet", "amber"], 3),
            "address": {"street": f"{len(rows)} Main St", "city": "Zürich", "zip": None},
            "history": [random.randrange(1000) for _ in range(8)],
        }
        rows.append(row)
        total += len(json.dumps(row))
    return {"rows": rows, "total": len(rows)}


def cases() -> list[Case]:
    random.seed(1)
    return [
        ("100k small ints", [random.randrange(256) for _ in range(100_000)]),
        (
            "100k mixed ints",
            [random.randrange(-(2 ** random.randrange(1, 63)), 2 ** random.randrange(1, 63))
             for _ in range(100_000)],
        ),
        ("100k floats", [random.random() * 1000 for _ in range(100_000)]),
        (
            "10k maps of 5",
            [{"id": i, "name": f"user {i}", "age": i % 90, "score": i * 0.5, "ok": i % 2 == 0}
             for i in range(10_000)],
        ),
        ("1 MiB document", document(2**20)),
        ("16 MiB binary", random.randbytes(16 * 2**20)),
        ("tiny request", ("eval", b"\0\0\0\0\0\0\0\1", {}, "1 + 1", {"x": 1})),
    ]  # fmt: skip


def contenders(value: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Give (decode, encode) of each codec that can express the value."""
    term = native.encode(value)
    packer, unpacker = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
    packed, pickled, marshalled = packer.encode(value), pickle.dumps(value, 5), marshal.dumps(value)
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "ours": (
            (lambda: native.decode(term, binary_as="bytes"))
            if isinstance(value, bytes)
            else (lambda: native.decode(term)),
            lambda: native.encode(value),
        ),
        "msgspec": (lambda: unpacker.decode(packed), lambda: packer.encode(value)),
        "pickle 5": (lambda: pickle.loads(pickled), lambda: pickle.dumps(value, 5)),
        "marshal": (lambda: marshal.loads(marshalled), lambda: marshal.dumps(value)),
    }
    if not isinstance(value, (bytes, tuple)):
        text = orjson.dumps(value)
        found["orjson"] = (lambda: orjson.loads(text), lambda: orjson.dumps(value))
    for_erlang = as_erlang(value)
    found["erlang-py"] = (
        lambda: erlang.binary_to_term(term),
        lambda: erlang.term_to_binary(for_erlang),
    )
    if erlpack is not None:
        try:
            erlpack.unpack(erlpack.pack(value))
            packed_by_erlpack = erlpack.pack(value)
            found["erlpack"] = (
                lambda: erlpack.unpack(packed_by_erlpack),
                lambda: erlpack.pack(value),
            )
        except Exception as error:
            print(f"erlpack cannot: {error}", file=sys.stderr)
    return found


def as_erlang(value: Any) -> Any:
    """Put erlang-py's own classes where it would write a charlist."""
    if isinstance(value, str):
        return erlang.OtpErlangBinary(value.encode())
    if isinstance(value, bytes):
        return erlang.OtpErlangBinary(value)
    if isinstance(value, list):
        return [as_erlang(item) for item in value]
    if isinstance(value, tuple):
        return tuple(as_erlang(item) for item in value)
    if isinstance(value, dict):
        return {as_erlang(key): as_erlang(item) for key, item in value.items()}
    return value


def once(run: Callable[[], Any], repeat: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - begin) / repeat


def measure(
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]], which: int, rounds: int
) -> dict[str, float]:
    best = dict.fromkeys(found, float("inf"))
    cost = {name: max(once(run[which], 1), 1e-7) for name, run in found.items()}
    repeat = {name: max(1, int(5e-4 / cost[name])) for name in found}
    for number in range(rounds):
        for name, run in found.items():
            if best[name] > 0.05 and number > 2:
                continue  # erlang-py: three rounds tell enough
            best[name] = min(best[name], once(run[which], repeat[name]))
    return best


def show(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", default="")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    names = ["msgspec", "pickle 5", "marshal", "orjson", "erlang-py", "erlpack"]
    broken = []
    print(f"Python {platform.python_version()}; time of ours, then the others' times / ours\n")
    print("| | ours | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for title, value in cases():
        if options.only not in title:
            continue
        found = contenders(value)
        for which, verb in ((0, "decode"), (1, "encode")):
            times = measure(found, which, options.rounds)
            ours = times["ours"]
            cells = [
                f"{times[name] / ours:.2f} {TIMES}" if name in times else "—" for name in names
            ]
            print(f"| {title}, {verb} | {show(ours)} | " + " | ".join(cells) + " |", flush=True)
            # "No slower" within what the same measurement differs by from run to run.
            limit = 1.05 if which == 0 else 1.5
            if ours > times["msgspec"] * limit:
                broken.append(f"{title}, {verb}: {ours / times['msgspec']:.2f} {TIMES} msgspec")
            structured = not isinstance(value, (bytes, tuple))
            if structured and times["erlang-py"] < 20 * ours:
                broken.append(
                    f"{title}, {verb}: erlang-py is only {times['erlang-py'] / ours:.1f} {TIMES}"
                )
    if options.only in "100k floats":
        value = cases()[2][1]
        term = native.encode(value)
        pair = {
            "list": (lambda: native.decode(term), None),
            "typed": (lambda: native.decode(term, floats_as="memoryview"), None),
        }
        times = measure(pair, 0, options.rounds)  # type: ignore[arg-type]
        ratio = times["list"] / times["typed"]
        print(
            f"\n100k floats to a typed buffer: {show(times['typed'])}, "
            f"{ratio:.1f} {TIMES} faster than a list"
        )
        if ratio < 10:
            broken.append(f"typed floats: only {ratio:.1f} {TIMES} faster than a list")
    for line in broken:
        print("broken promise:", line)
    sys.exit(bool(broken) and options.check)


if __name__ == "__main__":
    main()
