"""Mix projects outside the repository, on a copy of it, with the real uv. For `make test-env`.

Packages come from the index that uv is configured for; the caches are the session's own, so that
nothing a developer's machine has already can make a test pass.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from mix_project import PROJECT, Host, block, commands


def pytest_collection_modifyitems(config, items):
    """Minutes of work and a network are asked for by name: `-m env`."""
    if "env" in (config.option.markexpr or ""):
        return
    here = Path(__file__).parent
    config.hook.pytest_deselected(items=[item for item in items if here in item.path.parents])
    items[:] = [item for item in items if here not in item.path.parents]


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    return tmp_path_factory.mktemp("env")


@pytest.fixture(scope="session")
def variables(session):
    """The environment of every command: caches of the session's own, and no Python is fetched."""
    dropped = ("VIRTUAL_ENV", "PYPORT_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "MIX_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {
        **kept,
        "XDG_CACHE_HOME": str(session / "cache"),
        "UV_CACHE_DIR": str(session / "cache/uv"),
        "MIX_INSTALL_DIR": str(session / "installs"),
        "UV_PYTHON_DOWNLOADS": "never",
        # The Python of the tests, not whichever the PATH has first.
        "UV_PYTHON": sys.base_prefix + "/bin/python3",
    }


@pytest.fixture(scope="session")
def pyport(session):
    """The repository as a clone has it: nothing built in it."""
    to = session / "pyport"
    skipped = shutil.ignore_patterns("*.so", "__pycache__", "_build", "tmp", "wheels", "build")
    for name in ("elixir_client", "port_server"):
        shutil.copytree(PROJECT / name, to / name, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, to)
    return to


@pytest.fixture(scope="session")
def template(session, pyport, variables):
    """A new project as the page says, with its dependency compiled and no environment yet."""
    host = Host(session / "my_app", variables)
    made = host.run("sh", "-c", commands("## From nothing to pandas"), cwd=session)
    assert made.status == 0, made
    (host.path / "mix.exs").write_text(block("# mix.exs"))
    assert pyport == session / "pyport"  # where the page's mix.exs looks for it
    for env in ("dev", "prod"):
        compiled = host.mix("compile", MIX_ENV=env)
        assert compiled.status == 0, compiled
    return host


@pytest.fixture
def host(template, variables, session, request):
    """A project of a test's own, beside the first."""
    name = re.sub(r"\W+", "_", request.node.name)
    path = session / name
    shutil.copytree(template.path, path, symlinks=True, ignore=shutil.ignore_patterns("py_port"))
    # The dependency's own directory has that name, too.
    shutil.copytree(template.path / "_build", path / "_build", symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(path / "_build/dev/py_port", ignore_errors=True)
    shutil.rmtree(path / "config", ignore_errors=True)
    yield Host(path, variables)
    shutil.rmtree(path, ignore_errors=True)
