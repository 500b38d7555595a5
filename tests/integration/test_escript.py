"""An escript: one file without directories, so without PyPort's Python package."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "elixir_client"
FILES = {
    "mix.exs": f"""
defmodule Tool.MixProject do
  use Mix.Project
  def project do
    [app: :tool, version: "0.1.0", escript: [main_module: Tool], deps: deps()]
  end
  def application, do: [extra_applications: [:logger]]
  defp deps, do: [{{:py_port, path: "{CLIENT}"}}]
end
""",
    "lib/tool.ex": """
defmodule Tool do
  def main(["environment"]) do
    Application.stop(:py_port)
    Application.put_env(:py_port, :uv_init, pyproject_toml: "[project]")
    {:ok, _} = Application.ensure_all_started(:py_port)
    main(["eval"])
  end

  def main(["eval"]) do
    case PyPort.eval("6 * 7") do
      {:ok, value} -> IO.puts("= #{value}")
      {:error, error} -> IO.puts("! " <> Exception.message(error))
    end
  end
end
""",
}

pytestmark = pytest.mark.skipif(shutil.which("mix") is None, reason="there is no Elixir here")


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    """The escript, built as everybody builds one; alone, as everybody copies one."""
    project = tmp_path_factory.mktemp("tool")
    for name, text in FILES.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    subprocess.run(
        ["mix", "escript.build"],
        cwd=project,
        env={**os.environ, "MIX_ENV": "prod"},
        check=True,
        capture_output=True,
    )
    alone = tmp_path_factory.mktemp("alone") / "tool"
    shutil.copy(project / "tool", alone)
    return alone


def run(tool, word, python):
    done = subprocess.run(
        [tool, word],
        env={**os.environ, "PYPORT_PYTHON": str(python)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_it_runs_on_a_python_that_has_the_server(tool):
    """Named by PYPORT_PYTHON here, as by `python:`."""
    assert "= 42" in run(tool, "eval", sys.executable)


def test_on_another_one_it_says_what_is_missing(tool, tmp_path):
    """In one sentence, for the error and for the log."""
    venv.create(tmp_path, with_pip=False)
    said = run(tool, "eval", tmp_path / "bin/python")
    assert "! Python did not start" in said
    assert (
        "Install the package port-server in this Python, in the version of this library: an escript"
        in said
    )


def test_it_builds_no_environment_and_says_so(tool):
    """Also where its configuration asks for one."""
    said = run(tool, "environment", sys.executable)
    assert "! an escript carries no files, so no Python environment can be built in it" in said
    assert "with the option python:" in said
