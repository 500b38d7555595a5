"""PyPort against bare ports and against the BEAM's own codec: one run, a table and a JSON file.

    python benchmarks/bench.py [--short] [--only pinned,start] [--json FILE] [--guard]

Each phase is a BEAM of its own (benchmarks/beam), pinned to one core or not, in which everything
that is compared takes turns round by round. --guard measures little, looks at the best rounds only,
and exits with 1 if a promise is broken twice over; it measures again before it says so, for as long
as the machine is restless.

$PYPORT_PYTHON is the Python that is measured; it needs port_server, and numpy, pandas and
pyarrow for some figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import (
    BINARY_SIZES,
    CALLER_COUNTS,
    FIGURES,
    LARGEST,
    Figure,
    Samples,
    Summary,
)
from report import as_json, measured, show, table

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent / "elixir_client"
PYTHON = os.environ.get("PYPORT_PYTHON", sys.executable)
PHASES = (
    "pinned",
    "unpinned",
    "callers",
    "spinning",
    "payloads",
    "binaries",
    "streams",
    "arrays",
    "start",
    "memory",
    "jobs",
)
# Of the guard: the promises, each with the least that tells.
GUARD = {
    "pinned": {
        "rounds": 12,
        "requests": 600,
        "only": [
            f"pinned/{name}" for name in ("eval", "call", "session", "routed_python", "callback")
        ],
    },
    "callers": {"rounds": 4, "callers": [64], "calls": 10_000},
    "spinning": {"rounds": 3, "requests": 400},
    "payloads": {"rounds": 4},
    "binaries": {"rounds": 4, "sizes": [LARGEST]},
    "streams": {"rounds": 4, "items": 50_000, "prints": 100},
    "arrays": {"rounds": 4},
    "start": {"rounds": 5, "numpy": False},
    "memory": {"rounds": 1, "large": False},
}
# How often the guard measures what looks broken, before it believes it: on a quiet machine, else.
QUIET_TRIES = 2
TRIES = 5
# And for how long: a machine that is restless for longer has had its say.
PATIENCE_S = 180


def settings(*, short: bool, numpy: bool) -> dict[str, dict[str, Any]]:
    """Give what each phase does, and how often."""
    few = 4 if short else 1
    sizes = [*BINARY_SIZES, LARGEST]
    return {
        "pinned": {"rounds": 32 // few, "requests": 2000 // few, "only": None},
        "unpinned": {"rounds": 16 // few, "requests": 1500 // few},
        "callers": {"rounds": 12 // few, "callers": list(CALLER_COUNTS), "calls": 20_000 // few},
        "spinning": {"rounds": 12 // few, "requests": 1000},
        "payloads": {"rounds": 20 // few},
        "binaries": {"rounds": 12 // few, "sizes": sizes},
        "streams": {"rounds": 12 // few, "items": 100_000 // few, "prints": 1000},
        "arrays": {"rounds": 12 // few},
        "start": {"rounds": 12 // few, "numpy": numpy},
        "memory": {"rounds": 8 // few, "large": True},
        "jobs": {"rounds": 12 // few, "requests": 1000 // few},
    }


def as_elixir(value: Any) -> str:
    """Write a value of the settings as Elixir source."""
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case dict():
            return "%{" + ", ".join(f"{key}: {as_elixir(v)}" for key, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(as_elixir, value)) + "]"
        case str():
            return json.dumps(value)
    return str(value)


class Bench:
    """A run: what it needs, and the samples that it has so far."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "samples.tsv"
        self.samples: Samples = {}
        self.env = os.environ | {
            "MIX_ENV": "prod",
            "PYPORT_PYTHON": PYTHON,
            "BENCH_ECHO": str(folder / "echo"),
        }
        # Installed packages are compiled once; without this every start would compile them again.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        if not shutil.which("cc"):
            sys.exit("The C echo port needs a C compiler (Debian: apt-get install gcc libc6-dev)")
        compiler = ["cc", "-O2", "-o", self.env["BENCH_ECHO"], str(HERE / "reference/echo.c")]
        subprocess.run(compiler, check=True)
        subprocess.run(
            ["mix", "compile"], cwd=CLIENT, env=self.env, check=True, stdout=subprocess.DEVNULL
        )

    def beam(self, phase: str, how: dict[str, Any], *, one_core: bool = False) -> list[str]:
        """Have a BEAM measure a phase; give the lines it wrote."""
        self.out.unlink(missing_ok=True)
        pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if one_core else []
        script = [str(HERE / "beam/main.exs"), str(self.out), phase, as_elixir(how)]
        subprocess.run(
            [*pinned, "mix", "run", "--no-start", "--no-compile", *script],
            cwd=CLIENT,
            env=self.env,
            check=True,
        )
        return self.out.read_text().splitlines()

    def measure(self, phase: str, how: dict[str, Any]) -> None:
        """Measure a phase; its samples are added to the earlier ones."""
        began = time.monotonic()
        lines = self.beam(phase, how, one_core=phase == "pinned")
        for line in lines:
            name, _round, number = line.split("\t")
            rounds = self.samples.setdefault(name, {})
            rounds[len(rounds) + 1] = float(number)
        print(
            f"{phase}: {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
        )

    def machine(self) -> dict[str, Any]:
        """Tell where and with what this runs."""
        beam = dict(line.split("\t") for line in self.beam("versions", {}))
        ask = (
            "import platform; from port_server import etf; print(platform.python_implementation(), "
        )
        ask += "platform.python_version(), etf.codec_name, sep='\\t')"
        python = subprocess.run(
            [PYTHON, "-c", ask], check=True, capture_output=True, text=True, cwd="/"
        )
        implementation, version, codec = python.stdout.strip().split("\t")
        return {
            "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
            "system": f"Linux {platform.release()}, {' '.join(platform.libc_ver())}",
            "Erlang/OTP": f"{beam['otp']} (erts {beam['erts']}, {beam['jit']})",
            "Elixir": beam["elixir"],
            "Python": f"{implementation} {version}, codec: {codec}",
            "PyPort": _revision(),
        }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _revision() -> str:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() or "not in a repository"


def has(modules: str) -> bool:
    """Tell whether the Python that is measured has these modules."""
    look = [PYTHON, "-c", f"import {modules}"]
    return subprocess.run(look, stderr=subprocess.DEVNULL, check=False).returncode == 0


def possible(only: str | None, phases: Iterable[str]) -> list[str]:
    """Give the phases to measure, without the one that this Python lacks the libraries for."""
    wanted = only.split(",") if only else list(phases)
    if "arrays" in wanted and not has("pandas, pyarrow"):
        print("arrays: left out, this Python has no pandas and pyarrow", file=sys.stderr)
        wanted.remove("arrays")
    return wanted


# --- the guard -----------------------------------------------------------------------------------


def broken(figure: Figure, samples: Samples) -> bool:
    """Tell whether a promise is broken twice over, by the best rounds and by the middle one.

    A regression breaks both. Noise seldom does: it hits one subject at its best, or some rounds.
    """
    ours = min(samples[figure.subject].values())
    looks = (figure.best(samples), Summary.of(figure.values(samples)).median)
    return all(figure.kept(value, ours, figure.generosity) is False for value in looks)


def guard(bench: Bench, phases: list[str]) -> int:
    """Hold the promises, twice over, against a short run; give the exit status."""
    promised = [
        figure
        for figure in FIGURES
        if figure.phase in phases and (figure.promise is not None or figure.limit is not None)
    ]
    tries = dict.fromkeys(GUARD, 0)
    due = set(phases)
    began = time.monotonic()
    while due:
        for phase in [phase for phase in GUARD if phase in due]:
            bench.measure(phase, GUARD[phase])
            tries[phase] += 1
        due = set()
        for figure in promised:
            if measured(figure, bench.samples) and broken(figure, bench.samples):
                restless = Summary.of(list(bench.samples[figure.reference].values())).noisy
                if tries[figure.phase] < (TRIES if restless else QUIET_TRIES):
                    due.add(figure.phase)
        if time.monotonic() - began > PATIENCE_S:
            break
        if due:
            print(f"once more, to be sure: {', '.join(sorted(due))}", file=sys.stderr)
    status = 0
    for figure in promised:
        value = figure.best(bench.samples)
        ours = min(bench.samples[figure.subject].values())
        bad = broken(figure, bench.samples)
        status |= bad
        if figure.limit is not None:
            said = f"{show(ours, figure)}, promised {show(figure.limit, figure)}"
        elif figure.relation == "more":
            said = f"+{show(value, figure)}, promised +{show(figure.promise or 0, figure)}"
        else:
            said = f"{value:.2f} times, promised {figure.promise:g}"
        verdict = "BROKEN" if bad else "ok" if figure.kept(value, ours) else "within twice"
        print(f"{verdict:12} {figure.section.split(',')[0]}: {figure.what}: {said}")
    return status


def main() -> int:
    """Measure, and say what came of it."""
    parser = argparse.ArgumentParser(description="PyPort against bare ports, as ratios.")
    parser.add_argument("--short", action="store_true", help="a quarter of everything")
    parser.add_argument("--only", help="phases, with commas: " + ", ".join(PHASES))
    parser.add_argument("--json", type=Path, help="where to write the samples and the figures")
    parser.add_argument("--guard", action="store_true", help="exit with 1 at twice a promise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyport-bench-") as folder:
        bench = Bench(Path(folder))
        if options.guard:
            return guard(bench, possible(options.only, list(GUARD)))
        before = os.getloadavg()[0]
        plan = settings(short=options.short, numpy=has("numpy"))
        for phase in possible(options.only, PHASES):
            bench.measure(phase, plan[phase])
        machine = bench.machine()
    machine["load"] = f"{before:.1f} before the run, {os.getloadavg()[0]:.1f} after it"
    print(table(bench.samples, machine))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(bench.samples, machine), indent=1) + "\n")
        print(f"Written to {options.json}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
