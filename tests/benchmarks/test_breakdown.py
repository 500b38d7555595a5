"""The profile of a request: a server that leaves marks, and spans that add up."""

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
from batches import cpu_of_batches, exchange, frames, serve
from breakdown import BEAM_AFTER, MARKS, PYTHON_MARKS, PYTHON_STEPS, by_size, middle, spans_of
from traced import (
    COST_MARKS,
    MARK,
    PLAIN,
    ROOT,
    TRACE,
    Mark,
    build,
    compiler,
    environment,
    extension_of_setup,
    make_ring,
    read_ring,
)

CLOCK_NS, MARK_NS = 10, 20
SOURCE = ROOT / extension_of_setup(PLAIN).sources[0]
compiled = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on the PATH")


# --- the marks -----------------------------------------------------------------------------------


def test_every_mark_is_in_the_table():
    """What the profile follows is there, once, and nothing is marked that it does not know."""
    marks = re.findall(r"\bMARK\((\w+)\);", SOURCE.read_text())
    assert sorted(marks) == sorted(PYTHON_MARKS)


@compiled
def test_a_mark_is_nothing_in_a_normal_build(tmp_path):
    """The extension is the same, byte for byte, as from a source that never had a mark."""
    bare = tmp_path / SOURCE.name
    bare.write_text(re.sub(r"\n *MARK\(\w+\);", "", SOURCE.read_text()))
    assert "MARK(" not in bare.read_text().replace("#define MARK(step)", "")
    objects = []
    for source in (SOURCE, bare):
        made = tmp_path / "made.o"
        near = f"-I{SOURCE.parent}"  # the header of the codec, by its place
        subprocess.run([*compiler(), near, "-c", "-o", made, source], check=True)
        objects.append(made.read_bytes())
    assert objects[0] == objects[1]


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    """There are no marks then, and no profile."""
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(SystemExit, match="needs a C compiler"):
        build(tmp_path)


def test_a_build_that_fails_is_no_profile(monkeypatch, tmp_path):
    """An older library does not answer in its place."""
    monkeypatch.setenv("CC", "false")
    with pytest.raises(SystemExit, match="did not build"):
        build(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


def trace(built, ring, requests):
    with serve(sys.executable, env=os.environ | environment(built, ring)) as server:
        for _ in range(requests):
            exchange(server, frames(1), 1)
    return read_ring(ring)


@compiled
def test_a_real_request_leaves_its_marks_in_order(built, tmp_path):
    """Each of them at a later time than the one before; what one costs is known as well."""
    make_ring(tmp_path / "ring")
    marks, mark_ns = trace(built, tmp_path / "ring", 3)
    steps = [mark.step for mark in marks]
    one = [*PYTHON_MARKS[-1:], *PYTHON_MARKS[:-1]]
    # The first request of a server is not plain yet, its options are not usual; after the last
    # it reads that it is to leave.
    assert steps[-2 * len(one) - 2 :] == [*one, *one, "wait", "read"]
    assert all(mark.ns < later.ns for mark, later in pairwise(marks))
    assert 0 < mark_ns < 10_000


@compiled
def test_a_ring_keeps_the_last_marks(built, tmp_path):
    """A run that takes longer than expected loses its beginning, and nothing else."""
    make_ring(tmp_path / "ring", 2 * len(PYTHON_MARKS))
    marks, _mark_ns = trace(built, tmp_path / "ring", 20)
    assert len(marks) == 2 * len(PYTHON_MARKS)
    assert (tmp_path / "ring").stat().st_size == MARK.size * (COST_MARKS + len(marks))


def test_both_sides_know_the_ring(tmp_path):
    """What the header says of the file is what is read here."""
    header = (TRACE / "trace.h").read_text()
    assert f"#define COST_MARKS {COST_MARKS}\n" in header
    assert f"#define STEP_BYTES {MARK.size - 8}\n" in header
    make_ring(tmp_path / "ring", 4)
    assert read_ring(tmp_path / "ring") == ([], 0)


# --- the spans -----------------------------------------------------------------------------------


def request():
    """Give the marks of a request on both sides, 100 ns apart; Python's stand before `answer`."""
    beam = {mark: 1000 + 100 * n for n, mark in enumerate(MARKS)}
    command, answer = beam["command"], beam["answer"] + 5000
    beam |= answered_at(answer)
    return beam, [Mark(command + 500 + 100 * n, step) for n, step in enumerate(PYTHON_MARKS)]


def answered_at(ns):
    """Give the BEAM's marks from the answer on."""
    return {mark: ns + 100 * n for n, mark in enumerate(("answer", *BEAM_AFTER))}


def test_spans_add_up_to_the_whole():
    """Nothing of a request is counted twice or left out; what the clocks took stands apart."""
    beam, marks = request()
    (spans,) = spans_of([beam], marks, MARK_NS, CLOCK_NS)
    parts = sum(ns for name, ns in spans.items() if name != "total")
    assert parts == pytest.approx(spans["total"])
    assert spans["total"] == beam[MARKS[-1]] - beam["start"]
    looks = len(MARKS) * CLOCK_NS + len(PYTHON_MARKS) * MARK_NS
    assert spans["instruments"] == looks - CLOCK_NS  # half of the first and of the last
    assert spans["handle"] == 100 - CLOCK_NS
    assert spans["read"] == 100 + 500 - CLOCK_NS - (CLOCK_NS + MARK_NS) / 2
    assert spans["wait"] == 100 - MARK_NS
    assert spans["answer"] == beam["answer"] - marks[-1].ns - (CLOCK_NS + MARK_NS) / 2


def test_steps_make_up_what_python_takes():
    """From the read to the write nothing is left over."""
    beam, marks = request()
    (spans,) = spans_of([beam], marks, MARK_NS, CLOCK_NS)
    write = PYTHON_MARKS.index("write")
    python = marks[write].ns - marks[0].ns - write * MARK_NS
    assert sum(spans[step] for step in PYTHON_STEPS) == pytest.approx(python)


def test_what_was_left_of_the_last_request_belongs_to_the_way_there():
    """The BEAM writes the next one while Python is not waiting yet; its marks cost all the same."""
    beam, marks = request()
    (spans,) = spans_of([beam], marks, MARK_NS, CLOCK_NS)
    before = Mark(beam["start"] + 50, "wait")
    (late,) = spans_of([beam], [before, *marks], MARK_NS, CLOCK_NS)
    parts = sum(ns for name, ns in late.items() if name != "total")
    assert parts == pytest.approx(late["total"]) == spans["total"]
    assert late["instruments"] == spans["instruments"] + MARK_NS
    assert late["write"] == spans["write"]


def test_an_answer_may_come_before_python_waits():
    """What Python does then is not of this request any more."""
    beam, marks = request()
    beam |= answered_at(marks[-1].ns - 50)
    (spans,) = spans_of([beam], marks, MARK_NS, CLOCK_NS)
    assert "wait" not in spans
    assert spans["answer"] == 50 - (CLOCK_NS + MARK_NS) / 2


@pytest.mark.parametrize("step", ["write", "read", "entered"])
def test_a_request_that_cannot_be_followed_is_left_out(step):
    """With two writes in it, nobody can say which was the reply; so with anything else twice."""
    beam, marks = request()
    again = Mark(marks[PYTHON_MARKS.index(step)].ns + 50, step)
    assert spans_of([beam], sorted([*marks, again]), MARK_NS, CLOCK_NS) == []


def test_a_request_that_took_another_way_is_left_out():
    """It was read and not plain, or the ring has forgotten it."""
    beam, marks = request()
    assert spans_of([beam], marks[:1] + marks[-1:], MARK_NS, CLOCK_NS) == []
    assert spans_of([beam], [], MARK_NS, CLOCK_NS) == []


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
