"""Log records: where they go, what they look like, and that they never do harm."""

import json
import os
import subprocess
import sys

from port_server import log


def run(code, **environment):
    """Run code in a fresh interpreter; give its stdout and the lines of its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "from port_server import log\n" + code],
        env={key: value for key, value in os.environ.items() if key != log.LEVEL_VARIABLE}
        | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, done.stderr.splitlines()


def test_a_record_is_a_json_line_on_stderr_when_that_is_no_terminal():
    """One object a line: event, level, time in UTC, and the fields as they are."""
    out, lines = run("log.warning('frame refused', bytes=17, reason='no \"term\"')")
    assert out == ""
    record = json.loads(lines[0])
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "frame refused",
        "level": "warning",
        "bytes": 17,
        "reason": 'no "term"',
    }


def test_warnings_are_logged_unless_only_errors_are_asked_for():
    """A level that there is none of is the default."""
    code = "log.warning('c'); log.error('d')"
    assert [json.loads(line)["event"] for line in run(code)[1]] == ["c", "d"]
    assert [json.loads(line)["event"] for line in run(code, PORT_SERVER_LOG=" Error ")[1]] == ["d"]
    assert len(run(code, PORT_SERVER_LOG="nonsense")[1]) == 2


def test_structlog_is_imported_by_the_first_record_only():
    """A server with nothing to say does not pay 130 ms; nor does a record below the level."""
    code = "import sys; log.warning('quiet'); print('structlog' in sys.modules)"
    assert run(code, PORT_SERVER_LOG="error")[0] == "False\n"
    assert run(code)[0] == "True\n"


def test_records_reach_the_real_stderr_whatever_became_of_the_streams():
    """User code may replace sys.stderr and close sys.stdout; fd 1 is never written."""
    code = "import sys; sys.stderr = None; sys.stdout.close(); log.error('still here')"
    out, lines = run(code)
    assert out == ""
    assert "still here" in lines[0]
    out, lines = run("import sys; sys.stderr = sys.stdout = None; log.error('still here')")
    assert json.loads(lines[0])["event"] == "still here"


def test_a_record_never_raises():
    """A value whose repr fails, a missing structlog, a closed stderr: the caller goes on."""
    code = (
        "import os, sys\n"
        "class Bad:\n    def __repr__(self): raise ValueError('no repr')\n"
        "log.error('bad value', value=Bad(), event2=b'\\xff', surrogate='\\ud800')\n"
        "log.error('again', level='x')\n"
        "os.close(2)\n"
        "log.error('into the void')\n"
        "print('went on')"
    )
    out, lines = run(code)
    assert out == "went on\n"
    assert "bad value" in lines[0]
    assert json.loads(lines[1])["event"] == "again"
    code = "import sys; sys.modules['structlog'] = None; log.error('alone', why=1); print('on')"
    out, lines = run(code)
    assert out == "on\n"
    assert lines[0].startswith("error: alone why=1 (structlog failed: ModuleNotFoundError")


def test_peoples_own_structlog_is_left_alone():
    """Nothing is configured globally: the code that runs here may use structlog its own way."""
    code = "import structlog; log.error('x'); print(structlog.is_configured())"
    assert run(code)[0] == "False\n"
