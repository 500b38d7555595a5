"""What people's code may import from `port_server`."""

import subprocess
import sys

import pytest

import port_server


def test_every_name_that_is_promised_is_there():
    """And `import *` works."""
    for name in port_server.__all__:
        assert getattr(port_server, name) is not None
    names = {}
    exec("from port_server import *", names)
    assert set(port_server.__all__) <= set(names)
    assert port_server.__all__ == sorted(port_server.__all__)


def test_a_name_that_is_not_is_pythons_own_error():
    """With the module's name in it."""
    with pytest.raises(AttributeError, match="module 'port_server' has no attribute 'nothing'"):
        _ = port_server.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from port_server import nothing")


def test_the_codec_alone_brings_nothing_of_a_server():
    """`port_server.etf` is a library of its own."""
    code = (
        "import sys, port_server.etf; "
        "print([name for name in sys.modules if name.startswith('port_server.') "
        "and not name.startswith('port_server.etf')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_outside_of_a_server_there_is_no_beam():
    """The error says so."""
    for use in (lambda: port_server.call("Enum", "sum", [[1]]),):
        with pytest.raises(RuntimeError, match="no BEAM"):
            use()
