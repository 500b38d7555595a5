"""Times a step of requests inside of a real server; Python itself imports it from $PYTHONPATH.

With $PYPORT_TRACE set, reads and writes are wrapped before the server is made, and so is the
function $PYPORT_TRACE_STEP, `module:name`; at its end every call of them is written to
$PYPORT_TRACE: `label<TAB>began<TAB>ended`, in ns of CLOCK_MONOTONIC, which the BEAM reads as well.
One step in each server, because what wraps a step costs as much as a small step does, and would be
counted to the one around it.
"""

import atexit
import builtins
import importlib
import os
import sys
from array import array
from time import perf_counter_ns

# Written over and over, so that following a request does not push it out of the cache.
MOST_CALLS = 200_000
COLUMNS = 3
calls = array("q", bytes(8 * COLUMNS * MOST_CALLS))
at = [0]


class Proxy:
    """A module of which a function is replaced for one other module."""

    def __init__(self, module):
        self.__dict__.update(module.__dict__)


def traced(function, label, now=perf_counter_ns, calls=calls, at=at):
    def wrapper(*args, **kwargs):
        began = now()
        try:
            return function(*args, **kwargs)
        finally:
            ended = now()
            row = at[0]
            calls[row] = label
            calls[row + 1] = began
            calls[row + 2] = ended
            at[0] = (row + COLUMNS) % (COLUMNS * MOST_CALLS)

    return wrapper


def wrap(where, label):
    module_name, path = where.split(":")
    owner = importlib.import_module(module_name)
    *holders, name = path.split(".")
    for holder in holders:
        inner = getattr(owner, holder)
        if type(inner) is type(sys):
            inner = Proxy(inner)
            setattr(owner, holder, inner)
        owner = inner
    function = getattr(owner, name, None) or getattr(builtins, name)
    setattr(owner, name, traced(function, label))


def inner_cost():
    """Give what a wrapper adds to the time of what it wraps, in ns."""
    empty = traced(lambda *_args: None, 0)
    for _ in range(4000):
        empty(1)
    spans = [calls[row + 2] - calls[row + 1] for row in range(0, 4000 * COLUMNS, COLUMNS)]
    return sorted(spans)[2000]


def write_down(path, inner):
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123  pathlib is slow to load
        file.write(f"#inner\t{inner}\t0\n")
        for row in range(0, len(calls), COLUMNS):
            if calls[row]:
                file.write("\t".join(map(str, calls[row : row + COLUMNS])) + "\n")


def install(path, step):
    inner = inner_cost()
    calls[:] = array("q", bytes(8 * len(calls)))
    at[0] = 0
    wrap("port_server.server.channel:os.read", 1)
    owner = sys.modules["port_server.server.channel"]
    owner.os.write = traced(owner.os.write, 2)
    if step:
        wrap(step, 3)
    atexit.register(write_down, path, inner)


if "PYPORT_TRACE" in os.environ:
    install(os.environ["PYPORT_TRACE"], os.environ.get("PYPORT_TRACE_STEP", ""))
