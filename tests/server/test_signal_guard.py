"""The signal guard, without signals: what is raised, what is kept, what is logged."""

import importlib
import sys
import types

import pytest

from port_server.server import signal_guard
from port_server.server.cancel import Cancels
from port_server.server.main_thread import MainThread
from port_server.server.signal_guard import (
    DESCRIBING,
    INSIDE,
    OPEN,
    OUTSIDE,
    SPARED,
    Guarded,
    SignalGuard,
)
from port_server.settings import Settings


class RingError(Exception):
    pass


def ring(*_):
    raise RingError


def border(code):
    """Run user code, as `Evaluator.evaluate` does."""
    return code()


def describe(code):
    """Run code as `describe_cancelled` does."""
    return code()


def library(code, module):
    """Run code below a function of that module."""
    scope = {"code": code}
    file = importlib.import_module(module).__file__
    exec(compile("def function():\n    return code()", file, "exec"), scope)
    return scope["function"]()


OURS = signal_guard.__file__
_ours = {}
exec(compile("def ours(code): return code()", OURS, "exec"), _ours)
ours = _ours["ours"]


@pytest.fixture
def guard():
    return SignalGuard(
        borders=(border,),
        open=(),
        open_files=(),
        open_modules=(),
        through_modules=(),
        describing=(describe,),
    )


@pytest.fixture
def reported():
    return []


@pytest.fixture
def cancels(guard, reported):
    return Cancels(guard, MainThread(), None, Settings(), reported.append)


def here(guard):
    return lambda: guard.place(sys._getframe(1))


def test_user_code_is_what_stands_above_a_border(guard):
    """However deep it is."""
    assert border(here(guard)) == OPEN
    assert border(lambda: library(here(guard), "json")) == OPEN


def test_our_code_above_a_border_is_inside(guard):
    """A print that is writing a frame, whatever it has called."""
    assert border(lambda: ours(here(guard))) == INSIDE
    assert border(lambda: ours(lambda: library(here(guard), "json"))) == INSIDE


def test_without_a_border_it_is_outside(guard):
    """The loop, between two requests."""
    assert here(guard)() == OUTSIDE
    assert ours(here(guard)) == OUTSIDE


def test_a_request_on_top_of_another_is_judged_by_itself(guard):
    """What waits below is ours; what runs on top of it is user code."""
    assert border(lambda: ours(lambda: border(here(guard)))) == OPEN


@pytest.mark.parametrize("module", ["logging", "logging.handlers", "threading"])
def test_what_has_locks_that_leak_is_told_apart(guard, module):
    """Their locks are taken in Python code, where a signal may come in between."""
    assert border(lambda: library(here(guard), module)) == SPARED
    assert border(lambda: library(lambda: library(here(guard), "json"), module)) == SPARED
    assert border(lambda: library(lambda: ours(here(guard)), module)) == INSIDE


def test_describing_what_was_cut_short_is_told_apart(guard):
    """Else the next try would cost the traceback."""
    assert border(lambda: describe(here(guard))) == DESCRIBING
    assert border(lambda: describe(lambda: library(here(guard), "threading"))) == DESCRIBING
    assert border(lambda: describe(lambda: ours(here(guard)))) == INSIDE


def test_a_handler_raises_in_user_code(guard):
    """Code that runs is interrupted as its author meant."""
    with pytest.raises(RingError):
        border(lambda: Guarded(guard, pytest.fail, ring)(1, sys._getframe()))


def test_outside_it_is_reported(guard, cancels, reported):
    """The server's own code is never cut short."""
    Guarded(guard, cancels.take, ring)(1, sys._getframe())
    assert [type(error) for error in reported] == [RingError]


def test_in_our_code_it_is_kept_until_that_is_left(guard, cancels):
    """A print that is writing a frame ends first, then the exception comes."""
    passed = []

    def printing():
        Guarded(guard, cancels.take, ring)(1, sys._getframe())
        passed.append("written")
        assert cancels.alert
        cancels.deliver()
        passed.append("not left yet")

    with pytest.raises(RingError):
        border(lambda: (ours(printing), cancels.deliver()))
    assert passed == ["written", "not left yet"]


def test_what_was_kept_never_meets_another_request(guard, cancels, reported):
    """With the last request that it could be raised in it is reported."""
    request = types.SimpleNamespace(cancelled=False)
    stack = cancels._main.stack
    stack[:] = [request, None, request]
    border(lambda: ours(lambda: Guarded(guard, cancels.take, ring)(1, sys._getframe())))
    cancels.settle(request, ended=True)
    assert cancels.alert
    stack[:] = [request]
    cancels.settle(request, ended=True)
    assert not cancels.alert
    assert [type(error) for error in reported] == [RingError]
    border(cancels.deliver)


def test_a_report_that_fails_costs_nothing(guard):
    """It is there to prevent what it would do."""
    cancels = Cancels(guard, MainThread(), None, Settings(), ring)
    Guarded(guard, cancels.take, ring)(1, sys._getframe())
