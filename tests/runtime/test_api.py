"""What people's code may import from `port_server`."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import port_server
import port_server.etf
from port_server.etf import fallback, fallback_encode


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


def without_documentation(module):
    """Public functions and classes of a module, and the methods of those, that say nothing."""
    for name in module.__all__:
        thing = getattr(module, name)
        if callable(thing):
            # A class may have that of its base; one of its own is what is wanted.
            if not thing.__doc__:
                yield name
            if inspect.isclass(thing):
                yield from (
                    f"{name}.{member}"
                    for member, value in vars(thing).items()
                    if not member.startswith("_")
                    # Attributes are told of in the text of the class.
                    and (callable(value) or isinstance(value, (property, classmethod)))
                    and not inspect.getdoc(getattr(thing, member))
                )


@pytest.mark.parametrize("module", [port_server, port_server.etf], ids=lambda m: m.__name__)
def test_everything_public_is_documented(module):
    """For pydoc and help()."""
    assert list(without_documentation(module)) == []


def test_both_codecs_say_the_same_of_themselves():
    """Whoever reads help(port_server.etf.decode) learns what holds for the other one, too."""
    native = pytest.importorskip("port_server.etf.native")
    for name in ("decode", "read_term", "encode", "encode_parts"):
        writing = name.startswith("encode")
        other = getattr(fallback_encode if writing else fallback, name)
        assert inspect.getdoc(getattr(native, name)) == inspect.getdoc(other)
        assert "Args:" in inspect.getdoc(other)
        assert "Raises:" in inspect.getdoc(other)


def test_types_are_told_to_type_checkers():
    """The marker of PEP 561 is part of the package."""
    assert (Path(port_server.__file__).parent / "py.typed").exists()
