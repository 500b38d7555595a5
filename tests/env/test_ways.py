"""The other ways to an environment: first boot, scripts, several, a uv of PyPI's, no compiler."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mix_project import PROJECT, SMALL, Host, block

pytestmark = pytest.mark.env

INSTALL = (
    'Mix.install([{:py_port, path: "../pyport/elixir_client"}], config: [py_port: [pool: false]])'
)
DATEUTIL = "import dateutil; dateutil.__name__"
WORKS = '{:ok, "dateutil"}'
DEPENDENCY = '[{:py_port, path: "../../pyport/elixir_client"}]'
CODEC = "from port_server.etf import codec_name; codec_name"


def test_built_on_first_boot_where_the_compiler_is_not_listed(host):
    """Only the configuration: the first start builds, the second does not."""
    mix_exs = host.path / "mix.exs"
    mix_exs.write_text(mix_exs.read_text().replace("compilers: Mix.compilers() ++ [:py_port],", ""))
    host.uv_init()
    compiled = host.mix("compile")
    assert (compiled.status, host.built()) == (0, None), compiled
    first = host.eval(DATEUTIL)
    assert "building the Python environment :default" in first.said
    assert WORKS in first.said
    second = host.eval(DATEUTIL, UV_OFFLINE="1")
    assert second.plain.strip() == WORKS
    assert (host.path / "priv/py_port/default/uv.lock").exists()


@pytest.fixture(scope="module")
def elixir_script(session, template):
    """The start of a command that runs a script with Mix.install.

    Newer Elixirs want Hex for it, even for a dependency by path, and would fetch it. What stands in
    for it does nothing, which is what is asked of it.
    """
    if (
        template.run("elixir", "-e", "Mix.start(); {:module, _} = Code.ensure_loaded(Hex)").status
        == 0
    ):
        return ("elixir",)
    directory = session / "hex"
    directory.mkdir()
    module = 'defmodule Hex do\n  def version, do: "99.0.0"\n  def start, do: :ok\nend\n'
    (directory / "hex.ex").write_text(module)
    made = template.run("elixirc", "hex.ex", cwd=directory)
    assert made.status == 0, made
    return ("elixir", "-pa", directory)


def test_a_script(session, template, elixir_script):
    """Mix.install and uv_init/2 as the page has them; the second run builds nothing."""
    directory = session / "script"
    directory.mkdir()
    script = directory / "script.exs"
    script.write_text(block(INSTALL))
    first = template.run(*elixir_script, script, cwd=directory)
    assert first.status == 0, first
    assert " + numpy==" in first.said
    assert first.plain.rstrip().endswith("45")
    second = template.run(*elixir_script, script, cwd=directory, UV_OFFLINE="1")
    assert second.plain.strip() == "45", second


def test_a_script_with_configuration(session, template, elixir_script):
    """Under Mix.install the same configuration is built when the application starts."""
    directory = session / "configured"
    directory.mkdir()
    (directory / "script.exs").write_text(
        'Mix.install([{:py_port, path: "../pyport/elixir_client"}], '
        'config: [py_port: [uv_init: [pyproject_toml: """'
        f'{SMALL}"""]]])\nIO.inspect(PyPort.eval("{DATEUTIL}"))\n'
    )
    done = template.run(*elixir_script, "script.exs", cwd=directory)
    assert WORKS in done.said, done
    assert done.status == 0


def test_several_environments_one_of_them_a_project_of_its_own(host):
    """Each server runs in the one it names; a change of a project's own package is noticed."""
    project = host.path / "python/own"
    (project / "own").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        SMALL.replace('["python-dateutil"]', "[]").replace('"small"', '"own"')
        + '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (project / "own/__init__.py").write_text("answer = 41\n")
    host.configure(
        "config :py_port, :uv_init, environments: ["
        f'default: [pyproject_toml: """{SMALL}"""], own: [project: "python/own"]]'
    )
    elixir = (
        "{:ok, _} = PyPort.Server.start_link(name: Own, python_env: :own);"
        'IO.inspect({PyPort.eval("import own; own.answer", %{}, server: Own, timeout: 60_000), '
        f'PyPort.eval("{DATEUTIL}", %{{}}, timeout: 60_000), PyPort.eval("import own")}})'
    )
    done = host.mix("run", "-e", elixir)
    assert "{:ok, 41}" in done.said, done
    assert WORKS in done.said
    assert "ModuleNotFoundError" in done.said
    assert (project / "uv.lock").exists()
    (project / "own/__init__.py").write_text("answer = 42\n")
    assert "{:ok, 42}" in host.mix("run", "-e", elixir).said


def test_a_project_beside_mix_exs(host):
    """The application's own build and sources are no part of the Python project there."""
    (host.path / "pyproject.toml").write_text(SMALL)
    host.configure('config :py_port, :uv_init, project: "."')
    first = host.mix("compile")
    assert "building the Python environment :default" in first.said, first
    (host.path / "lib/my_app.ex").write_text("defmodule MyApp do\nend\n")
    second = host.mix("compile")
    assert "building the Python environment" not in second.said, second
    assert WORKS in host.eval(DATEUTIL).said


def test_an_umbrella_has_one_environment_and_one_lock(session, pyport, variables):
    """Whichever of its applications is compiled, and wherever Mix is called."""
    umbrella = Host(session / "umbrella", variables)
    made = umbrella.run("mix", "new", "umbrella", "--umbrella", cwd=session)
    assert made.status == 0, made
    for name, dependency in (("one", ""), ("two", ", {:one, in_umbrella: true}")):
        assert umbrella.run("mix", "new", name, cwd=umbrella.path / "apps").status == 0
        mix_exs = umbrella.path / "apps" / name / "mix.exs"
        dependencies = f'[{{:py_port, path: "{pyport}/elixir_client"}}{dependency}]'
        mix_exs.write_text(
            mix_exs.read_text()
            .replace(
                "deps: deps()",
                f"compilers: Mix.compilers() ++ [:py_port], deps: {dependencies}",
            )
            .replace("defp deps", "def deps")
        )
    umbrella.uv_init()
    built = umbrella.mix("compile")
    assert built.said.count("building the Python environment") == 1, built
    assert list(umbrella.path.glob("**/priv/py_port/*/uv.lock")) == [
        umbrella.path / "priv/py_port/default/uv.lock"
    ]
    for cwd in (umbrella.path, umbrella.path / "apps/one", umbrella.path / "apps/two"):
        again = umbrella.mix("do", "compile,", "py_port.sync", cwd=cwd)
        assert "building" not in again.said, again
        assert "is up to date" in again.said, again
    answer = umbrella.eval(DATEUTIL)
    assert "building" not in answer.said, answer
    assert WORKS in answer.said


def test_a_dependency_with_the_compiler_builds_nothing_of_its_own(host):
    """A library may list it for its own tests: the environment is the application's."""
    library = host.path / "library"
    (library / "lib").mkdir(parents=True)
    (library / "mix.exs").write_text(
        "defmodule Library.MixProject do\n  use Mix.Project\n\n  def project do\n"
        '    [app: :library, version: "0.1.0", compilers: Mix.compilers() ++ [:py_port],\n'
        f"     deps: {DEPENDENCY}]\n  end\nend\n"
    )
    mix_exs = host.path / "mix.exs"
    mix_exs.write_text(
        mix_exs.read_text().replace("deps: [", 'deps: [{:library, path: "library"}, ')
    )
    host.uv_init()
    built = host.mix("compile")
    assert built.said.count("building the Python environment") == 1, built
    assert not (library / "priv").exists()
    assert (host.path / "priv/py_port/default/uv.lock").exists()


@pytest.fixture
def bare_path(host):
    """A PATH like the tests' own, of links, without uv."""
    directory = host.path / "bin"
    directory.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for tool in Path(entry).iterdir() if Path(entry).is_dir() else ():
            target = directory / tool.name
            if tool.name not in ("uv", "uvx") and not target.exists():
                target.symlink_to(tool)
    return str(directory)


def test_without_uv_its_installation_is_explained(host, bare_path):
    """No uv, and no leave to fetch one."""
    host.uv_init()
    done = host.mix("compile", PATH=bare_path)
    assert done.status == 0, done
    assert "uv was not found on the PATH" in done.said
    assert "pip install uv" in done.said


def test_a_uv_that_nobody_installed_comes_from_the_package_index(host, bare_path):
    """With uv_version it is fetched, verified, kept in the cache, and builds."""
    host.uv_init(uv_version='"0.9.5"')
    done = host.mix("compile", PATH=bare_path)
    assert "fetching uv 0.9.5" in done.said, done
    assert "with uv 0.9.5" in done.said
    assert WORKS in host.eval(DATEUTIL, PATH=bare_path).said
    again = host.mix("py_port.sync", "--force", PATH=bare_path)
    assert "fetching" not in again.said
    assert again.status == 0


@pytest.fixture
def without_compiler(host):
    return {"CC": "/bin/false", "XDG_CACHE_HOME": str(host.path / "cold")}


def test_without_a_compiler_the_slower_codec_answers_and_says_so(host, without_compiler):
    """Everything works, and the words say what to install."""
    host.uv_init()
    done = host.mix("compile", **without_compiler)
    assert "the native codec is missing" in done.said, done
    assert '{:ok, "erlang-py"}' in host.eval(CODEC).said


def test_a_wheel_in_priv_spares_the_compiler(host, without_compiler, pyport):
    """`make wheel`, then an environment with the native codec where there is no compiler."""
    wheels = pyport / "elixir_client/priv/wheels"
    made = subprocess.run(
        ["sh", "scripts/wheel.sh", wheels],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    try:
        host.uv_init()
        done = host.mix("compile", **without_compiler)
        assert "codec: native" in done.said, done
        assert "building the port server" not in done.said
        assert '{:ok, "native"}' in host.eval(CODEC).said
        # A wheel of another state of the source is not taken.
        (pyport / "port_server/log.py").write_text(
            (pyport / "port_server/log.py").read_text() + "\n# new\n"
        )
        stale = host.mix("compile", **without_compiler)
        assert "building the port server" in stale.said, stale
    finally:
        shutil.rmtree(wheels)
        shutil.copy(PROJECT / "port_server/log.py", pyport / "port_server/log.py")


def test_a_bare_python_says_what_it_lacks(host):
    """No environment configured, and a python3 with neither codec: the words say how to get one."""
    made = host.run("uv", "venv", "--quiet", host.path / "bare")
    assert made.status == 0, made
    host.configure(f'config :py_port, pool: [python: "{host.path}/bare/bin/python"]')
    answer = re.sub(r"\s+", " ", host.eval("1").said)
    assert "#PyPort.Error<:unavailable" in answer
    assert "neither the native codec nor erlang-py" in answer
    assert "pip install erlang-py" in answer


@pytest.fixture
def movable_python(session):
    """A Python that can be moved, as uv fetches them: here a copy of the tests' own."""
    prefix = Path(sys.base_prefix)
    if prefix in (Path("/usr"), Path("/usr/local")):
        pytest.skip("the Python of the tests is the system's")
    to = session / f"cpython-{sys.version.split()[0]}-linux-x86_64-gnu"
    shutil.copytree(
        prefix, to, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "test", "share")
    )
    (to / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages").mkdir()
    # Where it looks for its libpython: beside itself, if it was an absolute path.
    binary = (to / "bin/python3").resolve()
    old = f"{prefix}/lib".encode()
    new = b"$ORIGIN/../lib"
    binary.write_bytes(
        binary.read_bytes().replace(old + b"\0", new.ljust(len(old), b"\0") + b"\0", 1)
    )
    yield to
    shutil.rmtree(to, ignore_errors=True)


def test_a_release_carries_a_python_that_uv_fetched(host, movable_python, session):
    """Release and Python are moved, and what both came from is deleted."""
    host.uv_init(python=f'"{movable_python}/bin/python3"')
    release = host.mix("release", MIX_ENV="prod", UV_PYTHON="")
    assert release.status == 0, release
    moved = session / "carried"
    shutil.move(host.path / "_build/prod/rel/my_app", moved)
    shutil.rmtree(movable_python)
    shutil.rmtree(host.path / "_build/prod")
    code = f"import sys, json; {DATEUTIL} + chr(32) + sys.base_prefix"
    elixir = '{:ok, _} = Application.ensure_all_started(:py_port); IO.inspect(PyPort.eval("%s"))'
    answer = host.run(moved / "bin/my_app", "eval", elixir % code, cwd=session)
    assert answer.status == 0, answer
    expected = f'{{:ok, "dateutil {moved}/py_port/default/python"}}'
    assert expected in re.sub(r"\s+", " ", answer.said)


def test_the_archive_of_a_release_has_the_environment_in_it(host, session):
    """`mix release` with `:tar` packs what it is told of."""
    mix_exs = host.path / "mix.exs"
    mix_exs.write_text(
        mix_exs.read_text().replace("copy_environments/1]", "copy_environments/1, :tar]")
    )
    host.uv_init()
    release = host.mix("release", MIX_ENV="prod")
    assert release.status == 0, release
    unpacked = session / "unpacked"
    unpacked.mkdir()
    archive = host.path / "_build/prod/my_app-0.1.0.tar.gz"
    assert host.run("tar", "xzf", archive, "-C", unpacked).status == 0
    shutil.rmtree(host.path / "_build/prod")
    # Once: in an archive links are copies.
    assert len(list((unpacked / "py_port").rglob("dateutil/__init__.py"))) == 1
    elixir = (
        "{:ok, _} = Application.ensure_all_started(:py_port);"
        f'IO.inspect(PyPort.eval("{DATEUTIL}"))'
    )
    answer = host.run(unpacked / "bin/my_app", "eval", elixir, cwd=session)
    assert WORKS in answer.said, answer


def test_a_python_that_cannot_be_moved_is_not_carried(host):
    """carry_python: true on the system's Python is an error in words."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no Python in /usr/bin")
    mix_exs = host.path / "mix.exs"
    mix_exs.write_text(
        mix_exs.read_text().replace("steps:", "py_port: [carry_python: true], steps:")
    )
    host.uv_init(python=f'"{python}"')
    release = host.mix("release", MIX_ENV="prod", UV_PYTHON="")
    assert release.status == 1, release
    assert "carry_python: true cannot carry the Python of /usr" in release.said


JOBLIB = """
import numpy as np, os
from joblib import Parallel, delayed
ones = np.ones(2_000_000)
[sum(Parallel(n_jobs=2)(delayed(np.sum)(ones) for _ in range(4))), os.getpid()]
"""


def test_joblib_leaves_nothing_in_shared_memory(host):
    """Its semaphores and its folder of arrays go with the server, when the script has ended."""
    host.uv_init(SMALL.replace("python-dateutil", 'joblib", "numpy'))
    done = host.eval(JOBLIB)
    (os_pid,) = re.findall(r"\{:ok, \[8[\d.e]+, (\d+)\]\}", done.said)
    time.sleep(1)  # within that nothing of a Python is left, see docs/reliability.md
    assert [path for path in Path("/dev/shm").iterdir() if os_pid in path.name] == []
