"""The profile of a request: what it follows is there, and its spans add up."""

import builtins
import importlib
import sys

import pytest
from batches import cpu_of_batches
from breakdown import MARKS, READ, STEP, STEPS, WRITE, Call, by_size, middle, own_times, spans_of

CLOCK_NS, INNER_NS = 10, 20


@pytest.mark.parametrize("where", [where for where, _label, _caller in STEPS])
def test_every_step_is_there(where):
    """A function that the profile follows exists: whoever renames one says so there."""
    module, path = where.split(":")
    owner = importlib.import_module(module)
    for name in path.split("."):
        owner = getattr(owner, name, None) or getattr(builtins, name)
    assert callable(owner)


def test_callers_stand_before_their_steps():
    """A step names the step that calls it, or none, which is the loop."""
    known = {""}
    for where, _label, caller in STEPS:
        assert caller in known
        known.add(where.split(":")[1])


def request():
    """Give the marks of a request, 100 ns apart, and what Python did between two of them."""
    marks = {mark: 1000 + 100 * n for n, mark in enumerate(MARKS)}
    command, answer = marks["command"], marks["answer"] + 5000
    marks |= {"answer": answer, "demonitor": answer + 100, "decode": answer + 200}
    calls = [
        Call(0, command + 500, READ),
        Call(command + 1000, command + 2000, STEP),
        Call(command + 2500, command + 2700, WRITE),
        Call(command + 3000, answer + 9000, READ),
    ]
    return marks, calls


def test_spans_add_up_to_the_whole():
    """Nothing of a request is counted twice or left out; what the clocks took stands apart."""
    marks, calls = request()
    (spans,) = spans_of([marks], calls, INNER_NS, CLOCK_NS)
    parts = sum(ns for name, ns in spans.items() if name not in {"total", "step"})
    assert parts == pytest.approx(spans["total"])
    assert spans["python"] == 2500 - 500 - INNER_NS
    assert spans["step"] == 1000 - INNER_NS
    assert spans["tail"] == 300 - INNER_NS / 2


def test_a_request_that_cannot_be_followed_is_left_out():
    """With two writes in it, nobody can say which was the reply."""
    marks, calls = request()
    calls.append(Call(calls[2].began + 300, calls[2].ended + 300, WRITE))
    assert spans_of([marks], sorted(calls), INNER_NS, CLOCK_NS) == []


def test_steps_lose_what_their_own_steps_took():
    """What a function itself takes is what is left of it; all of them make up Python's part."""
    inclusive = {label: 100.0 * (len(STEPS) - n) for n, (_w, label, _c) in enumerate(STEPS)}
    own = own_times(inclusive, 1000.0)
    assert sum(own.values()) == pytest.approx(1000.0)


def test_requests_in_the_middle_count():
    """The slowest and the fastest say nothing of the usual request."""
    requests = [{"total": float(n), "x": float(n)} for n in (1, 2, 3, 4, 500)]
    assert middle(requests)["total"] == 3.0
    assert by_size({"a": 1.0, "b": 2.0}) == [("b", 2.0), ("a", 1.0)]


def test_requests_that_come_together_are_all_answered():
    """Batches of every size are measured against a real server."""
    spent = cpu_of_batches(sys.executable, 1, 64)
    assert list(spent) == [1, 2, 8, 64]
    assert all(ns > 0 for ns in spent.values())
