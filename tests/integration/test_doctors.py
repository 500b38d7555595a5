"""Both doctors name a file that hides a module of the standard library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "elixir_client"
NAMED = "calendar.py hides Python's own module calendar: rename it"


def said(command, directory, **options):
    (directory / "calendar.py").write_text("")
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(directory), "MIX_ENV": "test"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        **options,
    )
    return done.stdout


def test_that_of_the_command_line(tmp_path):
    """It works all the same."""
    report = said([sys.executable, "-P", "-m", "port_server", "doctor"], tmp_path)
    assert f"{tmp_path}/{NAMED}" in report
    assert "Everything works." in report


def test_that_of_the_command_line_which_cannot_even_start(tmp_path):
    """Argparse needs enum."""
    (tmp_path / "enum.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-m", "port_server", "doctor"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{CLIENT.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    named = f"{tmp_path}/enum.py"
    hides = f"{named} hides Python's own module enum" in done.stderr
    assert hides or f"consider renaming '{named}'" in done.stderr


@pytest.mark.skipif(shutil.which("mix") is None, reason="there is no Elixir here")
def test_that_of_mix(tmp_path):
    """Found by the server that it asks."""
    report = said(["mix", "py_port.doctor"], tmp_path, cwd=CLIENT)
    assert f"{tmp_path}/{NAMED}" in report
    assert "Everything works." in report
