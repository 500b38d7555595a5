"""The window for signal handlers, without signals: what is kept, what is logged, what is raised."""

import pytest

from port_server.server.window import Guarded, Window


class RingError(Exception):
    pass


def ring(*_):
    raise RingError


def test_a_handler_raises_while_the_window_is_open():
    """Code that runs is interrupted as its author meant."""
    window = Window(pytest.fail)
    window.open = True
    with pytest.raises(RingError):
        Guarded(window, ring)(1, None)


def test_outside_it_is_reported():
    """The server's own code is never cut short."""
    reported = []
    Guarded(Window(reported.append), ring)(1, None)
    assert [type(error) for error in reported] == [RingError]


def test_in_a_moment_of_closure_it_is_kept_until_the_window_is_open_again():
    """A print that is writing a frame ends first, then the exception comes."""
    window = Window(pytest.fail)
    window.open = True
    was_open = window.close_for_a_moment()
    Guarded(window, ring)(1, None)
    with pytest.raises(RingError):
        window.reopen(was_open)
    assert window.open


def test_a_moment_of_closure_outside_of_user_code_leaves_it_closed():
    """Output of a dropped namespace is written with the window shut."""
    window = Window(lambda _error: None)
    window.reopen(window.close_for_a_moment())
    assert not window.open
