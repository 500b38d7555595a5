"""Imports of real packages that are cut at random moments."""

import subprocess
import sys

import pytest
from mix_project import PROJECT

pytestmark = pytest.mark.env

PACKAGES = ("numpy=numpy.arange(3).sum()", "pandas=pandas.DataFrame({'a': [1]}).sum()", "asyncio")
CUTS = 24


def test_a_package_whose_import_was_cut_works_afterwards(tmp_path, variables):
    """None is broken, wherever the cut was."""
    python = str(tmp_path / "env/bin/python")
    for command in (
        ["uv", "venv", "-q", "--python", sys.executable, str(tmp_path / "env")],
        ["uv", "pip", "install", "-q", "--python", python, "numpy", "pandas", "pytest"],
    ):
        subprocess.run(command, check=True, env=variables)
    done = subprocess.run(
        [python, str(PROJECT / "tests/import_cuts.py"), str(CUTS), *PACKAGES],
        env={**variables, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 broken") == len(PACKAGES)
