"""The recipes for tqdm and rich in docs/guide.md, and numba's cache, with the real packages."""

import re
import subprocess
import sys

import pytest
from mix_project import PROJECT

from port_server.etf import Atom
from tests.conftest import eval_

pytestmark = pytest.mark.env


@pytest.fixture(scope="module")
def python(tmp_path_factory, variables):
    env = tmp_path_factory.mktemp("libraries") / "env"
    python = str(env / "bin/python")
    for command in (
        ["uv", "venv", "-q", "--python", sys.executable, str(env)],
        ["uv", "pip", "install", "-q", "--python", python, "tqdm", "rich", "numba"],
    ):
        subprocess.run(command, check=True, env=variables)
    return python


@pytest.fixture
def ask(start, tmp_path, python):
    """Run code in a new server, and give its reports of progress and its value."""

    def ask(code):
        env = {"PYTHONPATH": str(PROJECT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        server = start(python=python, env=env)
        server.send(eval_(code))
        reports = []
        while (message := server.receive(60))[0] == "progress":
            reports.append(message[2])
        assert message[0] == "ok", message
        return reports, message[2]

    return ask


def recipe(name):
    text = (PROJECT / "docs/guide.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if f"class {name}(" in block)


def test_bars_of_tqdm_report(ask):
    reports, value = ask(recipe("Bar") + "\n[n for n in Bar(range(3))]")
    assert value == [0, 1, 2]
    assert reports[0] == {Atom("done"): 0, Atom("total"): 3}
    assert reports[-1] == {Atom("done"): 3, Atom("total"): 3}


def test_bars_of_rich_report(ask):
    code = (
        recipe("Bars")
        + "\nwith Bars() as bars: found = list(bars.track(range(3), description='x'))\nfound"
    )
    reports, value = ask(code)
    assert value == [0, 1, 2]
    assert reports[-1] == {Atom("done"): 3, Atom("total"): 3, b"text": b"x"}


def test_numba_caches_functions_of_requests(ask):
    """The second process finds what the first has compiled."""
    code = """
import numba
@numba.njit(cache=True)
def double(n):
    return 2 * n
[double(21), len(double.stats.cache_hits)]
"""
    assert ask(code)[1] == [42, 0]
    assert ask(code)[1] == [42, 1]
