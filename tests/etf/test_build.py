"""The extension is there where it can be, it is not missed where not, and a start stays cheap."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from port_server.etf import codec_name

ROOT = pathlib.Path(__file__).parents[2]
LOOK = "import port_server.etf as e; print(e.codec_name, e.decode(e.encode([1, 'a', None])))"


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on the PATH")
def test_the_extension_was_built():
    """Where there is a compiler an install has the binary: optional must not mean forgotten."""
    assert "native" in (codec_name, os.environ.get("PORT_SERVER_CODEC", ""))


def test_the_fallback_can_be_asked_for():
    """PORT_SERVER_CODEC=erlang-py takes the other codec, for comparing and for doubt."""
    assert python(LOOK, PORT_SERVER_CODEC="erlang-py") == "erlang-py [1, 'a', None]"


def test_importing_the_codec_imports_little():
    """Nothing that costs milliseconds stands on the way to the first frame."""
    code = "import sys; a = set(sys.modules); import port_server.etf; print(*set(sys.modules) - a)"
    loaded = set(python(code, PORT_SERVER_CODEC="").split())
    own = {name for name in loaded if name.split(".")[0] == "port_server"}
    if codec_name == "native":
        assert loaded - own <= {"__future__"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Copy what a wheel is built from, without anything built before."""
    to = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    shutil.copytree(
        ROOT / "port_server",
        to / "port_server",
        ignore=shutil.ignore_patterns("*.so", "_stub", "__pycache__"),
    )
    return to


@pytest.mark.skipif(shutil.which("uv") is None, reason="no uv on the PATH to build with")
@pytest.mark.parametrize(
    ("compiler", "codec"),
    [
        pytest.param("/bin/false", "erlang-py", id="without-compiler"),
        pytest.param(
            "cc",
            "native",
            id="with-compiler",
            marks=pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
        ),
    ],
)
@pytest.mark.slow
def test_a_wheel_is_built_with_and_without_a_compiler(source, tmp_path, compiler, codec):
    """Without one it works on erlang-py; with one it holds a binary for every Python from 3.11."""
    shutil.rmtree(source / "build", ignore_errors=True)
    subprocess.run(
        ["uv", "build", "--wheel", "--quiet", "--python", sys.executable, "-o", tmp_path, source],
        env={**os.environ, "CC": compiler},
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        binaries = [name for name in archive.namelist() if name.endswith(".so")]
        stubs = [one for one in archive.infolist() if one.filename.endswith("/_stub")]
        archive.extractall(tmp_path / "unpacked")
    if codec == "native":
        assert sorted(binaries) == [
            "port_server/etf/native.abi3.so",
            "port_server/server/_fast.abi3.so",
            "port_server/server/_watch.abi3.so",
        ]
        assert "-cp311-abi3-" in wheel.name
        # The program of `preload:` can be executed after an install.
        assert [bool(one.external_attr >> 16 & 0o111) for one in stubs] == [True]
    else:
        assert binaries == []
        assert stubs == []
    assert python(LOOK, PYTHONPATH=str(tmp_path / "unpacked"), PORT_SERVER_CODEC="") == (
        f"{codec} [1, 'a', None]"
    )
