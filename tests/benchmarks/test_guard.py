"""What the guard makes of numbers: red for a regression that matters, not for noise."""

import pytest
from bench import GUARD, as_elixir, broken, settings
from figures import FIGURES, PHASE_OF, Figure, Summary
from report import table

TIMES = Figure("section", "what", "pinned/eval", "pinned/routed_python", promise=1.25)
RATE = Figure("section", "what", "callers_64/eval", "callers_64/routed_python", "rate", 1.0)
MORE = Figure("section", "what", "start/server", "start/python", "more", 30.0)
LIMIT = Figure("section", "what", "stream/items", "stream/flood", limit=3000)


def run(figure, ours, theirs):
    """Give the samples of a run with these numbers."""
    return {
        name: dict(enumerate(numbers, 1))
        for name, numbers in ((figure.subject, ours), (figure.reference, theirs))
    }


@pytest.mark.parametrize(
    ("figure", "ours", "theirs", "red"),
    [
        (TIMES, [12, 12, 12], [10, 10, 10], False),
        (TIMES, [26, 26, 26], [10, 10, 10], True),
        (RATE, [100, 100], [150, 150], False),
        (RATE, [40, 40], [100, 100], True),
        (MORE, [90, 90], [40, 40], False),
        (MORE, [110, 110], [40, 40], True),
        (LIMIT, [5000], [1], False),
        (LIMIT, [7000], [1], True),
    ],
)
def test_red_is_twice_the_promise(figure, ours, theirs, red):
    """Between the promise and twice the promise the guard stays green."""
    assert broken(figure, run(figure, ours, theirs)) is red


def test_rounds_that_others_have_spoilt_do_not_count():
    """One good round of each is enough, whatever the others were like."""
    assert not broken(TIMES, run(TIMES, [12, 90, 80], [10, 10, 10]))


def test_a_lucky_reference_is_no_regression():
    """A reference that was fast once is no reason while the rounds say otherwise."""
    assert not broken(TIMES, run(TIMES, [20, 20, 20], [10, 10, 3]))


def test_every_promise_is_guarded():
    """A figure with a promise is measured by a phase of the guard."""
    for figure in FIGURES:
        if figure.promise is not None or figure.limit is not None:
            assert figure.phase in GUARD


def test_every_phase_is_in_the_plan():
    """Every figure belongs to a phase that a full run measures."""
    plan = settings(short=False, numpy=True)
    assert set(PHASE_OF.values()) == set(plan)
    assert {figure.phase for figure in FIGURES} == set(plan)


def test_the_table_tells_what_was_missed_and_what_was_noisy():
    """A broken promise and a restless reference can be seen in the table."""
    figure = next(figure for figure in FIGURES if figure.promise == 1.5)
    text = table(run(figure, [25, 25, 25], [10, 14, 18]), {"system": "a machine"})
    assert "**missed**" in text
    assert "~14 ns" in text
    assert "* system: a machine" in text


def test_quartiles_of_one_number():
    """A run of one round has a table as well."""
    assert Summary.of([3.0]) == (3.0, 3.0, 3.0)


def test_settings_as_elixir():
    """Settings reach the BEAM as Elixir source."""
    assert as_elixir({"a": 1, "b": None, "c": [True, "x"]}) == '%{a: 1, b: nil, c: [true, "x"]}'
