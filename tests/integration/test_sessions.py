"""Sessions through a real server: namespaces that last."""

import pytest
from port_client import Client, atoms

from port_server.etf import Atom


@pytest.fixture
def server():
    with Client({"init_code": "import math\ndef double(x): return 2 * x"}) as client:
        yield client


def opened(server, name):
    """Open a session; give its reply."""
    request = server.next_id()
    server.tell(Atom("open_session"), request, name)
    return server.reply(request)


@pytest.fixture
def session(server):
    assert opened(server, b"\xff\x00one")[2] is None
    return b"\xff\x00one"


def test_names_last_in_a_session(server, session):
    """Assigned, passed as globals, imported or defined: all of them stay."""
    assert server.value("x = 1", session=session) is None
    server.value("import json\ndef f(): return x + y", {"y": 10}, session=session)
    assert server.value("x + y", session=session) == 11
    assert server.value("json.dumps([f()])", session=session) == b"[11]"
    assert server.value("x = 5\nreturn f()", session=session) == 15


def test_a_session_sees_what_init_code_defined(server, session):
    """And may change it for itself alone."""
    assert server.value("double(math.floor(2.5))", session=session) == 4
    server.value("double = None", session=session)
    assert server.value("double(1)") == 2


def test_sessions_and_plain_requests_never_see_each_other(server, session):
    """Neither another session's names nor a plain request's."""
    opened(server, b"two")
    server.value("secret = 1", session=session)
    for options in ({}, {"session": b"two"}):
        assert server.error("secret", **options)["type"] == b"NameError"
    server.value("plain = 1")
    assert server.error("plain", session=session)["type"] == b"NameError"


def test_what_failed_half_way_stays_half_done(server, session):
    """As at Python's own prompt."""
    assert server.error("a = 1\nb = 1 / 0", session=session)["type"] == b"ZeroDivisionError"
    assert server.value("a", session=session) == 1


def test_globals_that_are_no_names_change_nothing(server, session):
    """All are put in or none."""
    assert server.error("1", {"fine": 1, "not fine": 2}, session=session)["kind"] == "decode"
    assert server.error("fine", session=session)["type"] == b"NameError"


def test_an_unknown_session_is_unavailable(server):
    """The code is not run; for a call the same."""
    error = server.error("import sys; sys.ran = True", session=b"none")
    assert error["kind"] == "unavailable"
    assert error["begun"] is False
    assert b"is not open" in error["message"]
    assert server.call("math:sqrt", [4.0], session=b"none")[2]["kind"] == "unavailable"
    assert server.value("import sys; hasattr(sys, 'ran')") is False


def test_a_name_can_be_taken_once(server, session):
    """Until it is closed."""
    reply = opened(server, session)
    assert (reply[0], reply[2]["kind"]) == ("error", "protocol")
    server.tell(Atom("close_session"), session)
    assert opened(server, session)[0] == "ok"


@pytest.mark.parametrize("name", [Atom("a"), 1, "text" * 100, [1]])
def test_names_are_binaries(server, name):
    """Of any bytes and any length; anything else is an error with an id."""
    assert opened(server, name)[0] == ("ok" if isinstance(name, str) and len(name) > 1 else "error")
    reply = server.eval("1", session=name)
    assert reply[0] == ("ok" if isinstance(name, str) and len(name) > 1 else "error")


def test_a_closed_session_is_gone(server, session):
    """Its values go with it, and its name is unknown."""
    server.value(
        "import sys\nsys.gone = False\nclass A:\n  def __del__(self): sys.gone = True\na = A()",
        session=session,
    )
    server.tell(Atom("close_session"), session)
    server.tell(Atom("close_session"), b"never opened")
    assert server.error("a", session=session)["kind"] == "unavailable"
    assert server.value("import gc, sys; gc.collect(); sys.gone") is True


def test_values_without_cycles_go_at_once(server, session):
    """Functions defined in the session, which all refer to it, keep nothing alive."""
    server.value(
        "import sys, gc, threading, weakref\ngc.disable()\nkept = threading.Event()\n"
        "sys.ref = weakref.ref(kept)\n"
        "def f(): return kept\ndef g(x=1): return f()\n",
        session=session,
    )
    server.tell(Atom("close_session"), session)
    assert server.value("import sys; sys.ref() is None") is True


def test_a_function_outlives_its_session(server, session):
    """A handle that is still held keeps what it needs."""
    handle = server.value("base = 40\ndef f(x): return base + x\nf", session=session)
    server.tell(Atom("close_session"), session)
    assert server.call(handle, [2])[2] == 42


def test_closing_waits_for_what_runs(server, session, gate):
    """A request that is running goes on undisturbed; those that wait find no session."""
    request = server.send_eval(
        f"x = 1\nprint('in', flush=True)\n{gate.asleep}x + 1", options={"session": session}
    )
    server.receive(lambda frame: frame[0] == "output")
    server.tell(Atom("close_session"), session)
    late = server.send_eval("x", options={"session": session})
    gate.open()
    assert server.reply(request)[2] == 2
    assert server.reply(late)[2]["kind"] == "unavailable"


def test_opening_comes_before_the_requests_of_its_batch(server):
    """A client need not wait for the answer."""
    server.tell_together(
        (Atom("open_session"), b"o", b"s"),
        (Atom("eval"), b"a", atoms({"session": b"s"}), "x = 1", {}),
        (Atom("eval"), b"b", atoms({"session": b"s"}), "x", {}),
    )
    assert server.reply(b"b")[2] == 1


def test_source_lines_are_those_of_the_snippet_that_defined_it(server, session):
    """In an error's frames, in tracebacks that the code prints itself, and for inspect."""
    server.value("def f():\n  return 1 / 0  # the first", session=session)
    error = server.error("f()  # the second", session=session)
    assert [frame["source"] for frame in error["frames"]] == [
        b"f()  # the second",
        b"return 1 / 0  # the first",
    ]
    code = "try: f()  # the third\nexcept Exception: x = __import__('traceback').format_exc()\nx"
    text = server.value(code, session=session)
    assert b"try: f()  # the third" in text
    assert b"return 1 / 0  # the first" in text
    source = server.value("import inspect; inspect.getsource(f)", session=session)
    assert source == b"def f():\n  return 1 / 0  # the first\n"


def test_the_loader_is_the_running_snippets(server, session):
    """So that tools that ask it for source get the right one."""
    code = "__loader__.get_source(__name__)"
    assert server.value(code, session=session) == code.encode() + b"\n"


def test_a_hundred_sessions_leave_nothing(server):
    """Opened, used, closed: the server is as before."""
    count = (
        "import gc\nfrom port_server.runtime.namespace import Namespaces\n"
        "[n.sessions for n in gc.get_objects() if type(n) is Namespaces]"
    )
    for number in range(100):
        opened(server, b"s%d" % number)
        server.value("data = [0] * 1000", session=b"s%d" % number)
    assert server.value(count) == [100]
    for number in range(100):
        server.tell(Atom("close_session"), b"s%d" % number)
    assert server.value(count) == [0]
