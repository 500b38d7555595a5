"""The README, followed word by word: its first example in IEx, and its project."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from markdown import PROJECT, blocks

pytestmark = [
    pytest.mark.beam,
    pytest.mark.skipif(shutil.which("mix") is None, reason="needs Elixir"),
]

README = [block.code for block in blocks(PROJECT / "README.md") if block.language == "elixir"]
FIRST = README[0]


def block_of(file):
    return next(code for code in README if code.startswith(f"# {file}"))


def run(arguments, directory, **options):
    done = subprocess.run(
        ["timeout", "120", "sh", str(PROJECT / "scripts/with-env.sh"), *arguments],
        cwd=directory,
        env=os.environ | {"MIX_ENV": "dev"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """The project that the README describes, beside a `pyport`, with a Python of its own."""
    (tmp_path / "pyport").symlink_to(PROJECT)
    run(["mix", "new", "my_app"], tmp_path)
    mix = tmp_path / "my_app/mix.exs"
    # Its two functions take the place of those that `mix new` has written.
    kept = re.sub(r"  def project do\n.*?\n  end\n", "", mix.read_text(), flags=re.DOTALL)
    kept = re.sub(r"  defp deps do\n.*?\n  end\n", block_of("mix.exs"), kept, flags=re.DOTALL)
    mix.write_text(kept)
    config = block_of("config/config.exs: ")
    (tmp_path / "my_app/config").mkdir()
    (tmp_path / "my_app/config/config.exs").write_text(
        config.replace("/path/to/a/virtual/environment/bin/python", sys.executable)
    )
    return tmp_path / "my_app"


@pytest.mark.slow
def test_the_first_example_works_when_it_is_pasted_into_iex(project):
    """Line after line in `iex -S mix` of a project of one's own, without an error."""
    printed = run(["iex", "-S", "mix"], project, input=FIRST + '\nIO.puts("the " <> "end")\n')
    assert "** (" not in printed
    assert "warning" not in printed
    assert "error:" not in printed
    assert "[0, 1, 4]" in printed
    assert "the end" in printed


def test_its_configuration_is_the_one_that_is_tried_with_uv():
    """tests/env builds docs/environments.md's, with pandas, for real."""
    page = [block.code for block in blocks(PROJECT / "docs/environments.md")]
    assert block_of("config/config.exs\n") in page
