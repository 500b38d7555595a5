"""Python calls into the BEAM, from every place that code may run in."""

import os
import time

import pytest
from conftest import eval_
from raw_client import WITHOUT_C, Port

from port_server.etf import Atom, Struct, decode, encode

OK, ERROR = Atom("ok"), Atom("error")


def callback(index=0, arity=1):
    return Struct("Elixir.PyPort.Callback", {Atom("index"): index, Atom("arity"): arity})


@pytest.fixture(params=["", WITHOUT_C], ids=["in C", "in Python"])
def port(request):
    with Port(init={"heartbeat_interval_ms": 0}, prelude=request.param) as port:
        yield port
        port.settled(calls=0, tasks=0, queue=0, streams=0)


def answer(port, call, value):
    port.tell(Atom("answer"), call, (OK, value))


def test_a_function_is_called_and_its_result_used(port):
    name = port.eval("f(20) + f(1)", {"f": callback(3)})
    for value in (20, 1):
        request, call, function, args = port.invoked()
        assert (request, function, args) == (name, 3, [value])
        answer(port, call, value * 2)
    assert port.value(name) == 42


def test_async_code_awaits_and_waits_for_many_at_once(port):
    code = "import asyncio\nawait asyncio.gather(*[f(n) for n in range(50)])"
    name = port.eval(code, {"f": callback()})
    calls = [port.invoked() for _ in range(50)]
    for _request, call, _function, args in reversed(calls):
        answer(port, call, args[0] + 1)
    assert port.value(name) == list(range(1, 51))


IN_MAIN = "import threading\nthreading.current_thread() is threading.main_thread()"
POOL = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    x = list(pool.map(f, range(20)))
x
"""
THREADS = """
import threading
x = []
threads = [threading.Thread(target=lambda n=n: x.append(f(n))) for n in range(20)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sorted(x)
"""
ONE_THREAD = """
import threading
x = []
def g():
    try:
        x.append(f(1))
    except BaseException as error:
        x.append(error)
thread = threading.Thread(target=g)
thread.start()
thread.join()
if isinstance(x[0], BaseException):
    raise x[0]
x
"""


@pytest.mark.parametrize("code", [POOL, THREADS])
def test_threads_call_while_main_waits_for_them(port, code):
    name = port.eval(code, {"f": callback()})
    for _ in range(20):
        _request, call, _function, args = port.invoked()
        answer(port, call, args[0])
    assert port.value(name) == list(range(20))


def test_requests_made_from_within_a_call_run_on_top_of_it_to_a_depth_of_fifty(port):
    names = [port.eval("f(n) + 1", {"f": callback(), "n": 0})]
    calls = []
    for depth in range(1, 50):
        calls.append(port.invoked()[1])
        names.append(port.eval("f(n) + 1", {"f": callback(), "n": depth}, parent=calls[-1]))
    answer(port, port.invoked()[1], 0)
    for depth in range(49, -1, -1):
        value = port.value(names[depth])
        assert value == 50 - depth
        if depth:
            answer(port, calls[depth - 1], value)


def test_endless_nesting_is_an_error_before_the_stack_ends(port):
    names = [port.eval("f(0)", {"f": callback()})]
    calls = []
    while True:
        message = port.others.get(timeout=5)
        if message[0] != "invoke":
            continue
        calls.append(message[2])
        names.append(port.eval("f(0)", {"f": callback()}, parent=calls[-1]))
        assert len(calls) < 500
        if len(calls) == 64:
            break
    error = port.error(names[-1])
    assert error["type"] == b"RecursionError"
    assert b"max_nested_calls" in error["message"]
    for name, call in reversed(list(zip(names, calls, strict=False))):
        answer(port, call, 1)
        assert port.value(name) == 1


def test_deep_recursion_around_calls_is_pythons_own_error(port):
    code = "def g(n): return f(n) if n == 0 else g(n - 1)\ng(960)"
    assert port.error(port.eval(code, {"f": callback()}))["type"] == b"RecursionError"
    assert port.value(port.eval("1")) == 1


@pytest.mark.main_thread
def test_nothing_unrelated_runs_on_top_of_a_waiting_request(port):
    name = port.eval("f(1)", {"f": callback()})
    call = port.invoked()[1]
    other = port.eval("2")
    related = port.eval("3", parent=call)
    assert port.value(related) == 3
    port.nothing(other)
    answer(port, call, 1)
    assert port.value(name) == 1
    assert port.value(other) == 2


def test_async_requests_run_while_main_waits_for_a_call(port):
    name = port.eval("f(1)", {"f": callback()})
    call = port.invoked()[1]
    assert port.value(port.eval("import asyncio\nawait asyncio.sleep(0.01)\n5")) == 5
    assert port.status()["calls"] == 1
    answer(port, call, 1)
    assert port.value(name) == 1


def test_a_request_within_a_call_of_a_thread_runs_in_that_thread(port):
    """Main waits for the thread, and could not run it."""
    code = ONE_THREAD
    name = port.eval(code, {"f": callback()})
    call = port.invoked()[1]
    inner = port.eval(IN_MAIN, parent=call)
    assert port.value(inner) is False
    answer(port, call, 7)
    assert port.value(name) == [7]


def test_a_session_may_be_entered_again_from_within_a_call_of_its_own(port):
    port.tell(Atom("open_session"), port.new_id(), b"s")
    name = port.eval("x = 1\nf(1)\nx", {"f": callback()}, session=b"s")
    call = port.invoked()[1]
    port.value(port.eval("x = 2", session=b"s", parent=call))
    answer(port, call, None)
    assert port.value(name) == 2


def test_a_failure_is_an_exception_with_both_traces(port):
    name = port.eval("f(1)", {"f": callback()})
    description = {
        Atom("kind"): Atom("error"),
        Atom("type"): "ArgumentError",
        Atom("message"): "no such thing",
        Atom("stacktrace"): "    lib/app.ex:7: App.f/1",
    }
    port.tell(Atom("answer"), port.invoked()[1], (ERROR, description))
    error = port.error(name)
    assert error["type"].endswith(b"ElixirError")
    assert error["message"] == b"** (ArgumentError) no such thing"
    assert b"lib/app.ex:7" in error["traceback"]
    assert b"line 1, in <module>" in error["traceback"]


@pytest.mark.parametrize("result", [1, (Atom("ok"),), (Atom("maybe"), 1), (ERROR, 5)])
def test_an_answer_of_a_strange_shape_is_an_exception(port, result):
    name = port.eval("f(1)", {"f": callback()})
    port.tell(Atom("answer"), port.invoked()[1], result)
    assert port.error(name)["type"].endswith(b"ElixirError")


@pytest.mark.parametrize("code", ["f(1)", "import asyncio\nawait f(1)", ONE_THREAD])
def test_a_call_that_is_never_answered_ends_with_the_cancel_of_its_request(port, code):
    """So it is when the caller dies: its request is cancelled."""
    name = port.eval(code, {"f": callback()})
    call = port.invoked()[1]
    port.tell(Atom("cancel"), name)
    assert port.error(name)["kind"] == "cancelled"
    port.settled(calls=0, tasks=0)
    answer(port, call, 1)  # too late
    assert port.value(port.eval("1")) == 1


def test_cancelling_an_outer_request_ends_every_level_down_to_it(port):
    outer = port.eval("try:\n  f(1)\nfinally:\n  x = 1", {"f": callback()})
    first = port.invoked()[1]
    inner = port.eval("f(2)", {"f": callback()}, parent=first)
    port.invoked()
    port.tell(Atom("cancel"), outer)
    assert port.error(inner)["kind"] == "cancelled"
    assert port.error(outer)["kind"] == "cancelled"


def test_a_function_can_be_called_after_its_request(port):
    port.value(port.eval("import builtins; builtins.f = f", {"f": callback(7)}))
    name = port.eval("f(1)")
    request, call, function, args = port.invoked()
    assert (request, function, args) == (name, 7, [1])
    answer(port, call, 2)
    assert port.value(name) == 2
    name = port.eval(
        "import threading; t = threading.Thread(target=f, args=[2], daemon=True); t.start()"
    )
    port.value(name)
    _request, call, function, args = port.invoked()
    assert (function, args) == (7, [2])
    answer(port, call, None)


def test_the_number_of_arguments_is_checked(port):
    assert port.error(port.eval("f(1, 2)", {"f": callback()}))["type"] == b"TypeError"


def test_an_argument_that_cannot_be_written_is_an_error_of_the_call(port):
    error = port.error(port.eval("x = []\nx.append(x)\nf(x)", {"f": callback()}))
    assert error["type"].endswith(b"EncodeError")
    assert b"args" in error["message"]


def test_objects_go_out_in_arguments(port):
    name = port.eval("f(object())", {"f": callback()})
    _request, call, _function, (handle,), ids = port.invoked()
    assert handle["id"] == ids[0]
    answer(port, call, None)
    assert port.value(name) is None
    port.tell(Atom("release"), ids)
    port.settled(objects=0)


def test_call_names_a_function_of_the_beam(port):
    name = port.eval("import port_server; port_server.call('Enum', 'sum', [[1, 2]])")
    request, call, function, args = port.invoked()
    assert (request, function, args) == (name, (b"Elixir.Enum", b"sum"), [[1, 2]])
    answer(port, call, 3)
    assert port.value(name) == 3


PID = decode(b"\x83Xw\x0dnonode@nohost" + bytes((0, 0, 0, 85, 0, 0, 0, 0, 0, 0, 0, 0)))
SEND = "from port_server import Atom, send\n"


def sent(port):
    """Wait for the next message for a process: who it is for, and what it is."""
    kind, pid, term = port.others.get(timeout=5)
    if kind != "send":
        return sent(port)
    return pid, term


@pytest.mark.parametrize(
    ("term", "arrives"),
    [
        ("1", 1),
        ("(Atom('progress'), 0.5)", (Atom("progress"), 0.5)),
        ("{'a': [None, 'é', b'\\xff']}", {b"a": [None, "é".encode(), b"\xff"]}),
        ("to", PID),
        ("'x' * 300_000", b"x" * 300_000),
    ],
)
def test_a_message_arrives_as_it_was_sent(port, term, arrives):
    name = port.eval(SEND + f"send(to, {term})", {"to": PID})
    assert port.value(name) is None
    assert sent(port) == (PID, arrives)


@pytest.mark.parametrize(
    "code",
    [
        "for n in range(500): send(to, n)",
        "import asyncio\nfor n in range(500):\n  send(to, n)\n  await asyncio.sleep(0)",
        """import threading
def run():
    for n in range(500): send(to, n)
thread = threading.Thread(target=run)
thread.start()
thread.join()""",
    ],
    ids=["main", "async", "thread"],
)
def test_messages_arrive_in_order_wherever_they_are_sent(port, code):
    assert port.value(port.eval(SEND + code, {"to": PID})) is None
    assert [sent(port)[1] for _ in range(500)] == list(range(500))


def test_messages_log_records_output_and_reply_keep_their_order(server):
    """All of one thread, on one pipe: what was said first is read first."""
    code = (
        "from port_server import send\nimport logging\nfor n in range(3):\n  send(to, n)\n"
        "  logging.warning('%d', n)\n  print(n, flush=True)"
    )
    server.send(eval_(code, {"to": PID}))
    said = [server.receive() for _ in range(10)]
    assert [message[0] for message in said] == ["send", "log", "output"] * 3 + ["ok"]
    texts = [message[3 if message[0] == "output" else 2] for message in said[:9]]
    assert texts == [0, b"0", b"0\n", 1, b"1", b"1\n", 2, b"2", b"2\n"]


def test_what_init_code_says_comes_after_hello(start):
    """Hello is the first frame, whatever is sent before; from threads, and large, as well."""
    code = (
        "import logging, threading\nfrom port_server import *\nfrom port_server.etf import decode\n"
        "to = decode(pid)\n"
        "def run():\n  for n in range(100): send(to, 'x' * n * 500)\n"
        "send(to, 1)\nlogging.warning('two')\n"
        "thread = threading.Thread(target=run)\nthread.start()\nthread.join()\n"
        "send(to, 'x' * 2_000_000)"
    ).replace("pid", repr(encode(PID)))
    init = {Atom("init_code"): code.encode(), Atom("heartbeat_interval_ms"): 0}
    server = start(init=(Atom("init"), 1, init))
    assert server.hello[0] == "hello"
    said = [server.receive() for _ in range(103)]
    assert [message[0] for message in said] == ["send", "log", *["send"] * 101]
    assert [len(message[2]) for message in said[2:]] == [*range(0, 50_000, 500), 2_000_000]
    assert server.value("1") == 1


def test_nothing_is_said_of_init_code_that_fails_but_why(start):
    code = "from port_server import *\nsend(decode(pid), 1)\n1 / 0".replace(
        "decode(pid)", f"__import__('port_server.etf').etf.decode({encode(PID)!r})"
    )
    server = start(init=None)
    server.send((Atom("init"), 1, {Atom("init_code"): code.encode()}))
    [(kind, why)] = server.rest()
    assert (kind, why["type"]) == ("goodbye", b"ZeroDivisionError")
    assert server.wait() == 1


@pytest.mark.parametrize(
    ("code", "type", "words"),
    [
        ("send(3, 1)", b"TypeError", b"`to` is a pid, a name or (name, node), not int"),
        ("send(to, [1, '\\ud800'])", b"port_server.etf.errors.EncodeError", b"message[1]"),
        ("x = []; x.append(x); send(to, x)", b"port_server.etf.errors.EncodeError", b"message[0]"),
    ],
)
def test_a_message_that_cannot_be_sent_is_an_exception_in_the_code(port, code, type, words):
    error = port.error(port.eval(SEND + code, {"to": PID}))
    assert (error["kind"], error["type"]) == ("python", type)
    assert words in error["message"]


def test_main_waiting_answers_pings(port):
    name = port.eval("f(1)", {"f": callback()})
    call = port.invoked()[1]
    took = []
    for _ in range(3):  # what else the machine does only ever adds
        began = time.monotonic()
        assert port.status()["calls"] == 1
        took.append(time.monotonic() - began)
    assert min(took) < 0.2
    answer(port, call, 1)
    assert port.value(name) == 1


def framed(*message):
    term = encode(message)
    return len(term).to_bytes(4, "big") + term


def test_an_answer_may_come_in_pieces_or_together_with_what_comes_next(port):
    """However frames are cut into reads: the same value, and nothing that came with it is lost."""
    writes = port.process.stdin.fileno()
    for cut in (2, 9, 20, 37):
        name = port.eval("f(1)", {"f": callback()})
        data = framed(Atom("answer"), port.invoked()[1], (OK, cut))
        os.write(writes, data[:cut])
        os.write(writes, data[cut:])
        assert port.value(name) == cut
    name = port.eval("f(1)", {"f": callback()})
    answered = framed(Atom("answer"), port.invoked()[1], (OK, 7))
    os.write(writes, answered + framed(Atom("eval"), b"together", {}, b"6 * 7", {}))
    assert port.value(name) == 7
    assert port.value(b"together") == 42


def test_the_rest_of_a_frame_is_no_answer(port, gate):
    """Whatever it looks like: the beginning was read while the arguments were being written."""
    code = f"""
import datetime
class Slow(datetime.tzinfo):
    def utcoffset(self, _time): exec({gate.asleep!r}); return datetime.timedelta(0)
    def dst(self, _time): return None
    def tzname(self, _time): return "Slow"
f(datetime.datetime(2024, 1, 1, tzinfo=Slow()))
"""
    name = port.eval(code, {"f": callback()})
    port.status()
    ping, other = port.new_id(), port.new_id()
    rest = framed(Atom("answer"), (1).to_bytes(8, "big"), (OK, 666))
    options = {Atom("binary_as"): Atom("bytes")}
    given = {Atom("d"): b"z" * 100 + rest}
    frame = framed(Atom("eval"), other, options, "len(d)", given)
    assert frame.endswith(rest)
    stdin = port.process.stdin.fileno()
    os.write(stdin, framed(Atom("ping"), ping) + frame.removesuffix(rest))
    assert port.reply(ping)[0] == "pong"
    gate.open()
    call = port.invoked()[1]
    assert call == (1).to_bytes(8, "big")
    os.write(stdin, rest)
    answer(port, call, 7)
    assert port.value(name) == 7
    assert port.value(other) == 100 + len(rest)


def test_the_end_of_input_ends_a_call(port):
    name = port.eval("f(1)", {"f": callback()})
    port.invoked()
    with Port(init={"heartbeat_interval_ms": 0}) as other:
        waiting = other.eval("f(1)", {"f": callback()})
        other.invoked()
        other.process.stdin.close()
        assert other.error(waiting)["type"] == b"RuntimeError"
        assert other.process.wait(3) == 0
    port.tell(Atom("cancel"), name)
    port.reply(name)


def test_a_session_goes_from_executor_to_executor_within_a_call(port):
    """Main waits for the call, and still sees that the asyncio executor is done."""
    port.tell(Atom("open_session"), port.new_id(), b"s")
    name = port.eval("f(1)", {"f": callback()})
    call = port.invoked()[1]
    for _ in range(3):
        slow = port.eval("import asyncio\nawait asyncio.sleep(0.05)", session=b"s", parent=call)
        quick = port.eval("7", session=b"s", parent=call)
        assert port.value(slow, 3) is None
        assert port.value(quick, 3) == 7
        assert port.value(port.eval("8", session=b"s", parent=call), 3) == 8
    unrelated = port.eval("9")
    answer(port, call, 1)
    assert port.value(name) == 1
    assert port.value(unrelated) == 9


THREAD_OF_A_TASK = "import asyncio\nawait asyncio.to_thread(f, 1)"


@pytest.fixture
def slow_code(gate):
    """Code that says that it has begun, in one piece, and then waits for the gate."""
    return f"x = 1\nprint('began\\n', end='', flush=True)\n{gate.asleep}x"


def test_a_request_in_a_thread_waits_for_its_session_as_well(port, gate, slow_code):
    """One at a time, wherever they run."""
    port.tell(Atom("open_session"), port.new_id(), b"s")
    name = port.eval(THREAD_OF_A_TASK, {"f": callback()})
    call = port.invoked()[1]
    slow = port.eval(slow_code, session=b"s")
    assert port.reply(slow)[0] == "output"
    inner = port.eval("x = 2", session=b"s", parent=call)
    dropped = port.eval("x = 3", session=b"s", parent=call)
    port.tell(Atom("cancel"), dropped)
    assert port.error(dropped)["begun"] is False
    gate.open()
    assert port.value(slow) == 1
    assert port.value(inner) is None
    assert port.value(port.eval("x", session=b"s")) == 2
    answer(port, call, 7)
    assert port.value(name) == 7


def test_a_session_is_free_again_after_a_request_in_a_thread(port, gate, slow_code):
    port.tell(Atom("open_session"), port.new_id(), b"s")
    name = port.eval(THREAD_OF_A_TASK, {"f": callback()})
    call = port.invoked()[1]
    held = port.eval(slow_code, session=b"s", parent=call)
    assert port.reply(held)[0] == "output"
    waiting = port.eval("x", session=b"s")
    again = port.eval("x", session=b"s", parent=call)
    gate.open()
    assert [port.value(one) for one in (held, waiting, again)] == [1, 1, 1]
    answer(port, call, 7)
    assert port.value(name) == 7


def test_a_request_in_a_thread_whose_time_is_up_says_so(port, gate, slow_code):
    name = port.eval(THREAD_OF_A_TASK, {"f": callback()})
    call = port.invoked()[1]
    held = port.eval(slow_code, parent=call)
    assert port.reply(held)[0] == "output"
    late = port.eval("1", parent=call, deadline_ms=1)
    port.status()  # it has been read by now
    time.sleep(0.01)
    gate.open()
    assert port.value(held) == 1
    assert port.error(late)["kind"] == "timeout"
    answer(port, call, 7)
    assert port.value(name) == 7


def test_binaries_of_an_answer_are_read_as_those_of_the_request(port):
    name = port.eval("f(1)", {"f": callback()}, binary_as=Atom("bytes"))
    answer(port, port.invoked()[1], b"\xff")
    assert port.value(name) == b"\xff"


WAITS_WHILE_ENCODED = """
import dataclasses
@dataclasses.dataclass
class D:
    x: int
    def __getattribute__(self, name):
        return f(1) if name == "x" else object.__getattribute__(self, name)
[object(), D(1)]
"""


def test_the_objects_of_a_reply_are_not_those_of_a_request_on_top_of_it(port):
    name = port.eval(WAITS_WHILE_ENCODED, {"f": callback()})
    call = port.invoked()[1]
    assert port.error(port.eval("1 / 0", parent=call))["type"] == b"ZeroDivisionError"
    assert port.reply(port.eval("5", parent=call)) == ("ok", 5)
    answer(port, call, 7)
    kind, (handle, _fields), ids = port.reply(name)
    assert (kind, [handle["id"]]) == ("ok", ids)
    assert port.value(port.eval("type(x).__name__", {"x": handle})) == b"object"
    port.tell(Atom("release"), ids)


@pytest.mark.parametrize("code", ["await f(1)", "await asyncio.to_thread(f, 1)"])
def test_a_call_after_the_end_of_input_fails_at_once(code):
    with Port() as other:
        name = other.eval("import asyncio\nawait asyncio.sleep(0.2)\n" + code, {"f": callback()})
        other.settled(tasks=1)
        other.process.stdin.close()
        assert b"is gone" in other.error(name)["message"]
        assert other.process.wait(3) == 0


def test_a_child_that_is_forked_in_a_thread_that_waits_for_a_call_ends_with_its_request(port):
    name = port.eval(THREAD_OF_A_TASK, {"f": callback()})
    call = port.invoked()[1]
    pid = port.value(port.eval("import os\nos.fork()", parent=call))
    assert port.value(port.eval("import os\nos.waitpid(pid, 0)[1]", {"pid": pid}), 3) == 0
    answer(port, call, 7)
    assert port.value(name) == 7


@pytest.mark.main_thread
def test_what_an_object_prints_after_a_request_is_not_of_that_request(port, gate, slow_code):
    """Also when another object, which went as the request ended, called into the BEAM."""
    calls = "import port_server\nclass C:\n  def __del__(self): port_server.call('A', 'b')\nC()"
    prints = "class C:\n  def __del__(self): print('gone')\nC()"
    ids = [port.reply(port.eval(code))[2] for code in (calls, prints)]
    slow = port.eval(slow_code)
    assert port.reply(slow)[0] == "output"
    port.tell(Atom("release"), ids[0])
    port.status()  # it has been read by now, and goes when main can let it go
    gate.open()
    answer(port, port.invoked()[1], None)
    assert port.value(slow) == 1
    port.tell(Atom("release"), ids[1])
    port.settled(objects=0)
    port.nothing(slow)
