"""Hooks on imports: they see a module when it is there, and leave no trace on it."""

import importlib
import importlib.util
import sys

import pytest

from port_server.runtime.imports import ImportHooks


@pytest.fixture
def hooks():
    hooks = ImportHooks()
    hooks.install()
    yield hooks
    hooks.remove()


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hooked_module.py").write_text("seen = __loader__\nvalue = 1\n")
    yield "hooked_module"
    sys.modules.pop("hooked_module", None)


def test_a_hook_runs_after_the_import(hooks, module):
    """With the module complete."""
    values = []
    hooks.add(module, lambda loaded: values.append(loaded.value))
    importlib.import_module(module)
    assert values == [1]


def test_a_hook_runs_at_once_for_what_is_there(hooks):
    """Nothing is imported for it."""
    seen = []
    hooks.add("sys", seen.append)
    assert seen == [sys]


def test_the_module_keeps_its_loader(hooks, module):
    """Tools that ask it for source find what they expect."""
    hooks.add(module, lambda _loaded: None)
    loaded = importlib.import_module(module)
    assert loaded.__loader__ is loaded.__spec__.loader is loaded.seen
    assert type(loaded.__loader__).__name__ == "SourceFileLoader"


def test_looking_is_not_importing(hooks, module):
    """`find_spec` runs no hook, and does not use it up; neither does a reload."""
    seen = []
    hooks.add(module, seen.append)
    assert importlib.util.find_spec(module) is not None
    assert seen == []
    loaded = importlib.import_module(module)
    importlib.reload(loaded)
    assert len(seen) == 2


def test_a_hook_that_fails_fails_no_import(hooks, module, capfd):
    """It is said, and that is all."""
    hooks.add(module, lambda _loaded: 1 / 0)
    assert importlib.import_module(module).value == 1
    assert "hooked_module could not be prepared: ZeroDivisionError" in capfd.readouterr().err


def test_a_module_that_is_not_there_is_not_there(hooks):
    """The error is Python's own."""
    hooks.add("no_such_module_at_all", lambda _loaded: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module_at_all'"):
        importlib.import_module("no_such_module_at_all")
