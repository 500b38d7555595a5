"""The set-up scripts, on machines made of stubs: a PATH of what they may use, fakes for the rest.

No network and nothing installed here: the real thing is `make test-fresh`.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TOOLS = (
    "cat chmod cksum cut dirname env find getent head ls locale mkdir mktemp mv printf"
    " readlink rm sed sh sort tail"
)
NOT_ROOT = "echo 1000"
WORKING_UV = """
    echo "$* (downloads: $UV_PYTHON_DOWNLOADS)" >>"$CALLS"
    case $1 in
    --version) echo "uv 0.9.0 (stub)" ;;
    python) echo /usr/bin/python3 ;;
    sync) mkdir -p .venv/bin && echo '#!/bin/sh' >.venv/bin/python && chmod +x .venv/bin/python ;;
    esac
"""


class Machine:
    """A clone of the scripts and a PATH of its own."""

    def __init__(self, home: Path):
        self.home, self.bin, self.clone = home, home / "bin", home / "clone"
        self.calls = home / "calls"
        self.bin.mkdir()
        self.clone.mkdir()
        shutil.copytree(PROJECT / "scripts", self.clone / "scripts")
        for name in ("pyproject.toml", "uv.lock"):
            (self.clone / name).write_text(name)
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))
        self.has("id", NOT_ROOT)
        self.has("uv", WORKING_UV)
        for tool in ("elixir", "erl", "mix"):
            self.has(tool)

    def has(self, tool: str, script: str = "") -> None:
        (self.bin / tool).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / tool).chmod(0o755)

    def lacks(self, *tools: str) -> None:
        for tool in tools:
            (self.bin / tool).unlink()

    def run(self, script: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "CALLS": str(self.calls),
            **variables,
        }
        return subprocess.run(
            ["sh", f"scripts/{script}", *args],
            cwd=self.clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def uv_calls(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def says_one_line(result, *words):
    assert result.returncode == 1
    lines = (result.stdout + result.stderr).splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_syncs_the_locked_environment_and_never_downloads_a_python(machine):
    """What runs is what uv.lock says, on the machine's own Python."""
    result = machine.run("setup.sh")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "==> Building the Python environment in .venv (uv sync --locked)\n"
    assert "sync --locked" in machine.uv_calls()
    assert "downloads: never" in machine.uv_calls()
    assert machine.uv_calls().count("downloads:") == machine.uv_calls().count("downloads: never")


def test_second_run_says_and_does_nothing(machine):
    """Set-up that is done costs nothing, so that every target can ask for it."""
    machine.run("setup.sh")
    before = machine.uv_calls()
    result = machine.run("setup.sh")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert machine.uv_calls() == before


@pytest.mark.parametrize("change", ["uv.lock", "pyproject.toml", "setup.py", "port_server/etf/a.c"])
def test_what_the_environment_is_built_from_rebuilds_it(machine, change):
    """A changed lock, a changed C source: the next run notices."""
    (machine.clone / "setup.py").write_text("")
    (machine.clone / "port_server/etf").mkdir(parents=True)
    (machine.clone / "port_server/etf/a.c").write_text("")
    machine.run("setup.sh")
    (machine.clone / change).write_text("changed")
    assert "Building" in machine.run("setup.sh").stdout
    assert machine.uv_calls().count("sync") == 2


def test_failed_sync_is_tried_again(machine):
    """A step that failed is not remembered as done."""
    machine.has("uv", WORKING_UV.replace("sync)", "sync) echo no route to host >&2; exit 2;; x)"))
    result = machine.run("setup.sh")
    assert result.returncode == 1
    assert "no route to host" in result.stderr
    machine.has("uv", WORKING_UV)
    assert machine.run("setup.sh").returncode == 0


def test_without_uv_and_pip_says_what_to_install(machine):
    """One who is not root learns in one line what is missing."""
    machine.lacks("uv")
    machine.has("python3", "exit 1")
    says_one_line(machine.run("setup.sh"), "uv is missing", "apt-get install python3-venv")


def test_ancient_uv_counts_as_missing(machine):
    """A uv that does not know dependency groups would fail later and obscurely."""
    machine.has("uv", 'echo "uv 0.4.9"')
    machine.has("python3", "exit 1")
    says_one_line(machine.run("setup.sh"), "uv is missing")


def test_uv_shim_without_a_uv_behind_it_counts_as_missing(machine):
    """Pyenv puts a name on the PATH for tools that the chosen version does not have."""
    machine.has("uv", 'echo "pyenv: uv: command not found" >&2; exit 127')
    machine.has("python3", "exit 1")
    says_one_line(machine.run("setup.sh"), "uv is missing")


def test_without_a_fitting_python_says_what_to_install(machine):
    """An old Python is named as the trouble, whatever uv says."""
    machine.has("uv", WORKING_UV.replace("echo /usr/bin/python3", "exit 2"))
    machine.has("python3")
    says_one_line(machine.run("setup.sh"), "no Python 3.11 or newer", "install")


@pytest.mark.parametrize(
    ("elixir", "words"),
    [(None, "Elixir is missing"), ("exit 3", "too old"), ("exit 127", "missing")],
)
def test_without_a_fitting_elixir_says_what_to_install(machine, elixir, words):
    """None, an old one, and a shim with none behind it: each is told from one that works."""
    machine.run("setup.sh")
    machine.lacks("elixir")
    if elixir:
        machine.has("elixir", elixir)
    says_one_line(machine.run("setup.sh"), words, "install Elixir 1.14")


def test_environment_puts_the_projects_python_first(machine):
    """`python3`, PYPORT_PYTHON and uv all mean .venv, and text is UTF-8 even under LC_ALL=C."""
    names = "$PYPORT_PYTHON|$PATH|$UV_PROJECT_ENVIRONMENT|$ELIXIR_ERL_OPTIONS"
    report = f'echo "{names}|$(locale charmap)"'
    result = machine.run("with-env.sh", "sh", "-c", report, LC_ALL="C")
    venv = machine.clone / ".venv"
    python, path, project_environment, options, charmap = result.stdout.strip().split("|")
    assert python == str(venv / "bin/python")
    assert path.split(os.pathsep)[:2] == [str(venv / "bin"), str(machine.bin)]
    assert project_environment == str(venv)
    assert options.strip() == "+fnu"
    assert charmap == "UTF-8"


@pytest.mark.parametrize("purpose", ["trixie", "fresh"])
def test_debian_roots_need_root_and_say_so(machine, purpose):
    """Without root nothing is half built."""
    says_one_line(machine.run("debian.sh", purpose), "needs root")
