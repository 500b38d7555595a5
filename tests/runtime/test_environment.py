"""A ModuleNotFoundError tells in which Python it happened, and which environment has the module."""

import os
import subprocess
import sys

import pytest

TRY = """
import sys
sys.path += sys.argv[2:]
from port_server.runtime import environment
try:
    exec(sys.argv[1])
except Exception as error:
    environment.explain(error)
    environment.explain(error)
    print(*getattr(error, "__notes__", ()), sep="\\n")
"""

HERE = f"This is Python {sys.version.split()[0]} ({sys.executable})"
ADD = "To add a package: name it in pyproject.toml, run mix py_port.lock and mix compile"


def note(code, packages, *path):
    done = subprocess.run(
        [sys.executable, "-c", TRY, code, *map(str, path)],
        env={**os.environ, "PYPORT_PACKAGES": packages},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def ml(tmp_path):
    """An environment with a package, a module and an extension module."""
    directory = tmp_path / "ml"
    (directory / "package").mkdir(parents=True)
    (directory / "package/__init__.py").write_text("")
    (directory / "module.py").write_text("")
    (directory / "extension.abi3.so").write_bytes(b"")
    return directory


def test_without_environments_the_python_is_named():
    """Whoever started it."""
    assert note("import no_such", "") == HERE


def test_the_environment_is_named_with_what_to_do(ml):
    """Its packages are on the path."""
    assert note("import no_such", f"ml={ml}", ml) == f"{HERE} in the environment :ml. {ADD}"


@pytest.mark.parametrize(
    "code", ["import package", "import package.part", "from module import x", "import extension"]
)
def test_another_environment_that_has_it_is_named(ml, tmp_path, code):
    """From an environment that lacks it, and from none."""
    web = tmp_path / "web"
    web.mkdir()
    name = code.split()[1].split(".")[0]
    found = f"{name} is in the environment :ml: start the server or pool with python_env: :ml"
    both = f"web={web}:ml={ml}"
    assert note(code, both, web) == f"{HERE} in the environment :web. {found}"
    outside = f"{HERE} in no environment of config :py_port, :uv_init"
    assert note(code, both) == f"{outside}. {found}"


def test_a_package_without_the_module_is_not_looked_for_elsewhere(ml, tmp_path):
    """It is here, and so is its version."""
    web = tmp_path / "web"
    (web / "package").mkdir(parents=True)
    (web / "package/__init__.py").write_text("")
    told = note("import package.part", f"web={web}:ml={ml}", web)
    assert told == f"{HERE} in the environment :web. {ADD}"


@pytest.mark.parametrize("code", ["raise ModuleNotFoundError('mine')", "import json.nothing_there"])
def test_other_errors_are_left_alone(code):
    """Those that code makes itself have no module; one of the standard library's has no other."""
    assert note(code, "") in {"", HERE}
