"""An environment is built again beside the one that runs, from what that one has already."""

import re

import pytest
from mix_project import SMALL

pytestmark = pytest.mark.env

# Small, pure Python, without dependencies.
NAMES = """
    attrs backoff blinker cachetools certifi click cloudpickle colorama cycler decorator docopt
    filelock fsspec idna iniconfig invoke itsdangerous jmespath mccabe mdurl
    mergedeep more-itertools mypy-extensions nest-asyncio packaging pathspec
    platformdirs pluggy ply ptyprocess pycodestyle pycparser pyflakes pyparsing pytz semver
    sniffio sortedcontainers tabulate termcolor text-unidecode toml tomlkit toolz typing-extensions
    wcwidth webencodings xmltodict zipp
"""
FORTY = NAMES.split()[:40]

PROJECT = SMALL.replace('["python-dateutil"]', str(FORTY).replace("'", '"'))


def packages(host):
    """The directory of the packages of the environment that is current, and what is in it."""
    (name,) = re.findall(r'(?<!_)dir => <<"([^"]+)">>', host.built())
    (directory,) = (host.path / "_build/dev/py_port" / name).glob("venv/lib/python*/site-packages")
    return directory, {path.name: path for path in directory.glob("*.dist-info")}


def test_one_package_more_leaves_forty_as_they_are(host):
    """The new one is installed; the files of the others are the ones that were there."""
    host.uv_init(PROJECT)
    first = host.mix("compile")
    assert first.status == 0, first
    before, were = packages(host)
    assert len(were) >= len(FORTY)
    host.uv_init(PROJECT.replace('"]', '", "six"]'))
    assert host.mix("py_port.lock").status == 0
    second = host.mix("compile")
    own = ("port-server", "erlang-py", "structlog")
    installed = re.findall(r"^ \+ ([\w-]+)==", second.said, re.MULTILINE)
    assert [name for name in installed if name not in own] == ["six"], second
    after, are = packages(host)
    assert after != before
    assert len(are) == len(were) + 1
    for name, path in were.items():
        if not name.startswith(("port_server", "erlang_py", "structlog")):
            one, two = (path / "RECORD").stat(), (are[name] / "RECORD").stat()
            assert (one.st_ino, one.st_dev) == (two.st_ino, two.st_dev), name
    assert not (before / "six.py").exists()
    works = host.eval("import six, attrs, click, tabulate; 1")
    assert "{:ok, 1}" in works.said, works


IEX = """
show = fn -> IO.inspect(PyPort.eval("import own, sys; [own.answer, sys.prefix]"), width: 999) end
touch = fn n -> File.write!("python/own/__init__.py", "answer = #{n}") end
show.()
touch.(2)
recompile()
touch.(3)
recompile()
{:ok, [1, prefix]} = show.()
{:ok, late} = PyPort.eval("import own.late; own.late.answer")
{:ok, server} = PyPort.Server.start_link()
{:ok, new} = PyPort.eval("import own; own.answer", %{}, server: server)
IO.puts("late #{late}, whole #{File.dir?(prefix)}, new #{new}")
"""


def test_two_recompiles_in_iex_leave_the_environment_that_runs(host):
    """Its code goes on, with modules that it imports only then; a new server has the new code."""
    project = host.path / "python"
    (project / "own").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        SMALL.replace('["python-dateutil"]', "[]").replace('"small"', '"own"')
        + '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (project / "own/__init__.py").write_text("answer = 1\n")
    (project / "own/late.py").write_text("answer = 'late'\n")
    # Else its servers would start anew, with the new code.
    host.configure('config :py_port, :uv_init, project: "python"\nconfig :py_port, reload: false')
    (host.path / "session.exs").write_text(IEX)
    done = host.run("sh", "-c", "iex -S mix <session.exs")
    assert "late late, whole true, new 3" in done.said, done
