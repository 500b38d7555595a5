"""The extension as a module: several instances, sub-interpreters, unloading."""

import gc
import importlib.util
import sys
import weakref

import pytest

from port_server.etf import Atom

native = pytest.importorskip(
    "port_server.etf.native", reason="the extension is missing; test_build.py says why"
)


def another():
    spec = importlib.util.find_spec("port_server.etf.native")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_instances_share_nothing_but_the_types():
    """All state belongs to one module object: a second one works, and goes without a trace."""
    module = another()
    assert module is not native
    data = native.encode({Atom("key"): ["text", 1.5, {"k": 2**70}]})
    assert module.decode(data) == native.decode(data)
    assert module.encode(module.decode(data)) == data
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
    assert native.encode(native.decode(data)) == data


def test_functions_keep_their_module_alive():
    """A function outlives the last other reference to its module."""
    encode = another().encode
    gc.collect()
    assert encode([1]) == native.encode([1])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="own GILs came with Python 3.12")
def test_it_works_in_a_sub_interpreter_with_its_own_gil():
    """One process, several interpreters: each has its own codec."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    interpreters = importlib.import_module(name)
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from port_server.etf import codec_name, decode, encode\n"
        "assert codec_name == 'native'\n"
        "assert decode(encode([1, {'a': None}])) == [1, {'a': None}]\n"
    )
    number = interpreters.create()
    try:
        failed = interpreters.run_string(number, code)
    finally:
        interpreters.destroy(number)
    assert failed is None


def test_the_signatures_can_be_read():
    """help() and editors see what the functions take."""
    assert native.decode.__text_signature__.startswith("($module, buffer, /, *, binary_as='str'")
    assert "default=None" in native.encode.__text_signature__
