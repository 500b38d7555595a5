"""Log records of people's code, through a real server, as the BEAM's Logger is to get them."""

import pytest
from port_client import Client, atoms

from port_server.etf import Atom


@pytest.fixture
def server():
    with Client() as client:
        yield client


def logged(server, code, **options):
    """Run code; give the records that it logged, and what it printed."""
    request = server.send_eval(code, options=options)
    reply = server.reply(request)
    assert reply[0] == "ok", reply
    server.value("1")
    records = [frame[1:] for frame in server.others if frame[0] == "log"]
    server.others = [frame for frame in server.others if frame[0] != "log"]
    return request, records, server.output(request)


def test_a_record_arrives_with_where_it_was_made(server):
    """Level, message, logger, file, line, function and request."""
    code = """
import logging
def work():
    logging.getLogger("my.app").warning("%d of %s", 3, "four")
work()
"""
    request = server.next_id()
    server.tell(Atom("eval"), request, {}, (Atom("code"), code, "lib/app.ex", 10), {})
    server.reply(request)
    (record,) = [frame for frame in server.others if frame[0] == "log"]
    assert record == (
        "log",
        "warning",
        b"3 of four",
        {
            "logger": b"my.app",
            "file": b"lib/app.ex",
            "line": 13,
            "function": b"work",
            "request": request,
        },
    )
    assert all(type(key) is Atom for key in record[3])


def test_levels_are_the_beams(server):
    """Of every number there may be; what the logger's own level holds back stays there."""
    code = """
import logging
logging.getLogger().setLevel(15)
for level in (5, 10, 15, 20, 25, 30, 35, 40, 50, 60):
    logging.log(level, str(level))
"""
    _request, records, output = logged(server, code)
    assert [(record[0], record[1]) for record in records] == [
        ("debug", b"15"),
        ("info", b"20"),
        ("info", b"25"),
        ("warning", b"30"),
        ("warning", b"35"),
        ("error", b"40"),
        ("critical", b"50"),
        ("critical", b"60"),
    ]
    assert output == []


def test_nothing_is_printed_as_well(server):
    """Neither by Python's last resort nor by what basicConfig sets up."""
    code = """
import logging
logging.getLogger("a").warning("one")
logging.basicConfig(level="INFO")
logging.info("two")
"""
    _request, records, output = logged(server, code)
    assert [record[1] for record in records] == [b"one", b"two"]
    assert output == []
    assert server.stderr() == ""


def test_other_handlers_do_their_work(server):
    """A file, a stream that the code names, a handler of its own."""
    code = """
import io, logging, sys
stream = io.StringIO()
logger = logging.getLogger("mine")
logger.addHandler(logging.StreamHandler(stream))
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.warning("hello")
print(stream.getvalue(), end="")
"""
    _request, records, output = logged(server, code)
    assert [record[1] for record in records] == [b"hello"]
    assert output == [("stdout", b"hello\nhello\n")]


def test_propagation_disabling_and_filters_count(server):
    """We stand where a handler of the root logger would."""
    code = """
import logging
quiet = logging.getLogger("quiet")
quiet.propagate = False
quiet.warning("on stderr, by the last resort")
off = logging.getLogger("off")
off.disabled = True
off.warning("no")
picky = logging.getLogger("picky")
picky.addFilter(lambda record: "yes" in record.msg)
picky.warning("no")
picky.warning("yes")
logging.disable()
picky.warning("yes, but disabled")
logging.disable(logging.NOTSET)
"""
    _request, records, output = logged(server, code)
    assert [record[1] for record in records] == [b"yes"]
    assert output == [("stderr", b"on stderr, by the last resort\n")]


def test_exceptions_and_stacks_come_with_the_message(server):
    """As Python would print them, without our own frames."""
    code = """
import logging
try:
    {}["x"]
except KeyError:
    logging.exception("failed")
logging.warning("here", stack_info=True)
logging.error("given", exc_info=ValueError("v"))
"""
    _request, records, _output = logged(server, code)
    assert records[0][1].startswith(b"failed\nTraceback (most recent call last):\n")
    assert records[0][1].endswith(b"    {}[\"x\"]\n    ~~^^^^^\nKeyError: 'x'")
    assert records[1][1].startswith(b"here\nStack (most recent call last):\n")
    assert records[2][1] == b"given\nValueError: v"
    assert b"port_server" not in records[0][1]


def test_extra_fields_travel(server):
    """With binary keys, as values where they have a term, as their repr where not."""
    code = """
import logging
cycle = []
cycle.append(cycle)
logging.warning("a", extra={"user": 5, "tags": ["x"], "object": logging, "logger": "shadow"})
logging.warning("b", extra={"cycle": cycle, "user": 5})
"""
    _request, records, _output = logged(server, code)
    metadata = records[0][2]
    assert (metadata[b"user"], metadata[b"tags"]) == (5, [b"x"])
    assert metadata[b"object"].startswith(b"<module 'logging'")
    assert metadata["logger"] == b"root"
    assert records[1][2][b"cycle"] == "[[[[[…]]]]]".encode()
    assert records[1][2][b"user"] == b"5"


def test_nothing_that_is_logged_can_fail(server):
    """Wrong arguments, a repr that raises, a megabyte, a lone surrogate."""
    code = """
import logging
class Bad:
    def __str__(self): raise OSError("no")
    __repr__ = __str__
logging.warning("%d", "x")
logging.warning("%s", Bad())
logging.warning(Bad())
logging.warning("x" * 1_000_000)
logging.warning("\\udcff")
logging.warning("fine", extra={"bad": Bad()})
"""
    _request, records, output = logged(server, code)
    assert len(records) == 6 - 2  # what cannot be shown at all is said on stderr
    assert b"not formatted: TypeError" in records[0][1]
    assert len(records[1][1]) < 70_000
    assert records[2][1] == b"\\udcff"
    assert records[3][2][b"bad"] == b"<Bad whose repr fails: OSError>"
    assert server.stderr().count("log: ") == 2
    assert output == []


def test_a_repr_that_logs_does_not_recurse(server):
    """The inner record is seen all the same."""
    code = """
import logging
class Chatty:
    def __repr__(self):
        logging.warning("inner")
        return "chatty"
logging.warning("outer %r", Chatty())
logging.warning("extra", extra={"it": Chatty()})
"""
    _request, records, _output = logged(server, code)
    assert [record[1] for record in records] == [b"outer chatty", b"extra"]
    assert server.stderr() == "log: inner\nlog: inner\n"


def test_records_of_threads_belong_to_their_request(server):
    """And those of nobody's thread have none."""
    code = """
import logging, threading, _thread
thread = threading.Thread(target=logging.warning, args=["thread"])
thread.start(); thread.join()
logged = _thread.allocate_lock()
logged.acquire()
def raw():
    logging.warning("raw")
    logged.release()
_thread.start_new_thread(raw, ())
logged.acquire()
"""
    request, records, _output = logged(server, code)
    assert [(record[1], record[2].get("request")) for record in records] == [
        (b"thread", request),
        (b"raw", None),
    ]


def test_records_and_prints_come_in_order_of_their_kind_and_before_the_reply(server):
    """A record is there before the reply of its request."""
    request = server.send_eval("import logging\nlogging.warning('x')\n1")
    server.reply(request)
    assert [frame[0] for frame in server.others] == ["log"]


def test_a_record_is_seen_while_code_runs_on(server, gate):
    """It does not wait for the reply."""
    request = server.send_eval("import logging\nlogging.warning('x')\n" + gate.asleep)
    frame = server.receive(lambda frame: frame[0] in ("log", "ok"))
    assert frame[0] == "log"
    gate.open()
    server.reply(request)


def test_init_code_logs_after_hello():
    """Hello is the first frame of all."""
    with Client({"init_code": "import logging\nlogging.warning('starting')"}) as server:
        assert server.others == []
        record = server.receive(lambda frame: frame[0] == "log")
        assert record[2] == b"starting"
        assert "request" not in record[3]


def test_a_server_can_be_told_not_to():
    """Then Python does what it always does."""
    with Client({"logging": False}) as server:
        _request, records, output = logged(server, "import logging; logging.warning('x')")
        assert (records, output) == ([], [("stderr", b"WARNING:root:x\n")])


def test_logging_that_is_imported_already_is_prepared_as_well():
    """By a .pth file, say."""
    code = "import logging, sys; from port_server.server import app; sys.exit(app.serve())"
    with Client(code=code) as server:
        assert len(logged(server, "import logging; logging.warning('x')")[1]) == 1


def test_a_child_process_logs_to_stderr(server):
    """The port is not its own."""
    code = """
import logging, os
child = os.fork()
if child == 0:
    logging.warning("child")
    os._exit(0)
os.waitpid(child, 0)
"""
    _request, records, _output = logged(server, code)
    assert records == []
    assert server.stderr() == "warning: root: child\n"


def test_structlog_as_it_comes(server):
    """No timestamp, no colours, the fields as metadata, where it was called."""
    code = """
import structlog
def work():
    structlog.get_logger().info("hello", user=5, tags=["x"])
work()
structlog.get_logger().bind(a=1).error("oops", b=structlog)
try: 1 / 0
except ZeroDivisionError: structlog.get_logger().exception("failed")
structlog.is_configured()
"""
    request, records, output = logged(server, code)
    level, message, metadata = records[0]
    assert (level, message) == ("info", b"hello")
    assert metadata == atoms({"logger": b"__main__", "line": 4, "function": b"work"}) | {
        "file": metadata["file"],
        "request": request,
        b"user": 5,
        b"tags": [b"x"],
    }
    assert records[1][:2] == ("error", b"oops")
    assert records[1][2][b"a"] == 1
    assert records[1][2][b"b"].startswith(b"<module 'structlog'")
    assert records[2][1].startswith(b"failed\nTraceback")
    assert records[2][1].endswith(b"ZeroDivisionError: division by zero")
    assert output == []


def test_structlog_configured_to_print(server):
    """The rendered line keeps its level; a logger with a file of its own writes there."""
    code = """
import io, structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()])
structlog.get_logger().warning("hello", a=1)
structlog.configure(processors=[structlog.dev.ConsoleRenderer(colors=True)])
structlog.get_logger().debug("colours")
file = io.StringIO()
structlog.wrap_logger(structlog.PrintLogger(file)).info("mine")
print(file.getvalue(), end="")
"""
    _request, records, output = logged(server, code)
    assert records[0][:2] == ("warning", b'{"a": 1, "event": "hello"}')
    assert records[1][0] == "debug"
    assert b"\x1b" not in records[1][1]
    assert b"colours" in records[1][1]
    assert len(records) == 2
    assert b"mine" in output[0][1]


def test_structlog_on_top_of_logging(server):
    """With its formatter or rendered: one record, its fields as metadata, the right line."""
    code = """
import logging, structlog
structlog.configure(
    processors=[
        structlog.stdlib.add_log_level,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)
structlog.get_logger("lib").warning("hello", a=1)
"""
    _request, records, output = logged(server, code)
    ((level, message, metadata),) = records
    assert (level, message) == ("warning", b"hello")
    assert (metadata["logger"], metadata["line"], metadata[b"a"]) == (b"lib", 11, 1)
    assert set(metadata) == {"logger", "file", "line", "function", "request", b"a"}
    assert output == []


def test_a_wrong_option_is_refused():
    """As every other of init."""
    with Client(False) as server:
        server.tell(Atom("init"), 1, atoms({"logging": Atom("loud")}))
        frame = server.next_frame()
        assert frame[0] == "goodbye"
        assert b"logging" in frame[1]["message"]
