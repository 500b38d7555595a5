"""What a start costs: which modules are there when hello has been said."""

import subprocess
import sys

import pytest
from conftest import eval_

from port_server.etf import Atom, codec_name

# Beyond what `python -c pass` loads in the same environment. Each earns its place on the start
# path; add to it only what was measured.
ALLOWED = {
    "__future__",
    "_contextvars",
    "_struct",
    "faulthandler",
    "fcntl",
    "gc",
    "io",  # there anyway before Python 3.15
    "select",
    "_collections",
    "_functools",
    "_signal",
    "itertools",
    "atexit",
    "binascii",
    "errno",
    "time",
    "zlib",
    "_queue",  # built in
    "threading",  # both after hello: the main thread has to be the first that imports it
    "_weakrefset",
}


@pytest.mark.skipif(codec_name != "native", reason="erlang-py brings modules of its own")
def test_nothing_slow_is_imported_before_hello(server):
    """sys.modules after hello is what Python loads anyway, ours, and a short list."""
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    loaded = {name.decode() for name in server.value("list(__import__('sys').modules)")}
    extra = {name for name in loaded - set(plain) if not name.startswith("port_server")}
    assert extra <= ALLOWED, extra - ALLOWED


def test_a_first_failure_is_what_brings_traceback_in(server):
    """Not the start: most servers never need it for a while."""
    assert server.value("import sys; 'traceback' in sys.modules") in (False, True)
    server.error("1 / 0")
    assert server.value("import sys; 'traceback' in sys.modules") is True


def test_structlog_is_loaded_by_the_first_record_only(server):
    """A server that has nothing to say never pays for it."""
    assert server.value("import sys; 'structlog' in sys.modules") is False
    server.send((Atom("dance"),), eval_("import sys; 'structlog' in sys.modules"))
    assert server.receive()[2] is True
