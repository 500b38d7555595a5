"""mix py_port.add, remove, test and debug in a project with `project:`, with the real uv."""

import socket
import subprocess
import time

import pytest

pytestmark = pytest.mark.env

FILES = {
    "mix.exs": """
defmodule Mine.MixProject do
  use Mix.Project
  def project, do: [app: :mine, version: "0.1.0", deps: [{:py_port, path: "PYPORT"}]]
  def application, do: [extra_applications: [:logger]]
end
""",
    "config/config.exs": 'import Config\nconfig :py_port, :uv_init, project: "py"\n',
    "py/pyproject.toml": (
        '[project]\nname = "mine"\nversion = "0.0.0"\n'
        'requires-python = ">=3.11"\ndependencies = []\n'
    ),
    "test_it.py": "import six\ndef test_it(): assert six.PY3\n",
}


def test_packages_come_and_go_and_a_debugger_attaches(tmp_path, pyport, variables):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("PYPORT", str(pyport / "elixir_client")))

    def mix(*args):
        done = subprocess.run(
            ["mix", *args],
            cwd=tmp_path,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    project = tmp_path / "py/pyproject.toml"
    assert mix("py_port.test", "test_it.py")[0] == 1
    status, said = mix("py_port.add", "six", "debugpy", "pytest")
    assert status == 0, said
    assert "six>=" in project.read_text()
    status, said = mix("py_port.test", "-q", "test_it.py")
    assert (status, "1 passed" in said) == (0, True), said
    status, said = mix("py_port.remove", "six")
    assert status == 0, said
    assert "six" not in project.read_text()
    assert "ModuleNotFoundError" in mix("py_port.python", "--", "-c", "import six")[1]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mix", "py_port.debug", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as task:
        lines = iter(task.stdout.readline, b"")
        assert any(b"debugpy listens on 127.0.0.1" in line for line in lines)
        socket.create_connection(("127.0.0.1", port), 5).close()
        task.terminate()
        deadline = time.monotonic() + 20
        while task.poll() is None and time.monotonic() < deadline:
            task.stdout.read1()
