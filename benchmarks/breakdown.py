"""Where the time of one tiny request goes, on one core, as tables: `make profile`.

    python benchmarks/breakdown.py [--short]

The BEAM's side is measured by beam/profile.exs, Python's by the marks of plain.c (traced.py), both
by the same clock; here they are put together. Of all requests those in the middle count, the fifth
around the median: means of their spans add up to the whole, and what interrupts a request now and
then is not in them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import traced
from batches import cpu_of_batches
from bench import PYTHON, Bench
from traced import Mark

MIDDLE = (0.4, 0.6)
BUILT = traced.ROOT / ".cache/trace"

LADDER = {
    "echo_c": "C echo, used by who owns the port: what every port costs",
    "echo_python": "Python echo, the same",
    "routed_c": "C echo through a GenServer",
    "routed_python": "Python echo through a GenServer: the reference",
    "client_only": "the PyPort client, with a C program for a server",
    "python_only": "the PyPort server, used by who owns the port",
    "eval": "PyPort.eval",
}
BEAM_BEFORE = {
    "options": "options and deadline",
    "handle": "find the server, next id",
    "encode": "encode the request",
    "admit": "is it too large?",
    "alias": "make an alias",
    "row": "insert the row (ETS), is there room?",
}
BEAM_AFTER = {"unalias": "take the alias away", "decode": "decode the reply"}
# What Python does until it writes, by the marks at whose ends it is done.
PYTHON_STEPS = {
    "entered": "is it plain? into the lane: page, order, baton",
    "decoded": "decode code and globals",
    "found": "look up the snippet, make its namespace",
    "ran": "run the code object",
    "encoded": "encode the reply",
    "dropped": "drop the value and its namespace",
    "left": "out of the lane: what user code left behind, baton",
    "write": "to the write: lock, header",
}

# Of a request that is followed: the BEAM's and Python's, each in their order.
MARKS = ("start", *BEAM_BEFORE, "command", "answer", *BEAM_AFTER)
PYTHON_MARKS = ("read", *PYTHON_STEPS, "written", "wait")


def spans_of(
    requests: list[dict[str, int]], marks: list[Mark], mark_ns: float, clock_ns: float
) -> list[dict[str, float]]:
    """Give the spans of each request, by what ends them; all but `total` add up to `total`.

    Both sides look at the clock in one line of time. A look's cost stands half before and half
    after what it says, and is counted to `instruments`.
    """
    found = []
    at = 0
    for request in requests:
        while at < len(marks) and marks[at].ns <= request["start"]:
            at += 1
        look = at
        while look < len(marks) and marks[look].ns < request["answer"]:
            look += 1
        python = after_its_read(marks[at:look])
        if not python:
            continue  # it took another way, or is not in the ring any more
        beam = [(ns, name, clock_ns) for name, ns in request.items()]
        # What Python had left of the request before belongs to the way there.
        early = [(mark.ns, "read", mark_ns) for mark in marks[at : look - len(python)]]
        looks = sorted([*beam, *early, *((mark.ns, mark.step, mark_ns) for mark in python)])
        spans: dict[str, float] = defaultdict(float)
        spans["total"] = request[MARKS[-1]] - request[MARKS[0]]
        for (began, _name, cost), (ended, name, its_cost) in pairwise(looks):
            # The BEAM has written by then; whether Python runs already is the scheduler's choice.
            ways = "read" if ended < python[0].ns else "answer"
            spans[ways if name == "command" else name] += ended - began - (cost + its_cost) / 2
            spans["instruments"] += (cost + its_cost) / 2
        found.append(dict(spans))
    return found


def after_its_read(marks: list[Mark]) -> list[Mark]:
    """Give the marks from the read on, if they are those of one request that was answered."""
    steps = [mark.step for mark in marks]
    first = steps.index("read") if "read" in steps else len(steps)
    mine = tuple(steps[first:])
    # What comes after the write may come after the answer.
    answered = "write" in mine and mine == PYTHON_MARKS[: len(mine)]
    return marks[first:] if answered else []


def middle(requests: list[dict[str, float]]) -> dict[str, float]:
    """Give the mean of each span of the requests in the middle."""
    requests = sorted(requests, key=lambda spans: spans["total"])
    low, high = (int(part * len(requests)) for part in MIDDLE)
    chosen = requests[low : max(high, low + 1)]
    return {
        name: fmean(spans.get(name, 0.0) for spans in chosen)
        for name in dict.fromkeys(name for spans in chosen for name in spans)
    }


def print_table(title: str, rows: list[tuple[str, float]], whole: float | None = None) -> None:
    print(f"\n**{title}**\n")
    print("| | µs |" + (" share |" if whole else ""))
    print("|---|---|" + ("---|" if whole else ""))
    for label, ns in rows:
        print(f"| {label} | {ns / 1000:.2f} |" + (f" {ns / whole:.0%} |" if whole else ""))


def print_timeline(spans: dict[str, float], count: int) -> None:
    total = spans["total"] - spans["instruments"]
    print_table(
        f"The way of a request (the middle fifth of {count:,})",
        [
            ("the caller, until it writes", sum(spans[name] for name in BEAM_BEFORE)),
            ("Port.command, write(2), switch to Python, read(2)", spans["read"]),
            ("Python, until it writes", sum(spans[name] for name in PYTHON_STEPS)),
            ("Python's write(2)", spans.get("written", 0.0)),
            ("Python, until it waits again", spans.get("wait", 0.0)),
            ("switch to the BEAM, poll, read(2), owner, caller", spans["answer"]),
            ("the caller: unalias, decode", sum(spans[name] for name in BEAM_AFTER)),
            ("**all of it**", total),
            ("and the looks at the clock", spans["instruments"]),
        ],
        total,
    )
    for title, steps in (("Python", PYTHON_STEPS), ("The caller", {**BEAM_BEFORE, **BEAM_AFTER})):
        sizes = by_size({label: spans[name] for name, label in steps.items()})
        print_table(f"{title}, by size", sizes, total)


def by_size(steps: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(steps.items(), key=lambda item: -item[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Where the time of one tiny request goes.")
    parser.add_argument("--short", action="store_true", help="a quarter of everything")
    options = parser.parse_args()
    few = 4 if options.short else 1
    with tempfile.TemporaryDirectory(prefix="pyport-bench-") as folder:
        bench = Bench(Path(folder))
        build = [PYTHON, str(Path(traced.__file__)), str(BUILT)]
        if subprocess.run(build, check=False).returncode:
            return 1
        ring = Path(folder) / "ring"
        traced.make_ring(ring)
        how = {
            "rounds": 20 // few,
            "requests": 1000 // few,
            "traced": traced.environment(BUILT, ring),
            "canned": str(Path(folder) / "hello"),
        }
        lines = bench.beam("profile", how, one_core=True)
        marks, mark_ns = traced.read_ring(ring)
        machine = bench.machine()
    batches = cpu_of_batches(PYTHON, 20 // few, 4000)
    samples: dict[str, list[float]] = defaultdict(list)
    requests: list[dict[str, int]] = []
    for line in lines:
        name, _round, value = line.split("\t")
        if name == "timeline":
            requests.append(dict(zip(MARKS, map(int, value.split()), strict=True)))
        else:
            samples[name].append(float(value))
    followed = spans_of(requests, marks, mark_ns, samples["clock"][0])
    if not followed:
        sys.exit("No request could be followed: is the codec of this Python the native one?")
    for name, value in machine.items():
        print(f"* {name}: {value}")
    print(f"* load: {os.getloadavg()[0]:.1f}")
    print_table(
        "Whole requests, through more and more of PyPort (medians)",
        [(label, median(samples[f"ladder/{name}"])) for name, label in LADDER.items()],
    )
    print_timeline(middle(followed), len(followed))
    empty = median(samples["step/an empty function"])
    print_table(
        "Single steps of the BEAM's side, in a tight loop",
        [
            (name.removeprefix("step/"), median(values) - empty)
            for name, values in samples.items()
            if name.startswith("step/") and "empty" not in name
        ],
    )
    print_table(
        "Processor time of Python for a request, by how many came together",
        [(f"{size} at once", ns) for size, ns in batches.items()],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
