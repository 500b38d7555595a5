"""User code that does its worst to stdin, stdout, signals and the process: never a broken frame."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import SERVE, eval_, text_of

from port_server.etf import Atom

A = Atom

# Each is run, then the server must answer as if nothing had been.
RUDE = {
    "print": "print('x' * 10)",
    "os.write 1": "import os; os.write(1, b'raw' * 100)",
    "C stdio": "import ctypes; c = ctypes.CDLL(None); c.puts(b'from C'); c.fflush(None)",
    "subprocess": "import subprocess; subprocess.run(['echo', 'child'], check=True)",
    "child on sys.stdout": "import subprocess, sys; subprocess.run(['echo'], stdout=sys.stdout)",
    "os.system": "import os; os.system('echo shell')",
    "dunder stdout": "import sys; sys.__stdout__.write('dunder'); sys.__stdout__.flush()",
    "close stdout": "import sys; sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
    "close dunder stdout": "import sys; sys.__stdout__.close()",
    "os.close 0, 1 and 2": "import os; os.close(0); os.close(1); os.close(2)",
    "del stdout": "import sys; del sys.stdout, sys.stderr, sys.stdin",
    "stdout None": "import sys; sys.stdout = None",
    "read fd 0": "import os; assert os.read(0, 10) == b''",
    "child reads stdin": "import subprocess; assert subprocess.check_output(['cat']) == b''",
    "fd 1 taken by a file": "import os; os.close(1); os.open('/dev/null', os.O_RDWR)",
    "sys.exit": "import sys; sys.exit(7)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "raise StopIteration",
    "own BaseException": "class Own(BaseException): pass\nraise Own",
    "asyncio.CancelledError": "import asyncio; raise asyncio.CancelledError",
    "RecursionError": "def f(): f()\nf()",
    "RecursionError in repr": "class A:\n    def __repr__(self): return repr(self)\nrepr(A())",
    "MemoryError": "raise MemoryError",
    "too much memory": "bytearray(1 << 62)",
    "signals ignored": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nNone",
    "chdir, environ, path": "import os, sys; os.chdir('/'); os.environ.clear(); sys.path.clear()",
    "modules": "import sys; [sys.modules.pop(m, None) for m in ('port_server', 'os')]\nNone",
    "excepthook": "import sys; sys.excepthook = None; sys.unraisablehook = None",
    "del raises": "class A:\n    def __del__(self): raise ValueError\na = A()",
    "del prints": "class A:\n    def __del__(self): print('bye')\na = A()",
    "BrokenPipe": "import os, signal\nr, w = os.pipe(); os.close(r)\nos.write(w, b'x')",
    "gc": "import gc; gc.disable(); gc.collect()\nNone",
    "trace": "import sys; sys.settrace(lambda *a: 1 / 0)",
    "profile": "import sys; sys.setprofile(None)",
    "asyncio.run": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "thread that prints": "import threading; threading.Thread(target=print, args=('t',)).start()",
    "multiprocessing": (
        "import multiprocessing as m\n"
        "p = m.get_context('fork').Process(target=print, args=('from a fork',))\n"
        "p.start(); p.join(); assert p.exitcode == 0, p.exitcode"
    ),
    "terminated child": (
        "import multiprocessing as m, time\n"
        "p = m.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "p.start(); p.terminate(); p.join(); assert p.exitcode == -15, p.exitcode"
    ),
}


@pytest.mark.parametrize("code", RUDE.values(), ids=RUDE)
def test_nothing_a_request_does_disturbs_a_frame(server, code):
    """Every message is whole, the request is answered once, the next ones as ever."""
    server.send(eval_(code, id=b"rude"), eval_("1 + 1", id=b"next"))
    messages = [server.receive()]
    while messages[-1][:2] != ("ok", b"next"):
        messages.append(server.receive())
    assert {message[0] for message in messages} <= {"ok", "error", "output"}
    assert sum(message[1] == b"rude" and message[0] != "output" for message in messages) == 1
    assert server.value("2 + 2") == 4
    server.send(eval_("print('still')", id=b"p"))
    assert server.receive()[3] == b"still\n"
    assert server.receive() == ("ok", b"p", None)
    server.send((A("shutdown"), 500))
    assert server.receive() == ("goodbye", "shutdown")
    assert server.wait() == 0


SUCCEEDS = ["MemoryError", "multiprocessing", "terminated child", "child reads stdin", "read fd 0"]


@pytest.mark.parametrize("name", SUCCEEDS[1:])
def test_children_and_fds_work_as_they_should(server, name):
    """What is legitimate does not merely do no harm, it works."""
    server.send(eval_(RUDE[name]))
    reply = server.receive()
    assert reply[0] == "ok", text_of(reply[2])


@pytest.mark.parametrize(
    ("code", "type"),
    [
        ("import sys; sys.exit(7)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class Own(BaseException): pass\nraise Own('mine')", "Own"),
        ("def f(): f()\nf()", "RecursionError"),
        ("bytearray(1 << 62)", "MemoryError"),
        ("input('name? ')", "EOFError"),
    ],
)
def test_whatever_is_raised_is_an_error_reply(server, code, type):
    """Its kind is python, with the type's name; never is it the end of the server."""
    server.send(eval_(code))
    while (reply := server.receive())[0] == "output":
        pass
    assert (reply[0], text_of(reply[2])["kind"], text_of(reply[2])["type"]) == (
        "error",
        "python",
        type,
    )


def test_output_comes_before_the_reply_and_belongs_to_its_request(server):
    """In order, across both streams, of failing requests too."""
    server.send(
        eval_("print('one'); import sys; print('two', file=sys.stderr); print('three')", id=b"a"),
        eval_("print('four'); 1 / 0", id=b"b"),
    )
    assert [server.receive() for _ in range(4)] == [
        ("output", b"a", "stdout", b"one\n"),
        ("output", b"a", "stderr", b"two\n"),
        ("output", b"a", "stdout", b"three\n"),
        ("ok", b"a", None),
    ]
    assert server.receive() == ("output", b"b", "stdout", b"four\n")
    assert server.receive()[:2] == ("error", b"b")


@pytest.mark.parametrize("name", ["a = A()", "f = lambda: 1\na = A()", "class B(A): pass\na = B()"])
def test_what_a_dropped_namespace_prints_is_the_requests(start, name):
    """A `__del__` runs before the reply, also where functions tie the namespace into a knot."""
    init_code = b"class A:\n    def __del__(self): print('bye')"
    server = start(init=(A("init"), 1, {A("init_code"): init_code}))
    server.send(eval_(name, id=b"a"))
    assert server.receive() == ("output", b"a", "stdout", b"bye\n")
    assert server.receive() == ("ok", b"a", None)


def test_a_thousand_prints_are_few_frames(server):
    """Batched: a frame for every 8 KiB, not for every line."""
    server.send(eval_("for i in range(1000): print('line', i)"))
    frames = []
    while (message := server.receive())[0] == "output":
        frames.append(message[3])
    assert len(frames) <= 10
    assert b"".join(frames) == b"".join(b"line %d\n" % i for i in range(1000))


def test_flushed_output_arrives_while_the_request_runs(server, gate):
    """A progress line is there before the work is done."""
    server.send(eval_("print('working\\n', end='', flush=True)\n" + gate.asleep))
    assert server.receive() == ("output", b"1", "stdout", b"working\n")
    gate.open()
    assert server.receive() == ("ok", b"1", None)


def test_raw_output_goes_to_stderr(server):
    """Where people find it, since it belongs to no request that is known."""
    server.value("import os; os.write(1, b'raw\\n')")
    server.value("import subprocess; subprocess.run(['echo', 'child']); None")
    code = (
        "import _thread\nprinted = _thread.allocate_lock()\nprinted.acquire()\n"
        "def raw():\n  print('thread')\n  printed.release()\n"
        "_thread.start_new_thread(raw, ())\nprinted.acquire(); None"
    )
    server.value(code)
    assert server.stderr == "raw\nchild\nthread\n"


def test_streams_that_a_request_replaced_are_put_back(server):
    """The next request prints to its own caller."""
    server.value("import sys, io; sys.stdout = io.StringIO(); print('lost')")
    server.send(eval_("print('found')"))
    assert server.receive() == ("output", b"1", "stdout", b"found\n")


def test_streams_that_init_code_replaced_stay(start):
    """A server that was set up to print elsewhere does."""
    server = start(
        init=(A("init"), 1, {A("init_code"): b"import sys, io; sys.stdout = mine = io.StringIO()"})
    )
    assert server.value("print('kept'); mine.getvalue()") == b"kept\n"


# --- forks -------------------------------------------------------------------------------------


def test_a_forked_child_never_returns_to_the_loop(server):
    """It ends where its code ends; the parent alone answers, once, and goes on."""
    server.send(eval_("import os; pid = os.fork(); pid > 0", id=b"f"), eval_("2", id=b"n"))
    assert server.receive() == ("ok", b"f", True)
    assert server.receive() == ("ok", b"n", 2)
    assert server.value("3") == 3


@pytest.mark.parametrize(
    ("code", "status"),
    [("None", 0), ("1 / 0", 1), ("import sys; sys.exit(5)", 5), ("raise SystemExit('no')", 1)],
)
def test_a_forked_child_ends_as_a_script_would(server, code, status):
    """With its status; its traceback is on stderr, its prints too, nothing on the port."""
    text = (
        "import os\npid = os.fork()\n"
        "if pid:\n    result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        f"else:\n    print('from the child', flush=True)\n    exec({code!r})\n"
        "result"
    )
    if status == 0:
        text = text.replace("\nresult", "\nresult if pid else None")
    assert server.value(text) == status
    assert "from the child" in server.stderr
    assert ("ZeroDivisionError" in server.stderr) == (code == "1 / 0")


def test_a_forked_child_cannot_write_to_the_port(server):
    """Its copies of the private fds lead to /dev/null."""
    code = (
        "import os\npid = os.fork()\nif pid == 0:\n"
        "    for fd in range(3, 256):\n"
        "        try: os.write(fd, b'garbage')\n"
        "        except OSError: pass\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)[1]"
    )
    assert server.value(code) == 0
    assert server.value("1") == 1


def test_a_child_that_lives_on_does_not_hold_the_port(server):
    """The pipe ends when the server does, not when its children do."""
    pid = server.value("import subprocess; subprocess.Popen(['sleep', '30']).pid")
    try:
        server.send((A("shutdown"), 100))
        assert server.receive() == ("goodbye", "shutdown")
        began = time.monotonic()
        assert server.receive(5) is None
        assert time.monotonic() - began < 2
    finally:
        os.kill(pid, signal.SIGKILL)


# --- the worst ---------------------------------------------------------------------------------


def test_code_that_closes_every_fd_ends_the_server_and_nothing_hangs(server):
    """There is no way back to the port; a successor has to come."""
    server.send(eval_("import os; os.closerange(3, 1000)"))
    assert server.receive() is None
    server.wait()


def test_a_crash_leaves_its_stack_on_stderr(server):
    """Python's faulthandler is on from the start."""
    server.send(eval_("import ctypes; ctypes.string_at(0)", id=b"1"))
    assert server.receive() is None
    assert server.wait() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in server.stderr


def test_a_handler_left_behind_does_not_end_the_server(server):
    """An alarm that goes off between requests is logged."""
    server.value(
        "import signal\n"
        "def ring(*_): raise TimeoutError('ring')\n"
        "signal.signal(signal.SIGALRM, ring)\nsignal.setitimer(signal.ITIMER_REAL, 0.1)\nNone"
    )
    end = time.monotonic() + 10
    while "stray_exception" not in server.stderr:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert server.value("1") == 1


def test_a_handler_that_rings_all_the_time_never_breaks_a_frame(server):
    """Wherever it strikes: every message stays whole, every request is answered."""
    server.value(
        "import signal\n"
        "def ring(*_): raise TimeoutError('ring')\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\nNone"
    )
    for n in range(100):
        server.send(
            eval_("print('y' * 20_000); 'x' * 300_000", id=b"a%d" % n), eval_("1", id=b"b%d" % n)
        )
        replies = []
        while len(replies) < 2:
            tag, id_, *rest = server.receive()
            if tag != "output":
                assert tag == "error" or rest[0] in (1, b"x" * 300_000)
                replies.append(id_)
        assert replies == [b"a%d" % n, b"b%d" % n]


def test_a_handler_that_rings_during_a_request_raises_in_it(server):
    """The window changes nothing for code that runs; `getsignal` gives back what was set."""
    code = (
        "import signal, time\n"
        "def ring(*_): raise TimeoutError('ring')\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "assert signal.getsignal(signal.SIGALRM) is ring\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "try: time.sleep(5)\nexcept TimeoutError: caught = True\n"
        "assert signal.signal(signal.SIGALRM, signal.SIG_DFL) is ring\ncaught"
    )
    assert server.value(code) is True


def test_a_server_without_stdin_says_so():
    """Closed fds are a message, not a traceback."""
    command = f"{sys.executable} -c '{SERVE}'"
    done = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"stdin and stdout must be open" in done.stderr
    assert b"Traceback" not in done.stderr
