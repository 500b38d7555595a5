"""The window for signals, without signals: what is raised, what is kept, what is logged."""

import sys

import pytest

from port_server.server import window as window_module
from port_server.server.window import DESCRIBING, INSIDE, OPEN, OUTSIDE, SPARED, Guarded, Window


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
    scope = {"__name__": module, "code": code}
    exec("def function():\n    return code()", scope)
    return scope["function"]()


OURS = window_module.Window.take.__code__.co_filename
_ours = {}
exec(compile("def ours(code): return code()", OURS, "exec"), _ours)
ours = _ours["ours"]


@pytest.fixture
def window():
    found = Window(pytest.fail)
    found.know(borders=(border,))
    return found


def here(window):
    return lambda: window.place(sys._getframe(1))


def test_user_code_is_what_stands_above_a_border(window):
    """However deep it is."""
    assert border(here(window)) is OPEN
    assert border(lambda: library(here(window), "json")) is OPEN


def test_our_code_above_a_border_is_inside(window):
    """A print that is writing a frame, whatever it has called."""
    assert border(lambda: ours(here(window))) is INSIDE
    assert border(lambda: ours(lambda: library(here(window), "json"))) is INSIDE


def test_without_a_border_it_is_outside(window):
    """The loop, between two requests."""
    assert here(window)() is OUTSIDE
    assert ours(here(window)) is OUTSIDE


def test_a_request_on_top_of_another_is_judged_by_itself(window):
    """What waits below is ours; what runs on top of it is user code."""
    assert border(lambda: ours(lambda: border(here(window)))) is OPEN


@pytest.mark.parametrize("module", ["logging", "logging.handlers", "threading"])
def test_what_has_locks_that_leak_is_told_apart(window, module):
    """Their locks are taken in Python code, where a signal may come in between."""
    assert border(lambda: library(here(window), module)) is SPARED
    assert border(lambda: library(lambda: library(here(window), "json"), module)) is SPARED
    assert border(lambda: library(lambda: ours(here(window)), module)) is INSIDE


def test_describing_what_was_cut_short_is_told_apart(window):
    """Else the next try would cost the traceback."""
    window.know(borders=(border,), describing=(describe,))
    assert border(lambda: describe(here(window))) is DESCRIBING
    assert border(lambda: describe(lambda: library(here(window), "threading"))) is DESCRIBING
    assert border(lambda: describe(lambda: ours(here(window)))) is INSIDE


def test_a_handler_raises_in_user_code(window):
    """Code that runs is interrupted as its author meant."""
    with pytest.raises(RingError):
        border(lambda: Guarded(window, ring)(1, sys._getframe()))


def test_outside_it_is_reported():
    """The server's own code is never cut short."""
    reported = []
    Guarded(Window(reported.append), ring)(1, sys._getframe())
    assert [type(error) for error in reported] == [RingError]


def test_in_our_code_it_is_kept_until_that_is_left(window):
    """A print that is writing a frame ends first, then the exception comes."""
    passed = []

    def printing():
        Guarded(window, ring)(1, sys._getframe())
        passed.append("written")
        assert window.alert
        window.deliver()
        passed.append("not left yet")

    with pytest.raises(RingError):
        border(lambda: (ours(printing), window.deliver()))
    assert passed == ["written", "not left yet"]


def test_what_was_kept_never_meets_another_request(window):
    """With the last request that it could be raised in it is reported."""
    reported = []
    window = Window(reported.append)
    window.know(borders=(border,))
    border(lambda: ours(lambda: Guarded(window, ring)(1, sys._getframe())))
    window.settle(alone=False)
    assert window.alert
    window.settle(alone=True)
    assert not window.alert
    assert [type(error) for error in reported] == [RingError]
    border(window.deliver)


def test_a_report_that_fails_costs_nothing():
    """It is there to prevent what it would do."""
    Guarded(Window(ring), ring)(1, sys._getframe())
