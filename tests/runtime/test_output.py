"""sys.stdout, sys.stderr and sys.stdin as user code sees them; batches as the server gets them."""

import io
import os
import sys
import threading
import types

import pytest

from port_server.runtime.output import PIECE_BYTES, Output
from port_server.runtime.stdio import NO_STDIN, NoInput, Stdio
from port_server.settings import Settings

ID = b"m\0\0\0\1r"


class Sink:
    def __init__(self, **changes):
        self.batches = []
        request = types.SimpleNamespace(id_term=ID, ended=False)
        self.main = types.SimpleNamespace(ident=threading.get_ident(), running=request)
        self.reader = types.SimpleNamespace(
            control_ident=0, may_wait=lambda: False, print_later=lambda: None
        )
        cancels = types.SimpleNamespace(alert=False)
        settings = Settings().replace(**changes)
        self.output = Output(settings, self.take, self.main, self.reader, cancels)
        stdio = Stdio(self.output)
        self.stdout, self.stderr = stdio.stdout, stdio.stderr

    def take(self, id_term, stream, text, now):
        assert id_term == ID
        self.batches.append((stream, text, now))

    def text(self):
        self.output.flush_of(ID)
        return [(stream, text) for stream, text, _now in self.batches]


def test_prints_are_joined_in_order():
    """Neighbours of one stream are one batch; order across streams stays."""
    sink = Sink()
    print("a", "b", file=sink.stdout)
    print("c", file=sink.stdout)
    print("oops", file=sink.stderr)
    print("d", end="", file=sink.stdout)
    assert sink.text() == [("stdout", b"a b\nc\n"), ("stderr", b"oops\n"), ("stdout", b"d")]


def test_much_output_leaves_before_the_end():
    """More than the limit is not kept until the reply."""
    sink = Sink(output_batch_bytes=100)
    for _ in range(20):
        print("x" * 20, file=sink.stdout)
    assert 2 <= len(sink.batches) <= 10


def test_flush_sends_at_once():
    """`print(..., flush=True)` means now."""
    sink = Sink()
    print("progress", file=sink.stdout, flush=True)
    assert sink.batches == [("stdout", b"progress\n", True)]


def test_slow_printing_moves():
    """A later line takes the earlier ones along when they have waited long enough."""
    sink = Sink(output_delay_ms=0)
    print("one", file=sink.stdout, end="")
    print("two", file=sink.stdout, end="")
    assert sink.batches == [("stdout", b"onetwo", True)]


def test_outside_of_a_request_and_in_threads_it_goes_to_stderr(capfd):
    """Nothing is lost, and nothing is taken for another request's."""
    sink = Sink()
    thread = threading.Thread(target=print, args=("thread",), kwargs={"file": sink.stdout})
    thread.start()
    thread.join()
    sink.main.running = None
    print("late", file=sink.stdout)
    assert sink.batches == []
    assert capfd.readouterr().err == "thread\nlate\n"


def test_the_streams_behave_like_text_streams():
    """What libraries ask of sys.stdout is there."""
    stdout = Sink().stdout
    assert isinstance(stdout, io.TextIOBase)
    assert stdout.encoding == "utf-8"
    assert (stdout.isatty(), stdout.writable(), stdout.readable(), stdout.seekable()) == (
        False,
        True,
        False,
        False,
    )
    assert (stdout.fileno(), Sink().stderr.fileno()) == (1, 2)
    assert stdout.name == "<stdout>"
    assert stdout.write("four") == 4
    stdout.reconfigure(line_buffering=True)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stdout.write(b"bytes")
    with pytest.raises(io.UnsupportedOperation):
        stdout.detach()


def test_closing_is_harmless():
    """The next request prints, too."""
    sink = Sink()
    with sink.stdout:
        pass
    sink.stdout.close()
    sink.stdout.buffer.close()
    assert not sink.stdout.closed
    print("still here", file=sink.stdout)
    assert sink.text() == [("stdout", b"still here\n")]


def test_bytes_and_text_stay_in_order():
    """`sys.stdout.buffer` is the same stream."""
    sink = Sink()
    sink.stdout.write("text ")
    sink.stdout.buffer.write(b"\xffbytes ")
    sink.stdout.buffer.write(memoryview(b"view"))
    sink.stdout.writelines([" a", " b"])
    assert sink.text() == [("stdout", b"text \xffbytes view a b")]


@pytest.mark.parametrize("data", [5, [1, 2], "text", None])
def test_only_bytes_are_written_as_bytes(data):
    """As everywhere in Python, what is no buffer is a TypeError: a number is no so many zeros."""
    sink = Sink()
    with pytest.raises(TypeError):
        sink.stdout.buffer.write(data)
    assert sink.text() == []


def test_text_that_is_no_unicode_does_not_fail():
    """A lone surrogate, as in a file name, is escaped."""
    sink = Sink()
    print("\udcff", file=sink.stdout)
    assert sink.text() == [("stdout", b"\\udcff\n")]


def test_writing_from_within_writing_is_safe():
    """A signal handler or __del__ that prints while a print is being taken loses nothing."""
    sink = Sink(output_batch_bytes=10)

    def take(_id_term, stream, text, now):
        sink.batches.append((stream, text, now))
        if len(sink.batches) == 1:
            print("nested", file=sink.stdout)

    sink.output._emit = take
    print("x" * 50, file=sink.stdout)
    assert b"nested\n" in b"".join(text for _stream, text in sink.text())


def test_input_says_that_there_is_nobody_to_ask(monkeypatch):
    """input(), reading and iterating explain themselves; fileno and close are harmless."""
    stdin = NoInput()
    monkeypatch.setattr(sys, "stdin", stdin)
    for ask in (input, stdin.read, stdin.readline, lambda: list(stdin)):
        with pytest.raises(EOFError, match="has no stdin"):
            ask()
    stdin.close()
    assert stdin.fileno() == 0
    assert not stdin.isatty()
    assert "globals" in NO_STDIN


def test_a_closed_stderr_loses_text_and_nothing_else():
    """Writing where nobody is never raises."""
    sink = Sink()
    sink.main.running = None
    saved = os.dup(2)
    try:
        os.close(2)
        print("nobody hears", file=sink.stdout)
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_a_long_text_is_taken_in_pieces():
    """Each small enough for one frame, and whole characters."""
    sink = Sink()
    print("€" * PIECE_BYTES, end="", file=sink.stdout)
    sink.stdout.buffer.write("é".encode() * PIECE_BYTES)
    texts = [text for _stream, text in sink.text()]
    assert max(map(len, texts)) <= 2 * PIECE_BYTES
    assert "".join(text.decode() for text in texts) == "€" * PIECE_BYTES + "é" * PIECE_BYTES


def test_what_comes_during_the_end_is_not_lost(capfd):
    """A thread that has just found its request, when that ends, prints to stderr."""
    sink = Sink()
    printed = sink.output.of(ID)
    sink.output.end(ID)
    printed.parts.append(("stdout", b"between "))
    printed.ended = True
    sink.main.running = None
    sink.output.threads[threading.get_ident()] = printed
    print("late", file=sink.stdout)
    assert capfd.readouterr().err == "late\n"
    assert sink.output.requests == {}


def test_a_print_that_nobody_acknowledges_does_not_wait_where_it_must_not():
    """Where nobody else reads the port it would wait for ever."""
    sink = Sink(output_window_bytes=10, output_batch_bytes=1)
    for _ in range(100):
        print("x" * 100, file=sink.stdout)
    assert sum(len(text) for _stream, text in sink.text()) == 10_100


def test_a_print_waits_for_acks():
    """In steps of what was acknowledged, without missing one."""
    sink = Sink(output_window_bytes=1000, output_batch_bytes=1)
    sink.reader.may_wait = lambda: True
    printed = sink.output.of(ID)

    def work():
        sink.output.threads[threading.get_ident()] = printed
        for _ in range(100):
            print("x" * 99, file=sink.stdout)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    acked = 0
    while thread.is_alive():
        assert printed.sent - acked <= 1200
        if printed.sent > acked:
            step = min(100, printed.sent - acked)
            acked += step
            sink.output.ack(ID, step)
    sink.output.end(ID)
    assert printed.sent == 10_000
    assert not printed.waiters


def test_a_tick_hands_on_what_has_waited():
    """And says whether something else still waits."""
    sink = Sink(output_delay_ms=1000)
    assert sink.output.tick(0.0) is False
    print("x", file=sink.stdout)
    since = sink.output.of(ID).since
    assert sink.output.tick(since + 0.5) is True
    assert sink.batches == []
    assert sink.output.tick(since + 1.5) is False
    assert sink.batches == [("stdout", b"x\n", False)]


def test_the_reader_is_told_once_a_batch():
    """It wakes a thread, which is not free."""
    sink = Sink(output_batch_bytes=100)
    calls = []
    sink.reader.print_later = lambda: calls.append(1)
    for _ in range(10):
        print("x" * 20, file=sink.stdout)
    assert len(calls) == len(sink.text()) <= 5


def test_what_is_delivered_is_counted_whichever_thread_says_it():
    """Not a byte is lost among eight of them."""
    sink = Sink(delivery_window_bytes=1)

    def work():
        for _ in range(5000):
            sink.output.delivered(3)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.output.deliveries.sent == 8 * 5000 * 3
