"""The figures, their references and promises; and the evaluation of a run.

A figure names a subject and a reference, both measured in the same rounds of the same run. Only
their ratio in each round counts, so that a machine that is slow for a while is slow for both.
"""

from __future__ import annotations

from statistics import median, quantiles
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# name -> round -> number
Samples = dict[str, dict[int, float]]

# A reference whose own quartiles are this far apart tells little about what is held against it.
NOISY = 1.3
# The guard turns red at this many times the promise: a regression that matters is, noise is not.
GENEROSITY = 2.0

MIB = 1 << 20


class Figure(NamedTuple):
    """One line of the table.

    Attributes:
        section: the heading it stands under.
        what: what was measured, for people.
        subject: the name of its samples.
        reference: the name of those it is held against.
        relation: "times" (of a time, less is better), "rate" (of calls a second, more is better) or
            "more" (the difference, less is better).
        promise: what the ratio, or the difference in the unit of the samples, may be; None where
            nothing was promised.
        limit: the same of the subject alone, whatever the reference does.
        generosity: at how many times the promise the guard turns red.
        phase: which phase measures it.
    """

    section: str
    what: str
    subject: str
    reference: str
    relation: str = "times"
    promise: float | None = None
    limit: float | None = None
    generosity: float = GENEROSITY

    @property
    def phase(self) -> str:
        """Give the phase that measures it."""
        return PHASE_OF[self.subject.split("/")[0].split("_")[0]]

    def values(self, samples: Samples) -> list[float]:
        """Give the relation in each round."""
        ours, theirs = samples[self.subject], samples[self.reference]
        both = sorted(ours.keys() & theirs.keys())
        return [self._relate(ours[n], theirs[n]) for n in both]

    def best(self, samples: Samples) -> float:
        """Give the relation of the best rounds: what is above is other people's work."""
        best: Callable[[Iterable[float]], float] = max if self.relation == "rate" else min
        return self._relate(
            best(samples[self.subject].values()), best(samples[self.reference].values())
        )

    def _relate(self, ours: float, theirs: float) -> float:
        return ours - theirs if self.relation == "more" else ours / theirs

    def kept(self, value: float, ours: float, generosity: float = 1.0) -> bool | None:
        """Tell whether the promise is kept, or None where there is none."""
        if self.limit is not None:
            return ours <= self.limit * generosity
        if self.promise is None:
            return None
        if self.relation == "rate":
            return value >= self.promise / generosity
        return value <= self.promise * generosity


class Summary(NamedTuple):
    """The middle of some numbers, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, numbers: list[float]) -> Summary:
        """Sum up at least one number."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, _middle, high = quantiles(numbers, n=4, method="inclusive")
        return cls(low, median(numbers), high)

    @property
    def noisy(self) -> bool:
        """Whether the quartiles are so far apart that the median means little."""
        return self.high > NOISY * self.low


PHASE_OF = {
    "pinned": "pinned",
    "unpinned": "unpinned",
    "callers": "callers",
    "spinning": "spinning",
    "ints": "payloads",
    "floats": "payloads",
    "maps": "payloads",
    "document": "payloads",
    "datetimes": "payloads",
    "dates": "payloads",
    "binary": "binaries",
    "stream": "streams",
    "prints": "streams",
    "array": "arrays",
    "table": "arrays",
    "scalars": "arrays",
    "records": "arrays",
    "start": "start",
    "memory": "memory",
    "jobs": "jobs",
}

LATENCY = "One request at a time, everything on one core (median of each round)"
FLOOR = "The references themselves, on one core"
UNPINNED = "One request at a time, wherever the scheduler puts it, fresh processes each round"
CALLERS = "Many callers of one Python, calls a second, fresh processes each round"
CPU = "Processor time of the Python process for each request"
PAYLOADS = "Structured values, there and back"
BINARIES = "One binary, there and back"
STREAMS = "Streams and output, for each item"
ARRAYS = "Arrays and tables, one way"
START = "From nothing to the first answer"
MEMORY = "Resident memory of the Python process"
LARGE = "Memory for one large array"
JOBS = "Work that takes its time"

ROUTED = "pinned/routed_python"
BINARY_SIZES = {1 << 10: "1 KiB", 1 << 16: "64 KiB", MIB: "1 MiB", 16 * MIB: "16 MiB"}
LARGEST = 100 * MIB
CALLER_COUNTS = (1, 8, 64, 256)
PAYLOAD_NAMES = {
    "ints": "100,000 ints",
    "floats": "100,000 floats",
    "maps": "10,000 maps",
    "document": "1 MiB document",
    "datetimes": "100,000 datetimes",
    "dates": "100,000 dates",
}


def _callers() -> list[Figure]:
    return [
        Figure(
            CALLERS,
            f"{count} caller{'s' if count > 1 else ''}: eval",
            f"callers_{count}/eval",
            f"callers_{count}/routed_python",
            "rate",
            promise=0.45 if count == 64 else None,
        )
        for count in CALLER_COUNTS
    ]


def _payloads() -> list[Figure]:
    figures = []
    for name, title in PAYLOAD_NAMES.items():
        figures += [
            Figure(PAYLOADS, title, f"{name}/eval", f"{name}/codec_and_echo", promise=2.0),
            Figure(PAYLOADS, f"{title}: tuned", f"{name}/eval", f"{name}/codec_and_tuned_echo"),
            Figure(PAYLOADS, f"{title}: no port", f"{name}/eval", f"{name}/codec"),
        ]
    return figures


def _binaries() -> list[Figure]:
    figures = []
    for size, title in {**BINARY_SIZES, LARGEST: "100 MiB"}.items():
        name = f"binary_{size}"
        promise = 1.2 if size == LARGEST else None
        figures += [
            Figure(BINARIES, title, f"{name}/eval", f"{name}/echo_python_tuned", promise=promise),
            Figure(BINARIES, f"{title}: untuned", f"{name}/eval", f"{name}/echo_python"),
            Figure(BINARIES, f"{title}: tuned C", f"{name}/eval", f"{name}/echo_c_tuned"),
        ]
    return figures


FIGURES = [
    Figure(LATENCY, "eval `1 + 1`", "pinned/eval", ROUTED, promise=1.5),
    Figure(LATENCY, "call `math:sqrt`", "pinned/call", ROUTED, promise=1.5),
    Figure(LATENCY, "eval `x * y`, two globals", "pinned/globals", ROUTED),
    Figure(LATENCY, "eval `x` in a session", "pinned/session", ROUTED, promise=1.5),
    Figure(
        LATENCY,
        "eval with one call back, to eval",
        "pinned/callback",
        "pinned/eval",
        promise=4.5,
    ),
    Figure(FLOOR, "C echo, direct", "pinned/echo_c", ROUTED),
    Figure(FLOOR, "C echo, through a GenServer", "pinned/routed_c", ROUTED),
    Figure(FLOOR, "Python echo, direct", "pinned/echo_python", ROUTED),
    Figure(FLOOR, "tuned Python echo, direct", "pinned/echo_tuned", ROUTED),
    Figure(UNPINNED, "eval `1 + 1`", "unpinned/eval", "unpinned/routed_python"),
    Figure(UNPINNED, "call `math:sqrt`", "unpinned/call", "unpinned/routed_python"),
    Figure(UNPINNED, "one call back, to eval", "unpinned/callback", "unpinned/eval"),
    Figure(UNPINNED, "C echo", "unpinned/routed_c", "unpinned/routed_python"),
    *_callers(),
    Figure(
        CALLERS, "64 callers: C echo", "callers_64/routed_c", "callers_64/routed_python", "rate"
    ),
    Figure(CPU, "eval `1 + 1`", "pinned/eval.cpu", "pinned/routed_python.cpu"),
    Figure(CPU, "eval, 64 callers", "callers_64/eval.cpu", "callers_64/routed_python.cpu"),
    *_payloads(),
    *_binaries(),
    Figure(STREAMS, "item of a stream", "stream/items", "stream/flood", limit=3_000),
    Figure(STREAMS, "`print(i)`", "prints/eval", "prints/flood"),
    Figure(ARRAYS, "1,000,000 float64 to Elixir", "array/out", "array/binary_out", promise=1.3),
    Figure(ARRAYS, "1,000,000 float64 to Python", "array/in", "array/binary_in", promise=1.2),
    Figure(
        ARRAYS,
        "100,000 rows of pandas, 5 columns, to Arrow",
        "table/stream",
        "table/pyarrow",
        promise=1.2,
    ),
    Figure(
        ARRAYS,
        "the same, to Elixir",
        "table/out",
        "table/pyarrow_out",
        promise=1.2,
    ),
    Figure(
        ARRAYS, "1,000,000 numpy floats in a list", "scalars/list", "scalars/tolist", promise=3.0
    ),
    Figure(
        ARRAYS, "100,000 rows of pandas as maps", "records/encoded", "records/made", promise=1.5
    ),
    Figure(
        LARGE,
        "Python's peak, 381 MiB of float64 sent",
        "array/python_peak",
        "array/python_before",
        "more",
        promise=4 * MIB,
    ),
    Figure(
        LARGE,
        "BEAM, 381 MiB of float64 received",
        "array/beam_after",
        "array/beam_before",
        "more",
        promise=400 * MIB,
    ),
    Figure(START, "first answer", "start/server", "start/python", "more", 30e6),
    Figure(START, "with numpy", "start/server_numpy", "start/python_numpy", "more"),
    Figure(MEMORY, "idle", "memory/server", "memory/python", "more", 12 * MIB),
    Figure(
        MEMORY,
        "after 100 MiB there and back",
        "memory/server_after_large",
        "memory/echo_after_large",
        "more",
    ),
    Figure(JOBS, "two jobs on one Python", "jobs/two_on_one", "jobs/one"),
    Figure(JOBS, "two jobs on two Pythons", "jobs/two_on_two", "jobs/one"),
    Figure(JOBS, "eval in a pool of two, one busy", "jobs/short_beside", "jobs/short_alone"),
    Figure(
        JOBS,
        "eval beside a spinning Python thread",
        "spinning/eval",
        "spinning/eval_alone",
        limit=500_000,
    ),
]

# The names of references in the table.
REFERENCE_NAMES = {
    "routed_python": "Python echo, GenServer",
    "codec_and_echo": "BEAM codec + echo",
    "codec_and_tuned_echo": "BEAM codec + tuned echo",
    "codec": "BEAM codec alone",
    "echo_python_tuned": "tuned Python echo",
    "echo_python": "Python echo",
    "echo_c_tuned": "tuned C echo",
    "flood": "bare port, a write each",
    "binary_out": "binary of that size",
    "binary_in": "binary of that size",
    "pyarrow": "pyarrow alone",
    "tolist": "`array.tolist()`",
    "made": "`to_dict` alone",
    "pyarrow_out": "pyarrow, sent as a binary",
    "python_before": "before",
    "beam_before": "before",
    "python": "`python -c pass`",
    "python_numpy": "`import numpy`",
    "echo_after_large": "tuned Python echo",
    "one": "one job",
    "short_alone": "no other request",
    "eval_alone": "no such thread",
    "eval": "eval `1 + 1`",
}
