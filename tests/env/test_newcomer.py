"""docs/environments.md, followed to the letter: a new project, pandas, a release that moves."""

import shutil

import pytest
from mix_project import Host, block, commands

pytestmark = pytest.mark.env


@pytest.fixture(scope="module")
def app(template, session, variables):
    """The page's project, configured and compiled as the page says."""
    path = session / "newcomer"
    shutil.copytree(template.path, path, symlinks=True)
    host = Host(path, variables)
    (path / "config").mkdir()
    (path / "config/config.exs").write_text(block("# config/config.exs"))
    first = host.run("sh", "-c", commands("Compile. uv says what it does"))
    assert first.status == 0, first
    host.first = first
    return host


def test_compiling_shows_what_uv_does_and_leaves_a_lock(app):
    """Long steps show progress, and the lock is where it is committed."""
    assert "building the Python environment :default with uv" in app.first.said
    assert " + pandas==" in app.first.said
    assert "codec: native" in app.first.said
    lock = (app.path / "priv/py_port/default/uv.lock").read_text()
    assert 'name = "numpy"' in lock
    assert "sha256:" in lock


def test_nothing_changed_is_nothing_done(app):
    """A second compile does not even look for uv."""
    record = app.built()
    again = app.mix("compile", UV_OFFLINE="1")
    assert (again.status, again.said) == (0, "")
    assert app.built() == record


def test_numpy_and_pandas_from_elixir(app):
    """The command of the page, and the answer of the page."""
    answer = app.run("sh", "-c", commands("And use it:"))
    assert (answer.status, answer.plain) == (0, "3.0\n")
    assert "{:ok, 499500}" in app.eval("import numpy as np; np.arange(1000).sum()").said


def test_the_doctor_finds_everything_well(app):
    """A real round trip, with the codec that answered."""
    doctor = app.mix("py_port.doctor")
    assert doctor.status == 0, doctor
    for words in ("Everything works.", "round trip:", "codec native", "pandas", "glibc", "uv:"):
        assert words in doctor.said, words


def test_the_release_runs_elsewhere(app, session):
    """Moved to another directory, the original deleted, on a disk that nobody writes to."""
    release = app.run("sh", "-c", commands("## The release"))
    assert release.status == 0, release
    assert "copying the Python environment :default" in release.said
    moved = session / "moved"
    shutil.move(app.path / "_build/prod/rel/my_app", moved)
    hidden = session / "hidden"
    app.path.rename(hidden)
    try:
        code = "import numpy as np, pandas as pd; [np.arange(9).sum(), pd.__file__]"
        elixir = (
            "{:ok, _} = Application.ensure_all_started(:py_port);"
            f'IO.inspect(PyPort.eval("{code}", %{{}}, timeout: 120_000))'
        )
        answer = app.run(moved / "bin/my_app", "eval", elixir, cwd=session)
    finally:
        hidden.rename(app.path)
    assert answer.status == 0, answer
    assert "{:ok,\n [36," in answer.said
    assert f"{moved}/py_port/default/" in answer.said
    # Bytecode by hash, which nobody checks (PEP 552: the flags behind the magic number).
    packages = next((moved / "py_port/default").rglob("site-packages"))
    for name in ("numpy", "pandas", "port_server"):
        (cached,) = (packages / name / "__pycache__").glob("__init__.*.pyc")
        assert cached.read_bytes()[4:8] == (1).to_bytes(4, "little"), name
