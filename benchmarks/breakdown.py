"""Where the time of one tiny request goes, on one core, as tables: `make profile`.

    python benchmarks/breakdown.py [--short]

The BEAM's side is measured by beam/profile.exs, Python's by trace/sitecustomize.py, both by the
same clock; here they are put together. Of all requests those in the middle count, the fifth around
the median: means of their spans add up to the whole, and what interrupts a request now and then is
not in them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from batches import cpu_of_batches
from bench import PYTHON, Bench

MIDDLE = (0.4, 0.6)
READ, WRITE, STEP = "1", "2", "3"

# Python's steps: where the function stands, what it is, and the step that calls it. Where one is
# not there any more the run fails: say here what has taken its place.
_SERVER = "port_server.server"
_EVALUATOR = f"{_SERVER}.evaluate:Evaluator"
STEPS = (
    (f"{_SERVER}.plain:PlainRequests.answer", "is it a plain request?", ""),
    (f"{_SERVER}.lanes:MainLane.run_plain", "the lane: page, baton, order", "PlainRequests.answer"),
    (f"{_EVALUATOR}.evaluate_plain", "evaluate: namespace, dropping", "MainLane.run_plain"),
    (f"{_SERVER}.evaluate:read_term", "decode code and globals", "Evaluator.evaluate_plain"),
    ("port_server.runtime.snippet:eval", "run the code object", "Evaluator.evaluate_plain"),
    (f"{_SERVER}.replies:encode_parts", "encode the reply", "Evaluator.evaluate_plain"),
    (f"{_SERVER}.channel:Channel.send", "send: lock, header", "PlainRequests.answer"),
)  # fmt: skip

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
    "admit": "is there room?",
    "alias": "make an alias",
    "row": "insert the row (ETS)",
}
BEAM_AFTER = {"unalias": "take the alias away", "decode": "decode the reply"}


MARKS = ("start", *BEAM_BEFORE, "command", "answer", *BEAM_AFTER)


class Call(NamedTuple):
    """One call of a traced function in Python, in ns of the common clock."""

    began: int
    ended: int
    label: str


def read_trace(path: Path) -> tuple[list[Call], int]:
    """Give the calls in their order, and what tracing adds to each."""
    calls = []
    inner = 0
    for line in path.read_text().splitlines():
        label, began, ended = line.split("\t")
        if label == "#inner":
            inner = int(began)
        else:
            calls.append(Call(int(began), int(ended), label))
    return sorted(calls), inner


def spans_of(
    requests: list[dict[str, int]], calls: list[Call], inner_ns: int, clock_ns: float
) -> list[dict[str, float]]:
    """Give the spans of each request; all but `step`, a part of `python`, add up to `total`."""
    found = []
    at = 0
    for mark in requests:
        while at < len(calls) and calls[at].ended <= mark["start"]:
            at += 1
        look = at
        mine = []
        while look < len(calls) and calls[look].began < mark["answer"]:
            mine.append(calls[look])
            look += 1
        reads = [c.ended for c in mine if c.label == READ and c.ended < mark["answer"]]
        writes = [c for c in mine if c.label == WRITE and c.began > mark["start"]]
        if len(reads) != 1 or len(writes) != 1:
            continue  # a heartbeat, or what the scheduler did to it
        arrived, answered = reads[0], writes[0].began
        written = min(writes[0].ended, mark["answer"])
        # Python reads again before the BEAM is there, or after.
        again = [c.began for c in mine if c.label == READ and c.began >= written]
        idle = min([*again, mark["answer"]])
        steps = [c for c in mine if c.label == STEP and c.began >= arrived and c.began < answered]
        spans = {"total": mark["decode"] - mark["start"]}
        last = mark["start"]
        for name in BEAM_BEFORE:
            spans[name] = mark[name] - last - clock_ns
            last = mark[name]
        spans["there"] = arrived - last - inner_ns / 2
        # Half of what tracing adds stands at the beginning of a call, half at its end.
        spans["python"] = answered - arrived - inner_ns
        spans["step"] = sum(
            min(c.ended, answered) - c.began - inner_ns / (1 if c.ended < answered else 2)
            for c in steps
        )
        spans["write"] = written - answered - inner_ns / 2
        spans["tail"] = idle - written - inner_ns / 2 if again else 0.0
        spans["back"] = mark["answer"] - idle - clock_ns
        last = mark["answer"]
        for name in BEAM_AFTER:
            spans[name] = mark[name] - last - clock_ns
            last = mark[name]
        spans["instruments"] = spans["total"] - sum(
            time for name, time in spans.items() if name not in {"total", "step"}
        )
        found.append(spans)
    return found


def own_times(inclusive: dict[str, float], whole: float) -> dict[str, float]:
    """Take from each step what its own steps took."""
    own = {label: inclusive[label] for _where, label, _caller in STEPS}
    labels = {where.split(":")[1]: label for where, label, _caller in STEPS}
    own["the loop around it"] = whole
    for _where, label, caller in STEPS:
        own[labels.get(caller, "the loop around it")] -= inclusive[label]
    return own


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


def print_timeline(spans: dict[str, float], python: dict[str, float], count: int) -> None:
    total = spans["total"] - spans["instruments"]
    print_table(
        f"The way of a request (the middle fifth of {count:,})",
        [
            ("the caller, until it writes", sum(spans[name] for name in BEAM_BEFORE)),
            ("Port.command, write(2), switch to Python, read(2)", spans["there"]),
            ("Python, until it writes", spans["python"]),
            ("Python's write(2)", spans["write"]),
            ("Python, until it waits again", spans["tail"]),
            ("switch to the BEAM, poll, read(2), owner, caller", spans["back"]),
            ("the caller: unalias, decode", sum(spans[name] for name in BEAM_AFTER)),
            ("**all of it**", total),
            ("and the looks at the clock", spans["instruments"]),
        ],
        total,
    )
    print_table("Python, by size", by_size(python), total)
    steps = {label: spans[name] for name, label in {**BEAM_BEFORE, **BEAM_AFTER}.items()}
    print_table("The caller, by size", by_size(steps), total)


def by_size(steps: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(steps.items(), key=lambda item: -item[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Where the time of one tiny request goes.")
    parser.add_argument("--short", action="store_true", help="a quarter of everything")
    options = parser.parse_args()
    few = 4 if options.short else 1
    with tempfile.TemporaryDirectory(prefix="pyport-bench-") as folder:
        trace = Path(folder) / "trace"
        bench = Bench(Path(folder))
        how = {
            "rounds": 20 // few,
            "requests": 1000 // few,
            "trace": str(trace),
            "steps": [where for where, _label, _caller in STEPS],
            "canned": str(Path(folder) / "hello"),
        }
        lines = bench.beam("profile", how, one_core=True)
        traces = [read_trace(Path(f"{trace}.{n}")) for n in range(len(STEPS) + 1)]
        machine = bench.machine()
    batches = cpu_of_batches(PYTHON, 20 // few, 4000)
    samples: dict[str, list[float]] = defaultdict(list)
    requests: list[list[dict[str, int]]] = [[] for _ in traces]
    for line in lines:
        name, number, value = line.split("\t")
        if name == "timeline":
            stamps = map(int, value.split())
            requests[int(number)].append(dict(zip(MARKS, stamps, strict=True)))
        else:
            samples[name].append(float(value))
    clock_ns = samples["clock"][0]
    followed = [
        spans_of(marks, calls, inner_ns, clock_ns)
        for marks, (calls, inner_ns) in zip(requests, traces, strict=True)
    ]
    spans = middle(followed[0])
    inclusive = {
        label: median(spans["step"] for spans in some)
        for (_where, label, _caller), some in zip(STEPS, followed[1:], strict=True)
    }
    for name, value in machine.items():
        print(f"* {name}: {value}")
    print(f"* load: {os.getloadavg()[0]:.1f}")
    print_table(
        "Whole requests, through more and more of PyPort (medians)",
        [(label, median(samples[f"ladder/{name}"])) for name, label in LADDER.items()],
    )
    python = own_times(inclusive, spans["python"])
    print_timeline(spans, python, len(followed[0]))
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
