"""What goes wrong while an environment is built: each has its words, nothing is left."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from mix_project import SMALL

pytestmark = pytest.mark.env

CONFLICT = SMALL.replace(
    '["python-dateutil"]', '["python-dateutil==2.8.2", "python-dateutil==2.9.0"]'
)
NO_SUCH = SMALL.replace("python-dateutil", "py-port-no-such-package-anywhere")
DATEUTIL = "import dateutil; dateutil.__name__"
WORKS = '{:ok, "dateutil"}'
# Nobody listens there.
DEAD = "http://127.0.0.1:9"
NO_WAY_OUT = {"HTTPS_PROXY": DEAD, "HTTP_PROXY": DEAD, "ALL_PROXY": DEAD, "UV_HTTP_RETRIES": "0"}


def can_unshare():
    return os.geteuid() == 0 and os.system("unshare --net --mount true 2>/dev/null") == 0


def without_network(*command):
    """Cut off for real where root can, behind a dead proxy elsewhere."""
    return ("unshare", "--net", *command) if can_unshare() else command


def processes(word):
    """The pids of processes with this in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def nothing_is_built(host):
    assert host.built() is None
    assert host.directories() == []


@pytest.fixture
def built(host):
    """A project with a small environment, locked."""
    host.uv_init()
    done = host.mix("compile")
    assert done.status == 0, done
    assert host.built(), done
    return host


def test_frozen_and_offline_builds_from_lock_and_cache_alone(built):
    """What a production image does, with the network taken away."""
    built.uv_init(frozen="true", offline="true")
    lock = (built.path / "priv/py_port/default/uv.lock").read_text()
    again = built.run(*without_network("mix", "compile"), MIX_ENV="prod", **NO_WAY_OUT)
    assert again.status == 0, again
    assert built.built("prod"), again
    assert (built.path / "priv/py_port/default/uv.lock").read_text() == lock
    assert WORKS in built.eval(DATEUTIL, MIX_ENV="prod").said


def test_frozen_without_what_it_needs_fails_the_compilation(built):
    """In production a missing lock, or a cold cache, is an error and no warning."""
    built.uv_init(frozen="true", offline="true")
    cold = built.run(
        *without_network("mix", "compile"),
        MIX_ENV="prod",
        UV_CACHE_DIR=str(built.path / "cold"),
        XDG_CACHE_HOME=str(built.path / "cold"),
        **NO_WAY_OUT,
    )
    assert cold.status == 1, cold
    assert "This build is offline, and something is not in uv's cache" in cold.said
    assert built.built("prod") is None
    (built.path / "priv/py_port/default/uv.lock").unlink()
    unlocked = built.mix("compile", MIX_ENV="prod")
    assert unlocked.status == 1, unlocked
    assert "mix py_port.lock" in unlocked.said


def test_a_lock_that_does_not_match_is_not_resolved_in_silence(built):
    """The words say what to run, running it helps, and until then what was built is left alone."""
    record = built.built()
    built.uv_init(SMALL.replace('"]', '", "idna"]'))
    stale = built.mix("compile")
    assert stale.status == 0, stale
    assert "Run `mix py_port.lock`" in stale.said
    assert "needs to be updated" in stale.said
    assert built.built() == record
    assert "#PyPort.Error<:unavailable" in built.eval("1").said
    locked = built.mix("py_port.lock")
    assert (locked.status, "Wrote priv/py_port/default/uv.lock" in locked.said) == (0, True), locked
    done = built.mix("compile")
    assert " + idna==" in done.said
    assert "{:ok, 1}" in built.eval("import idna; 1").said


@pytest.mark.parametrize(
    ("toml", "uvs", "ours"),
    [
        (CONFLICT, "requirements are unsatisfiable", "These versions cannot stand together"),
        (NO_SUCH, "py-port-no-such-package-anywhere", "No package of that name is on the index"),
        (SMALL.replace(">=3.11", "==3.99.*"), "3.99", "No Python that fits requires-python"),
        (SMALL.replace("[project]", "[project"), "TOML parse error", "says above where"),
    ],
    ids=["conflict", "no-such-package", "no-such-python", "no-toml"],
)
def test_what_uv_refuses_is_said_in_its_own_words_and_ours(host, toml, uvs, ours):
    """The compilation goes on, requests are told, nothing is left."""
    host.uv_init(toml)
    done = host.mix("compile")
    assert done.status == 0, done
    folded = re.sub(r"\s+", " ", done.said)
    assert uvs in folded, done
    assert ours in folded, done
    nothing_is_built(host)
    assert not (host.path / "priv/py_port/default/uv.lock").exists()
    answer = host.eval("1")
    assert "#PyPort.Error<:unavailable" in answer.said
    assert ours in re.sub(r"\s+", " ", answer.said)


def test_no_network(host):
    """Told from a wrong name, with what to do behind a proxy."""
    host.uv_init()
    cold = str(host.path / "cold")
    done = host.run("mix", "compile", UV_CACHE_DIR=cold, XDG_CACHE_HOME=cold, **NO_WAY_OUT)
    assert done.status == 0, done
    assert "The package index cannot be reached" in done.said, done
    nothing_is_built(host)


@pytest.mark.skipif(not can_unshare(), reason="needs root, to mount a small disk")
def test_a_full_disk(host):
    """A disk of two megabytes: the words say so, and a larger one helps."""
    host.uv_init()
    (host.path / "_build/dev/py_port").mkdir()
    small = "mount -t tmpfs -o size=2m tmpfs _build/dev/py_port && mix compile"
    # The wheel of the port server has to come from somewhere else than the full disk.
    done = host.run(
        "unshare", "--mount", "sh", "-c", small + "; ls -A _build/dev/py_port", UV_LINK_MODE="copy"
    )
    assert "The disk is full" in done.said, done
    assert not done.said.rstrip().endswith(".term"), done
    assert host.mix("compile").status == 0
    assert WORKS in host.eval(DATEUTIL).said


def test_a_killed_build_is_never_taken_for_a_whole_one(host):
    """Killed without a chance to tidy up: uv ends with it, and the next build does everything."""
    host.uv_init()
    process = host.popen("mix", "compile", XDG_CACHE_HOME=str(host.path / "cold"))
    deadline = time.monotonic() + 120
    base = host.path / "_build/dev/py_port"
    while not list(base.glob("default-*/venv/pyvenv.cfg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert host.built() is None
    deadline = time.monotonic() + 20
    while processes(str(base)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(str(base)) == []
    left = host.directories()
    assert left

    done = host.mix("compile")
    assert done.status == 0, done
    assert "Waiting for" not in done.said
    assert WORKS in host.eval(DATEUTIL).said
    assert not set(left) & set(host.directories())


def test_two_builds_at_once(host):
    """One builds, the other waits, says for whom, and has nothing left to do."""
    host.uv_init()
    both = [host.popen("mix", "py_port.sync") for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("is ready" in words for words in said) == 1, said
    assert len(host.directories()) == 1
    assert WORKS in host.eval(DATEUTIL).said


def another_python():
    """A Python of another minor version: the system's, or one beside the tests' own (pyenv)."""
    ours = sys.version_info[:2]
    for minor in (11, 12, 13, 14):
        beside = Path(sys.base_prefix).parent.glob(f"3.{minor}.*/bin/python3.{minor}")
        for path in (*beside, Path(f"/usr/bin/python3.{minor}")):
            if (3, minor) != ours and path.exists():
                return path
    return None


@pytest.mark.skipif(another_python() is None, reason="only one Python here")
def test_a_python_that_was_replaced_is_refused_by_name_and_version(built):
    """Another version behind the environment, as an upgrade of the system puts it there."""
    other = another_python()
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    python = next((built.path / "_build/dev/py_port").glob("default-*/venv/bin/python"))
    python.unlink()
    python.symlink_to(other)
    version = built.run(other, "-V").said.split()[1]
    answer = re.sub(r"\s+", " ", built.eval("1").said)
    assert "#PyPort.Error<:unavailable" in answer
    assert f"Python {version} runs, and the packages of the environment :default are" in answer
    assert f"are for Python {minor}" in answer
    shutil.rmtree(built.path / "_build/dev/py_port")
    assert WORKS in built.eval(DATEUTIL).said
