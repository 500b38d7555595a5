"""What people's code prints, through a real server: whose it is, in what order, how much of it."""

import pytest
from port_client import Client, needs_control_thread

from port_server.etf import Atom


@pytest.fixture
def server():
    with Client() as client:
        yield client


def printed(server, code, **options):
    """Run code; give its value and what it printed before its reply."""
    request = server.send_eval(code, options=options)
    reply = server.reply(request)
    assert reply[0] == "ok", reply
    output = server.output(request)
    server.value("1")
    assert server.output(request) == [], "printed after the reply"
    return reply[2], output


def only(server, code):
    """Run code that prints to one stream; give the text."""
    (output,) = printed(server, code)[1]
    assert output[0] == "stdout"
    return output[1].decode()


def test_prints_come_in_order_and_before_the_reply(server):
    """Across both streams."""
    code = "import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')\n5"
    assert printed(server, code) == (
        5,
        [("stdout", b"a\n"), ("stderr", b"b\n"), ("stdout", b"c\n")],
    )


def test_threads_print_for_their_request(server):
    """As do the threads that they start, and timers."""
    code = """
import threading
def inner(): print("inner")
def outer():
    print("outer")
    thread = threading.Thread(target=inner)
    thread.start()
    thread.join()
class Mine(threading.Thread):
    def run(self): print("mine")
for thread in (threading.Thread(target=outer), Mine(), threading.Timer(0, print, ["timer"])):
    thread.start()
    thread.join()
"""
    assert only(server, code) == "outer\ninner\nmine\ntimer\n"


def test_executors_print_for_the_request_that_submits(server):
    """Though their threads were started by another one, or by none."""
    server.value(
        "import sys\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "sys.pool = ThreadPoolExecutor(1)\nsys.pool.submit(int).result()"
    )
    code = "import sys; sys.pool.submit(print, 'mine', end='!').result()"
    assert only(server, code) == "mine!"
    assert only(server, "import sys; list(sys.pool.map(print, 'ab')) and None") == "a\nb\n"
    assert only(server, code) == "mine!"
    traceback = server.error("import sys; sys.pool.submit(lambda: 1 / 0).result()")["traceback"]
    assert b"port_server" not in traceback


def test_asyncio_prints_for_its_request(server):
    """In tasks, in to_thread and in the loop's executor."""
    code = """
import asyncio
async def task(n):
    await asyncio.sleep(0)
    print("task", n)
async def main():
    await asyncio.gather(task(1), task(2))
    await asyncio.to_thread(print, "to_thread")
    await asyncio.get_running_loop().run_in_executor(None, print, "executor")
asyncio.run(main())
"""
    assert only(server, code) == "task 1\ntask 2\nto_thread\nexecutor\n"


def test_many_threads_lose_nothing(server):
    """Every line comes, whole ones as whole lines."""
    code = """
import sys, threading
sys.setswitchinterval(1e-6)
def work(n):
    for i in range(500): sys.stdout.write(f"{n} {i}\\n")
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for i in range(500): sys.stdout.write(f"main {i}\\n")
for thread in threads: thread.join()
sys.setswitchinterval(0.005)
"""
    lines = only(server, code).splitlines()
    for name in [*range(8), "main"]:
        mine = [line for line in lines if line.startswith(f"{name} ")]
        assert mine == [f"{name} {i}" for i in range(500)]
    assert len(lines) == 9 * 500


def test_what_is_printed_after_the_end_goes_to_stderr(server):
    """It is no later request's, and it is not lost."""
    code = """
import sys, threading
sys.over = threading.Event()
def late():
    sys.over.wait()
    print("late")
sys.late = threading.Thread(target=late)
sys.late.start()
print("in time")
"""
    assert only(server, code) == "in time\n"
    assert printed(server, "import sys; sys.over.set(); sys.late.join()")[1] == []
    assert server.stderr() == "late\n"


def test_a_thread_that_prints_on_and_on_keeps_nobody_from_ending(server):
    """The reply comes; what is printed later goes to stderr."""
    code = """
import sys, threading, time
sys.flood, sys.lines = True, 0
def flood():
    while sys.flood:
        print("x" * 100)
        sys.lines += 1
threads = [threading.Thread(target=flood, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
while sys.lines < 1000: time.sleep(0.001)
"""
    request = server.send_eval(code)
    server.reply(request, 5)
    server.value(
        "import sys, time\nmore = sys.lines + 1000\n"
        "while sys.lines < more: time.sleep(0.001)\nsys.flood = False"
    )
    assert server.output(request)[0][1].startswith(b"x" * 100)
    assert server.stderr().count("x") > 100


def test_raw_threads_print_to_stderr(server):
    """Nothing takes the request along there."""
    code = (
        "import _thread\nprinted = _thread.allocate_lock()\nprinted.acquire()\n"
        "def raw():\n  print('raw')\n  printed.release()\n"
        "_thread.start_new_thread(raw, ())\nprinted.acquire(); None"
    )
    assert printed(server, code)[1] == []
    assert server.stderr() == "raw\n"


def test_init_code_prints_to_stderr():
    """There is no request yet."""
    with Client({"init_code": "print('starting')"}) as server:
        assert server.stderr() == "starting\n"


def test_del_prints_for_the_request_that_drops():
    """In the middle of it and at its end."""
    with Client({"init_code": "class Noisy:\n  def __del__(self): print('gone')"}) as server:
        assert only(server, "Noisy()\nx = Noisy()\nprint('end')") == "gone\nend\ngone\n"


def test_printing_in_del_while_printing_is_safe(server):
    """The cycle collector may run a __del__ that prints in the middle of any print."""
    code = """
import gc
class Noisy:
    def __init__(self): self.me = self
    def __del__(self): print("gone")
gc.set_threshold(1)
for i in range(2000):
    Noisy()
    print("line", i, "x" * 100)
gc.set_threshold(700, 10, 10)
gc.collect()
"""
    text = only(server, code)
    assert text.count("gone\n") == 2000
    assert text.count("line") == 2000


def test_printing_in_a_signal_handler_is_safe(server):
    """It interrupts any line of ours."""
    code = """
import signal
seen = 0
def handler(*_):
    global seen
    seen += 1
    print("signal")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
lines = 0
while seen <= 100 or lines <= 10_000:
    print("x" * 200)
    lines += 1
signal.setitimer(signal.ITIMER_REAL, 0)
lines, seen
"""
    (lines, seen), output = printed(server, code)
    text = b"".join(text for _stream, text in output)
    assert text.count(b"signal") == seen > 100
    assert text.count(b"x" * 200) == lines


def test_a_fork_prints_to_stderr_and_nothing_twice(server):
    """What the parent had not handed on yet stays the parent's."""
    code = """
import os, warnings
warnings.simplefilter("ignore")  # of a fork while there are threads
print("parent", end=" ")
child = os.fork()
if child == 0:
    print("child")
    os._exit(0)
os.waitpid(child, 0)
print("still parent")
"""
    assert only(server, code) == "parent still parent\n"
    assert server.stderr() == "child\n"


def test_input_asks_nobody(server):
    """Not even by its prompt."""
    request = server.send_eval("input('name? ')")
    error = server.reply(request)[2]
    assert error["type"] == b"EOFError"
    assert b"has no stdin" in error["message"]
    assert b"input('name? ')" in error["traceback"]
    assert b"streams.py" not in error["traceback"]
    assert server.output(request) == []


def test_input_reads_a_stdin_that_the_code_brings(server):
    """As it does everywhere."""
    code = "import io, sys\nsys.stdin = io.StringIO('Ada\\n')\ninput('name? ')"
    value, output = printed(server, code)
    assert (value, output) == (b"Ada", [("stdout", b"name? ")])
    assert server.error("input()")["type"] == b"EOFError"


@needs_control_thread
def test_a_line_is_seen_although_no_other_follows(server, gate):
    """Code that prints and then computes is not silent until its end."""
    request = server.send_eval("print('working')\n" + gate.asleep)
    frame = server.receive(lambda frame: frame[0] == "output")
    assert frame[1:] == (request, "stdout", b"working\n")
    gate.open()
    server.reply(request)


def test_a_thousand_prints_are_a_handful_of_frames(server):
    """And take the server less than 5 ms, best of some."""
    code = """
import time
def work():
    began = time.perf_counter()
    for i in range(1000): print(i)
    return time.perf_counter() - began
min(work() for _ in range(50))
"""
    request = server.send_eval(code)
    seconds = server.reply(request)[2]
    frames = [frame for frame in server.others if frame[0] == "output"]
    assert len(frames) < 50 * 5
    assert seconds < 0.005


def test_text_is_cut_between_characters(server):
    """A long print is several frames, each valid text."""
    _value, output = printed(
        server,
        "import sys\nprint('aäß€😀' * 100_000, end='')\n"
        "sys.stdout.buffer.write('é'.encode() * 99_999)",
    )
    text = b"".join(text for _stream, text in output)
    assert text.decode() == "aäß€😀" * 100_000 + "é" * 99_999
    request = server.send_eval("print('x' + '€' * 300_000)")
    server.reply(request)
    pieces = [frame[3] for frame in server.others if frame[0] == "output"]
    assert len(pieces) > 5
    for piece in pieces:
        piece.decode()
        assert len(piece) <= 1 << 17


WINDOW = 100_000


@pytest.fixture
def careful():
    """A server whose owner acknowledges."""
    with Client({"output_window_bytes": WINDOW}) as client:
        yield client


def fill_window(careful, request):
    """Take output until what is not acknowledged is more than the window: the next print waits."""
    received = 0
    while received <= WINDOW:
        frame = careful.receive(lambda frame: frame[0] != "pong")
        assert frame[:2] == ("output", request), "ended without waiting"
        received += len(frame[3])
    return received


@needs_control_thread
def test_a_print_past_the_window_waits(careful):
    """Until enough was acknowledged; then it goes on."""
    request = careful.send_eval("for i in range(1000): print('x' * 999)\n'done'")
    received = 0
    acked = 0
    while True:
        try:
            frame = careful.next_frame(0.3)
        except AssertionError:  # nothing more comes
            assert received - acked <= WINDOW + 70_000, "sent more than the window"
            careful.tell(Atom("ack"), request, received - acked)
            acked = received
            continue
        if frame[0] == "ok":
            assert frame[2] == b"done"
            break
        received += len(frame[3])
        assert received - acked <= WINDOW + 70_000
    assert received == 1_000_000
    assert acked > 500_000


@needs_control_thread
def test_slow_prints_wait_for_the_window_as_well(careful):
    """What leaves by the clock, and never by its size, counts like the rest."""
    request = careful.send_eval(
        "import time\nfor i in range(40):\n  print('x' * 7999)\n  time.sleep(0.025)\n'done'"
    )
    received = fill_window(careful, request)
    while True:
        try:
            frame = careful.next_frame(0.6)
        except AssertionError:  # nothing more comes
            break
        assert frame[0] == "output", "ended without waiting"
        received += len(frame[3])
    assert received <= WINDOW + 70_000
    careful.tell(Atom("ack"), request, 10**7)
    assert careful.reply(request)[2] == b"done"


@needs_control_thread
def test_threads_wait_for_the_window_as_well(careful):
    """While main joins them."""
    request = careful.send_eval(
        "import threading\ndef work():\n  for i in range(300): print('x' * 999)\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()"
    )
    received = acked = 0
    while True:
        frame = careful.next_frame()
        if frame[0] == "ok":
            break
        received += len(frame[3])
        if received - acked > WINDOW // 2:
            careful.tell(Atom("ack"), request, received - acked)
            acked = received
    assert received == 900_000


@needs_control_thread
def test_other_frames_are_served_while_a_print_waits(careful):
    """Pings at once, requests after it."""
    request = careful.send_eval("for i in range(1000): print('x' * 999)\n'done'")
    fill_window(careful, request)
    assert careful.status()["running"] == request
    other = careful.send_eval("'other'")
    careful.tell(Atom("ack"), request, 10**7)
    assert careful.reply(request)[2] == b"done"
    assert careful.reply(other)[2] == b"other"


@needs_control_thread
def test_a_cancelled_request_waits_for_nobody(careful):
    """Nobody will acknowledge what it prints; it is thrown away."""
    request = careful.send_eval("for i in range(1000): print('x' * 999)\n'done'")
    size = fill_window(careful, request)
    careful.tell(Atom("cancel"), request)
    assert careful.reply(request, 5)[2][Atom("kind")] == "cancelled"
    size += sum(len(text) for _stream, text in careful.output(request))
    assert size <= WINDOW + 70_000


def test_the_end_of_input_ends_a_print_that_waits(careful):
    """Nobody reads any more: the server leaves."""
    fill_window(careful, careful.send_eval("for i in range(1000): print('x' * 999)\n'done'"))
    careful.end()
    assert careful.process.returncode == 0


def test_acks_that_fit_nothing_are_ignored(careful):
    """Of unknown requests, after the end, of more than there was."""
    careful.tell(Atom("ack"), b"unknown", 5)
    request = careful.send_eval("print(1)")
    careful.reply(request)
    careful.tell(Atom("ack"), request, 2)
    careful.tell(Atom("ack"), request, -2)
    assert careful.value("1") == 1


def test_nothing_is_kept_of_a_request_that_printed(server):
    """Not even of those that started threads."""
    code = """
import gc
from port_server.runtime.printed import Printed
gc.collect()
sum(type(found) is Printed for found in gc.get_objects())
"""
    before = server.value(code)
    for _ in range(100):
        server.value("import threading; t = threading.Thread(target=print); t.start(); t.join()")
    assert server.value(code) == before
