"""Both codecs behind one fixture: every promise in this directory holds for each of them."""

import importlib
import types

import pytest

CODECS = ["fallback"]
try:
    importlib.import_module("port_server.etf.native")
    CODECS.insert(0, "native")
except ImportError:
    pass  # test_build.py fails where the extension should have been there


@pytest.fixture(params=CODECS)
def codec(request) -> types.ModuleType:
    """Give `decode`, `read_term`, `encode`, `encode_parts` of one codec."""
    return importlib.import_module(f"port_server.etf.{request.param}")
