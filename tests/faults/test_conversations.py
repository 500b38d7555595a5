"""Conversations made up from a seed, with the ordinary build; `make fuzz` has many more."""

import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parent.parent / "fuzz" / "conversations.py"


@pytest.fixture(scope="module")
def conversations():
    spec = importlib.util.spec_from_file_location("conversations", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(10))
def test_a_conversation(conversations, seed, tmp_path, monkeypatch):
    """One final reply for each request, whole frames, and an end in peace, whatever was sent."""
    monkeypatch.chdir(tmp_path)
    assert conversations.converse(seed) is None
