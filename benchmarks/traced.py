"""A server that leaves marks: its build of plain.c, and the file in which the marks are.

    python benchmarks/traced.py FOLDER

builds it for the Python that runs this. What a mark is stands in trace/trace.h.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

TRACE = Path(__file__).resolve().parent / "trace"
ROOT = TRACE.parent.parent
PLAIN = "port_server.server._plain"
MARK = struct.Struct("8sq")
COST_MARKS = 1000
# Used over and over; more than are made while a profile is taken.
RING_MARKS = 100_000


class Mark(NamedTuple):
    """The end of a step, in ns of CLOCK_MONOTONIC."""

    ns: int
    step: str


# --- the build -----------------------------------------------------------------------------------


def extension_of_setup(name: str) -> SimpleNamespace:
    """Give what setup.py says about an extension, without setuptools."""
    found = {}

    def setup(*, ext_modules, **_others):
        found.update({extension.name: extension for extension in ext_modules})

    def extension(name, sources, **settings):
        return SimpleNamespace(name=name, sources=sources, **settings)

    stand_in = ModuleType("setuptools")
    stand_in.Extension, stand_in.setup = extension, setup
    before = sys.modules.get("setuptools")
    sys.modules["setuptools"] = stand_in
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        del sys.modules["setuptools"]
        if before is not None:
            sys.modules["setuptools"] = before
    return found[name]


def compiler() -> list[str]:
    """Give how the extension is compiled, up to its source; stop where nothing can."""
    said = extension_of_setup(PLAIN)
    cc, cflags, shared = sysconfig.get_config_vars("CC", "CFLAGS", "CCSHARED")
    words = shlex.split(os.environ.get("CC") or cc)
    if not shutil.which(words[0]):
        sys.exit("A traced server needs a C compiler (Debian: apt-get install gcc libc6-dev)")
    return [
        *words,
        *shlex.split(f"{cflags} {shared}"),
        *(f"-D{macro}={value}" for macro, value in said.define_macros),
        f"-I{sysconfig.get_path('include')}",
        *said.extra_compile_args,
    ]


def build(folder: Path) -> None:
    """Build the plain.c that leaves marks into a folder, for $PYTHONPATH."""
    (source,) = extension_of_setup(PLAIN).sources
    folder.mkdir(parents=True, exist_ok=True)
    marks = ["-DPLAIN_TRACE", f"-I{TRACE}"]
    command = [*compiler(), *marks, "-shared", "-o", str(folder / "_plain.so"), str(ROOT / source)]
    if subprocess.run(command, check=False).returncode:
        sys.exit("The traced server did not build; what the compiler said stands above")


# --- the marks -----------------------------------------------------------------------------------


def environment(folder: Path, ring: Path) -> dict[str, str]:
    """Give the variables with which a server runs what was built there."""
    return {"PYTHONPATH": f"{TRACE}{os.pathsep}{folder}", "PYPORT_TRACE": str(ring)}


def make_ring(path: Path, marks: int = RING_MARKS) -> None:
    """Make the file, with room for the last so many marks."""
    path.write_bytes(bytes(MARK.size * (COST_MARKS + marks)))


def read_ring(path: Path) -> tuple[list[Mark], float]:
    """Give the marks in their order, and what one costs in ns."""
    marks = [
        Mark(ns, step.rstrip(b"\0").decode()) for step, ns in MARK.iter_unpack(path.read_bytes())
    ]
    costs = [later.ns - mark.ns for mark, later in pairwise(marks[:COST_MARKS])]
    return sorted(mark for mark in marks[COST_MARKS:] if mark.ns), float(median(costs))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
