"""`make fast`, `.ci/run` and `make nightly`: what each of them runs."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MAKEFILE = (PROJECT / "Makefile").read_text()
# Only in the nightly run.
LONG = {"bench-guard", "soak", "fuzz"}
RECORD = '#!/bin/sh\necho "${PYPORT_NIGHTLY:-}|${PYTEST_ARGS:-}|$*" >>"$CALLS"\n'


def steps(folder, *args):
    """Run .ci/run with a `make` that does nothing, and give its targets with their variables."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "calls").unlink(missing_ok=True)
    for name in ("make", "dialyzer"):
        (folder / "bin" / name).write_text(RECORD)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", PROJECT / ".ci/run", *args],
        env={"PATH": path, "CALLS": str(folder / "calls")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    calls = [line.split("|") for line in (folder / "calls").read_text().splitlines()]
    return {words.split()[-1]: (nightly, args) for nightly, args, words in calls}


def test_every_target_is_phony_and_says_what_it_does():
    """A target without a line in the help, or a name in .PHONY without a target, is an error."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    told = set(re.findall(r"^([a-z-]+):.* ## ", MAKEFILE, re.MULTILINE))
    assert phony == targets
    assert targets - told == {"setup"}
    assert {"fast", "test", "nightly", "package"} <= targets


def test_the_nightly_run_has_all_of_the_usual_one_and_what_takes_long(tmp_path):
    """It leaves no step out, and each step of both is a target."""
    usual, nightly = steps(tmp_path), steps(tmp_path, "nightly")
    assert {"setup", "lint", "dialyzer", "test", "test-env"} <= set(usual)
    assert set(nightly) - set(usual) == LONG
    assert set(usual) <= set(nightly)
    assert set(nightly) <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    # Tests with the marker of that name run in one of them only; every other test runs in both.
    assert (usual["test"], nightly["test"]) == (("", ""), ("1", ""))


def test_what_is_no_kind_of_run_is_an_error():
    done = subprocess.run(
        ["bash", PROJECT / ".ci/run", "nihgtly"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "usage: .ci/run [nightly]\n")


@pytest.mark.parametrize("name", ["slow", "nightly", "env"])
def test_the_markers_are_registered(name):
    """In a run with --strict-markers any other name is an error."""
    options = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert "--strict-markers" in options["ini_options"]["addopts"]
    names = [text.split(":")[0] for text in options["ini_options"]["markers"]]
    assert names.count(name) == 1


@pytest.mark.parametrize("folder", ["elixir_client/test", "tests/faults"])
def test_exunit_leaves_out_what_the_nightly_run_has(folder):
    """Both helpers exclude the tag, and there are tests that have it."""
    assert "exclude: nightly" in (PROJECT / folder / "test_helper.exs").read_text()
    tagged = [
        path for path in (PROJECT / folder).rglob("*_test.exs") if ":nightly" in path.read_text()
    ]
    assert tagged


def test_a_nightly_test_is_left_out_unless_asked_for(collected):
    """The variable of `make nightly` asks for it."""
    assert collected(PYPORT_NIGHTLY="") == ["usual"]
    assert collected(PYPORT_NIGHTLY="1") == ["long", "usual"]


@pytest.fixture
def collected(tmp_path):
    """Collect two tests with the hook of tests/conftest.py."""
    text = (PROJECT / "tests/conftest.py").read_text()
    hook = re.search(
        r"^def pytest_collection_modifyitems.*?(?=^@|^def |^class |\Z)",
        text,
        re.MULTILINE | re.DOTALL,
    )[0]
    (tmp_path / "conftest.py").write_text("import os\n\n\n" + hook)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    nightly: long\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_usual(): pass\n\n@pytest.mark.nightly\ndef test_long(): pass\n"
    )

    def collect(**variables):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly"],
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return sorted(re.findall(r"::test_(\w+)", done.stdout))

    return collect
