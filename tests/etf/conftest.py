"""Both codecs behind one fixture: what a test that takes it promises holds for each of them."""

import importlib
import os
import types

import hypothesis
import pytest

# The short run is the same every time and guards changes; ETF_LONG=1 (scripts/fuzz.sh) explores.
# No deadlines: a busy machine is not a bug.
hypothesis.settings.register_profile("short", deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1_000)
hypothesis.settings.load_profile("long" if os.environ.get("ETF_LONG") else "short")

CODECS = ["fallback"]
try:
    found = importlib.import_module("port_server.etf.native")
    # scripts/fuzz.sh means its sanitized build, and no other found on the way.
    assert str(found.__file__).startswith(os.environ.get("ETF_NATIVE_IN", ""))
    CODECS.insert(0, "native")
except ImportError:
    pass  # test_build.py fails where the extension should have been there


@pytest.fixture(params=CODECS)
def codec(request) -> types.ModuleType:
    """Give `decode`, `read_term`, `encode`, `encode_parts` of one codec."""
    return importlib.import_module(f"port_server.etf.{request.param}")
