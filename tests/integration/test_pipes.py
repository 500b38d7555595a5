"""A real server through plain pipes: a session, and bad input, each with its own clear error."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import SERVE, call_, eval_, frame, framed, frames_of, text_of

from port_server.etf import Atom, codec_name, encode

A = Atom


def converse(*parts):
    """Everything a server writes for this input, its exit status, and its stderr."""
    data = b"".join(part if isinstance(part, bytes) else frame(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-c", SERVE], input=data, capture_output=True, timeout=20, check=False
    )
    return frames_of(done.stdout), done.returncode, done.stderr.decode()


# --- beginning and end ------------------------------------------------------------------------


def test_hello_answers_init_and_says_who_is_there(start):
    """Python, platform, codec, pid: what a client needs to know before its first request."""
    server = start()
    tag, version, info = server.hello
    assert (tag, version) == ("hello", 1)
    info = text_of(info)
    assert info["python"] == ".".join(map(str, sys.version_info[:3]))
    assert info["implementation"] == sys.implementation.name
    assert info["os_pid"] == server.process.pid
    assert info["machine"] == os.uname().machine
    assert info["codec"] == codec_name
    assert {"eval", "call"} <= set(info["features"])
    assert {"libc", "server_version", "executable"} <= set(info)


def test_a_person_may_leave_init_out():
    """Hello comes first all the same, and the first frame is served."""
    messages, status, stderr = converse(eval_("6 * 7"))
    assert [message[0] for message in messages] == ["hello", "ok"]
    assert messages[1][2] == 42
    assert (status, stderr) == (0, "")


def test_no_input_at_all_is_a_quiet_end():
    """Status 0, not a word."""
    assert converse() == ([], 0, "")


def test_a_version_it_does_not_speak_is_refused():
    """Goodbye says which version this is; the exit status is 1."""
    (goodbye,), status, _ = converse((A("init"), 99, {}), eval_("1"))
    assert goodbye[0] == "goodbye"
    error = text_of(goodbye[1])
    assert error["kind"] == "protocol"
    assert "version 1 of the protocol, not 99" in error["message"]
    assert status == 1


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ((A("init"), 1, []), "an integer and a map"),
        ((A("init"), 1), "tuple of 3 elements"),
        ((A("init"), 1, {A("max_frame_bytes"): -1}), "max_frame_bytes"),
        ((A("init"), 1, {A("max_depth"): b"9"}), "max_depth"),
        ((A("init"), 1, {A("max_depth"): 5_000}), "2000"),
        ((A("init"), 1, {A("init_code"): 7}), "init_code"),
        ((A("init"), 1, {A("init_code"): b"yield 1"}), "init_code"),
        ((A("init"), 1, {A("templates"): 3}), "templates"),
    ],
)
def test_an_init_of_the_wrong_shape_is_refused(init, words):
    """Goodbye names what is wrong with it."""
    (goodbye,), status, _ = converse(init)
    assert goodbye[0] == "goodbye"
    assert words in text_of(goodbye[1])["message"]
    assert status == 1


def test_init_code_that_raises_is_a_goodbye_with_its_traceback():
    """The owner gets Python's own report."""
    code = (A("code"), b"x = 1\nimport no_such_module_at_all", b"lib/a.ex", 7)
    (goodbye,), status, _ = converse((A("init"), 1, {A("init_code"): code}))
    error = text_of(goodbye[1])
    assert error["type"] == "ModuleNotFoundError"
    assert 'File "lib/a.ex", line 8' in error["traceback"]
    assert status == 1


def test_the_first_line_of_the_server_is_no_source_of_user_code(server):
    """The server was started by `python -c`, whose text is called `<string>`, as that of exec()."""
    traceback = server.error("exec('1/0')")["traceback"]
    assert 'File "<string>", line 1' in traceback
    assert "serve" not in traceback


def test_init_code_is_run_once_and_seen_by_every_request(start):
    """Its names are there, its functions see each other."""
    server = start(init=(A("init"), 1, {A("init_code"): b"import math\nn = 0\ndef f(): return n"}))
    assert server.value("math.floor(2.5) + f()") == 2
    server.value("n = 5")
    assert server.value("n") == 0


def test_unknown_options_are_ignored(start):
    """A later client may know more."""
    server = start(init=(A("init"), 1, {A("shiny"): [1, 2]}))
    assert server.value("1", shiny=True) == 1


def test_a_second_init_is_logged_and_changes_nothing(server):
    """The server goes on."""
    server.send((A("init"), 1, {A("max_frame_bytes"): 1}))
    assert server.value("1") == 1
    assert "init is the first frame" in server.stderr


def test_shutdown_finishes_what_was_read():
    """Requests before and behind it in the same batch are answered, then goodbye."""
    messages, status, _ = converse(eval_("1", id=b"a"), (A("shutdown"), 100), eval_("2", id=b"b"))
    assert [message[:2] for message in messages[1:]] == [
        ("ok", b"a"),
        ("ok", b"b"),
        ("goodbye", "shutdown"),
    ]
    assert status == 0


def test_the_end_of_input_finishes_what_was_read():
    """No goodbye, because nobody asked; status 0."""
    messages, status, _ = converse(*(eval_(str(n), id=str(n).encode()) for n in range(50)))
    assert [message[2] for message in messages[1:]] == list(range(50))
    assert status == 0


@pytest.mark.fault(
    "a truncated frame", saw="the replies to what is whole", became="ends, and says so"
)
def test_input_that_ends_inside_a_frame_is_logged():
    """What was whole is answered; the log says how much was missing; status 0."""
    messages, status, stderr = converse(eval_("1"), frame(eval_("2"))[:-3])
    assert len(messages) == 2
    assert "input_ended_inside_a_frame" in stderr
    assert status == 0


def test_sigterm_while_idle_leaves_at_once(server):
    """From the handler: nothing has to come in first."""
    assert server.value("1") == 1
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    assert server.receive(2) == ("goodbye", "sigterm")
    assert server.wait(2) == 0


def test_sigterm_during_a_request_finishes_it(server):
    """And those that were read with it."""
    code = "print('under way\\n', end='', flush=True)\nimport time; time.sleep(0.2); 'slept'"
    server.send(eval_(code, id=b"a"), eval_("2", id=b"b"))
    assert server.receive()[0] == "output"
    server.process.send_signal(signal.SIGTERM)
    assert server.rest() == [("ok", b"a", b"slept"), ("ok", b"b", 2), ("goodbye", "sigterm")]
    assert server.wait() == 0


def test_a_reader_that_is_gone_is_a_quiet_end(server):
    """EPIPE is no error message; user code never sees it."""
    server.process.stdout.close()
    server.send(eval_("print('x' * 100_000)\nopen('/dev/null').close()"))
    assert server.wait(5) == 0
    assert server.stderr == ""


@pytest.mark.parametrize(
    "code",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
        "import atexit, time\natexit.register(time.sleep, 60)\nNone",
    ],
)
def test_what_user_code_left_running_does_not_keep_the_process(server, code):
    """Python would wait for it without a limit."""
    server.value(code)
    server.end_input()
    assert server.wait(5) == 0


# --- requests ---------------------------------------------------------------------------------


def test_eval_gives_values_and_namespaces_are_fresh(server):
    """Last expression, globals with atom and string keys, nothing left behind."""
    assert server.value("a + b", {A("a"): 1, b"b": 2}) == 3
    assert server.value("x = 1") is None
    assert server.error("x")["type"] == "NameError"
    assert server.value("return 5") == 5


def test_binary_as_decides_how_globals_are_read(server):
    """Text by default, bytes if asked for; the code itself is always text."""
    assert server.value("type(b).__name__", {b"b": b"x"}) == b"str"
    assert server.value("type(b).__name__", {b"b": b"x"}, binary_as=A("bytes")) == b"bytes"
    assert server.value("type(b).__name__", {b"b": b"x"}, binary_as=A("str")) == b"str"
    error = server.error(eval_("1", {A("b"): 1, b"b": 2}, binary_as=A("bytes")))
    assert 'the keys :b and "b" are one name' in error["message"]
    reply = server.ask(call_("builtins:len", b"\xff\xfe", opts={A("binary_as"): A("bytes")}))
    assert reply[2] == 2


def test_call_finds_functions_by_module_and_qualified_name(server):
    """Arguments, keywords, methods of classes, submodules."""
    assert server.ask(call_("math:sqrt", 9.0))[2] == 3.0
    assert server.ask(call_("builtins:sorted", [1, 3, 2], reverse=True))[2] == [3, 2, 1]
    assert server.ask(call_("builtins:str.upper", b"abc"))[2] == b"ABC"
    assert server.ask(call_("os.path:join", b"a", b"b"))[2] == b"a/b"
    assert server.ask(call_("xml.dom.minidom:parseString", b"<"))[0] == "error"


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("math.sqrt", "protocol", "module:function"),
        (":f", "protocol", "module:function"),
        ("math:", "protocol", "module:function"),
        ("math:a..b", "protocol", "module:function"),
        ("no_such_module:f", "python", "No module named 'no_such_module'"),
        ("math:no_such_function", "python", "no_such_function"),
    ],
)
def test_a_target_that_does_not_exist_says_which_part(server, target, kind, words):
    """The form, the module, or the name."""
    error = server.error(call_(target))
    assert error["kind"] == kind
    assert words in error["message"]


def test_every_id_comes_back_as_it_went(server):
    """Empty, binary, 255 bytes: the server only echoes."""
    for name in (b"", b"\0", b"\xff" * 8, b"x" * 255):
        assert server.ask(eval_("1", id=name)) == ("ok", name, 1)


def test_ping_answers_between_requests(server):
    """With pid, time and a count."""
    server.value("1")
    tag, name, status = server.ask((A("ping"), b"p"))
    assert (tag, name) == ("pong", b"p")
    assert status["os_pid"] == server.process.pid
    assert status["requests"] == 1
    assert status["uptime_ms"] >= 0


def test_control_frames_of_a_batch_go_before_its_requests(server):
    """A ping is not kept waiting by what was sent before it."""
    server.send(eval_("import time; time.sleep(0.2)", id=b"slow"), (A("ping"), b"p"))
    assert [server.receive()[:2], server.receive()[:2]] == [("pong", b"p"), ("ok", b"slow")]


def test_a_cancelled_request_in_the_queue_never_runs(server, tmp_path):
    """It is answered once, as cancelled; a cancel for an unknown id is ignored."""
    marker = tmp_path / "ran"
    touch = eval_(f"open({str(marker)!r}, 'w')", id=b"c")
    server.send(eval_("1", id=b"a"), touch, (A("cancel"), b"c"), (A("cancel"), b"nobody"))
    tag, name, error = server.receive()
    assert (tag, name, error["kind"], error["begun"]) == ("error", b"c", "cancelled", False)
    assert server.receive() == ("ok", b"a", 1)
    assert server.value("2") == 2
    assert not marker.exists()


def test_a_cancel_that_comes_while_another_request_runs_is_honoured(server, gate, tmp_path):
    """What waits in the pipe is looked at before the next of a batch, after one that was slow."""
    marker = tmp_path / "ran"
    slow = "print('under way\\n', end='', flush=True)\nimport time; time.sleep(0.01)\n"
    server.send(
        eval_(slow + gate.asleep, id=b"a"),
        eval_(f"open({str(marker)!r}, 'w')", id=b"b"),
    )
    assert server.receive()[0] == "output"
    server.send((A("cancel"), b"b"))
    gate.open()
    replies = {server.receive()[1]: None for _ in range(2)}
    assert set(replies) == {b"a", b"b"}
    assert not marker.exists()


def test_a_deadline_that_passed_in_the_queue_is_a_timeout(server):
    """The request is not run, and the answer says so."""
    server.send(
        eval_("import time; time.sleep(0.2)", id=b"a", deadline_ms=5000),
        eval_("open('/nonexistent/x')", id=b"b", deadline_ms=50),
        eval_("3", id=b"c", deadline_ms=5000),
    )
    assert server.receive() == ("ok", b"a", None)
    tag, name, error = server.receive()
    assert (tag, name, error["kind"], error["begun"]) == ("error", b"b", "timeout", False)
    assert server.receive() == ("ok", b"c", 3)
    assert server.error(eval_("1", deadline_ms=0))["kind"] == "timeout"


def test_replies_do_not_wait_for_slow_requests_behind_them(server, gate):
    """A finished reply leaves before the next request of its batch has taken its time."""
    server.send(eval_("1", id=b"a"), eval_(gate.asleep, id=b"b"))
    assert server.receive()[1] == b"a"
    gate.open()
    assert server.receive()[1] == b"b"


def test_thousands_of_requests_in_one_go_are_each_answered_once(server):
    """In order, with their own answers."""
    requests = b"".join(frame(eval_(f"{n % 50} + x", {b"x": n}, id=b"%d" % n)) for n in range(3000))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=server.process.stdin) as cat:
        cat.stdin.write(requests)
        cat.stdin.close()
        for n in range(3000):
            assert server.receive() == ("ok", b"%d" % n, n + n % 50)


def test_large_values_cross_both_ways(server):
    """Ten megabytes there and back, again and again: buffers are kept and nothing gets mixed up."""
    for byte in (b"a", b"b", b"c"):
        data = byte * 10_000_000
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=server.process.stdin) as cat:
            cat.stdin.write(frame(eval_("data", {b"data": data}, binary_as=A("bytes"))))
            cat.stdin.close()
            assert server.receive(30) == ("ok", b"1", data)


def test_a_mutable_buffer_is_sent_as_it_was(server):
    """A large bytearray leaves by reference, before any code can change it."""
    code = "import builtins\nbuiltins.kept = bytearray(b'x' * 200_000)\nbuiltins.kept"
    change = "import builtins\nbuiltins.kept[:] = b'y' * 200_000\nbuiltins.kept"
    server.send(eval_(code, id=b"a"), eval_(change, id=b"b"))
    assert server.receive()[2] == b"x" * 200_000
    assert server.receive()[2] == b"y" * 200_000


# --- bad input --------------------------------------------------------------------------------

BAD_WITH_ID = {
    "unknown message": ((A("dance"), b"1", 2), "dance is not known"),
    "credit no integer": ((A("credit"), b"1", b"2"), "credit is a count of items"),
    "stream no boolean": (eval_("1", stream=1), "stream is true or false"),
    "too few elements": ((A("eval"), b"1", {}, b"1"), "tuple of 5 elements, this one has 4"),
    "options no map": ((A("eval"), b"1", [], b"1", {}), "options are a map"),
    "deadline no integer": (eval_("1", deadline_ms=1.5), "deadline_ms is an integer"),
    "strange binary_as": (eval_("1", binary_as=A("text")), "binary_as is str or bytes"),
    "code no binary": ((A("eval"), b"1", {}, 7, {}), "code is a binary or {code"),
    "code tuple wrong": (
        (A("eval"), b"1", {}, (A("code"), b"1", b"f", 0), {}),
        "code is a binary or {code",
    ),
    "globals no map": ((A("eval"), b"1", {}, b"1", [1]), "globals are a map"),
    "args no list": ((A("call"), b"1", {}, b"math:sqrt", 1, {}), "arguments of a call are a list"),
    "kwargs no map": ((A("call"), b"1", {}, b"math:sqrt", [1], [2]), "the keywords a map"),
    "target no binary": ((A("call"), b"1", {}, 7, [1], {}), "a target is a binary"),
}


@pytest.mark.parametrize(("term", "words"), BAD_WITH_ID.values(), ids=BAD_WITH_ID)
def test_a_wrong_shape_with_an_id_is_answered(server, term, words):
    """Kind protocol, its own sentence, and the server goes on."""
    error = server.error(term)
    assert error["kind"] == "protocol"
    assert words in error["message"]
    assert server.value("1 + 1") == 2


BAD_WITHOUT_ID = {
    "not ETF at all": (framed(b"hello"), "first byte is 104"),
    "an empty frame": (framed(b""), "0 bytes"),
    "compressed": (framed(b"\x83P\0\0\0\x02xx"), "compressed"),
    "no tuple": (frame(A("ok")), "not a tuple"),
    "no atom in front": (frame((1, 2)), "starts with an atom"),
    "id of another type": (frame((A("eval"), 1, {}, b"1", {})), "id of eval is a binary"),
    "id too long": (frame(eval_("1", id=b"x" * 256)), "at most 255 bytes"),
    "cut off in the id": (framed(b"\x83h\x05w\x04evalm\0\0\0\x09short"), "id of eval"),
    "cut off behind the prefix": (framed(b"\x83h\x05w\x04evalm\0\0\0"), "id of eval"),
}


@pytest.mark.parametrize(("data", "words"), BAD_WITHOUT_ID.values(), ids=BAD_WITHOUT_ID)
def test_a_wrong_frame_without_an_id_is_logged(server, data, words):
    """The log says what is wrong with it, nobody gets an answer, and the server goes on."""
    server.send_raw(data)
    assert server.value("1 + 1") == 2
    assert words in server.stderr


def test_the_first_frame_may_be_wrong_as_well():
    """It is logged, hello is said, and the next is served."""
    messages, status, stderr = converse(framed(b"garbage"), eval_("1"))
    assert [message[0] for message in messages] == ["hello", "ok"]
    assert "protocol_error" in stderr
    assert status == 0


def test_a_header_above_the_limit_is_a_goodbye(start):
    """Nothing of it is allocated; what was whole before it is answered first."""
    server = start(init=(A("init"), 1, {A("max_frame_bytes"): 1000}))
    server.send_raw(frame(eval_("1")) + (1001).to_bytes(4, "big") + b"x")
    assert server.receive() == ("ok", b"1", 1)
    tag, error = server.receive()
    assert tag == "goodbye"
    assert error["kind"] == "protocol"
    assert b"1001 bytes" in error["message"]
    assert server.wait() == 1


@pytest.mark.fault("a 2 GiB header", saw="`goodbye`, nothing is allocated", became="ends")
def test_a_two_gigabyte_header_is_a_goodbye(server):
    """As a stray print on the port looks; before a byte more has to come."""
    server.send_raw(b"\x7f\xff\xff\xff")
    assert server.receive(2)[0] == "goodbye"
    assert server.wait() == 1


VALUES_THAT_CANNOT_BE_READ = {
    "no UTF-8": (frame(eval_("1", {b"rows": [{b"name": b"\xff"}]})), 'globals["rows"][0]["name"]'),
    "cut off": (framed(encode(eval_("1", {b"a": [1, 2, 3]}))[:-1]), "globals"),
}


@pytest.mark.parametrize(
    ("data", "path"), VALUES_THAT_CANNOT_BE_READ.values(), ids=VALUES_THAT_CANNOT_BE_READ
)
def test_a_value_that_cannot_be_read_is_named_by_its_path(server, data, path):
    """Kind decode, where it stands, on that request alone."""
    server.send_raw(data)
    tag, _id, error = server.receive()
    assert (tag, error["kind"]) == ("error", "decode")
    assert path in error["message"].decode()
    assert server.value("1") == 1


@pytest.mark.parametrize(
    ("code", "path"),
    [
        (b"x = '\xff'", "code: "),
        ((Atom("code"), b"\xff", b"a.ex", 1), "code[1]: "),
        ((Atom("code"), b"1", b"\xff.ex", 1), "code[2]: "),
    ],
)
def test_code_that_is_no_text_has_advice_of_its_own(server, code, path):
    """The ways out for values are none for code."""
    message = server.error((Atom("eval"), b"1", {}, code, {}))["message"]
    assert message.startswith(path)
    assert "Python source is UTF-8 text" in message
    assert "binary_as" not in message


def test_a_target_that_is_no_text_has_advice_of_its_own(server):
    """Likewise."""
    message = server.error((Atom("call"), b"1", {}, b"math:\xff", [], {}))["message"]
    assert "Names of functions and attributes are UTF-8 text" in message
    assert "binary_as" not in message


def test_trailing_bytes_are_a_protocol_error(server):
    """Behind the term nothing may stand."""
    server.send_raw(framed(encode(eval_("1")) + b"x"))
    assert b"1 bytes stand behind the eval" in server.receive()[2]["message"]


def test_a_global_that_is_no_name_is_an_error(server):
    """It names the key and says what keys are."""
    error = server.error(eval_("1", {b"not a name": 1}))
    assert '"not a name" cannot be the name of a global' in error["message"]


UNENCODABLE = {
    "[1, {'k': ['\\ud800']}]": 'result[1]["k"][0]',
    "a = []\na.append(a)\na": "nested deeper",
    "a = 1\nfor _ in range(100_000): a = [a]\na": "nested deeper",
}


@pytest.mark.parametrize(("code", "words"), UNENCODABLE.items())
def test_a_result_without_a_term_is_an_error_on_that_request_alone(server, code, words):
    """Kind encode, with the path."""
    error = server.error(code)
    assert error["kind"] == "encode"
    assert words in error["message"]
    assert server.value("1") == 1


def test_a_reply_above_the_limit_is_an_error_that_names_the_limit(start):
    """The other side would refuse it; here it can still be said why."""
    server = start(init=(A("init"), 1, {A("max_frame_bytes"): 10_000}))
    error = server.error("'x' * 20_000")
    assert error["kind"] == "encode"
    assert "max_frame_bytes" in error["message"]
    assert server.value("1") == 1


@pytest.mark.parametrize("code", ["yield 1", "yield await x"])
def test_a_yield_outside_of_a_stream_says_what_to_do(server, code):
    """A clear answer, not a generator nobody asked for."""
    error = server.error(code)
    assert error["kind"] == "protocol"
    assert "top-level `yield`" in error["message"]
    assert "PyPort.stream/3" in error["message"]


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_a_stream_in_small_pieces_is_the_same_stream(server, step):
    """However the operating system cuts it."""
    data = frame(eval_("'x' * 3", id=b"a")) + frame(call_("math:sqrt", 4.0, id=b"b"))
    for at in range(0, len(data), step):
        server.send_raw(data[at : at + step])
        if step > 2:
            time.sleep(0.001)
    assert server.receive() == ("ok", b"a", b"xxx")
    assert server.receive() == ("ok", b"b", 2.0)


@pytest.mark.fault(
    "every prefix of a valid stream (all of them)",
    saw="the replies to what is whole",
    became="ends, and says where it was cut",
)
def test_every_prefix_of_a_valid_stream_ends_well():
    """Cut anywhere: whole requests are answered, no traceback on stderr, status 0."""
    data = frame((A("init"), 1, {})) + frame(eval_("1", {b"x": [1, b"two"]})) + frame(eval_("2"))
    for end in range(0, len(data), 9):
        messages, status, stderr = converse(data[:end])
        assert status == 0
        assert "Traceback" not in stderr
        assert len(messages) <= 3
