"""sys.stdout, sys.stderr and sys.stdin as user code sees them; batches as the server gets them."""

import io
import os
import sys
import threading

import pytest

from port_server.runtime.output import NO_STDIN, NoInput, Output, Streams
from port_server.settings import Settings


class Sink:
    def __init__(self, **changes):
        self.batches = []
        self.output = Output(Settings().replace(**changes), self.take)
        self.streams = Streams(self.output)
        self.stdout, self.stderr = self.streams.stdout, self.streams.stderr
        self.output.open = True

    def take(self, stream, text, now):
        self.batches.append((stream, text, now))

    def text(self):
        self.output.hand_on(now=False)
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
    sink.output.open = False
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


def test_text_that_is_no_unicode_does_not_fail():
    """A lone surrogate, as in a file name, is escaped."""
    sink = Sink()
    print("\udcff", file=sink.stdout)
    assert sink.text() == [("stdout", b"\\udcff\n")]


def test_writing_from_within_writing_is_safe():
    """A signal handler or __del__ that prints while a print is being taken loses nothing."""
    sink = Sink(output_batch_bytes=10)

    def take(stream, text, now):
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
        with pytest.raises(EOFError, match="nobody to ask"):
            ask()
    stdin.close()
    assert stdin.fileno() == 0
    assert not stdin.isatty()
    assert "globals" in NO_STDIN


def test_a_closed_stderr_loses_text_and_nothing_else():
    """Writing where nobody is never raises."""
    sink = Sink()
    sink.output.open = False
    saved = os.dup(2)
    try:
        os.close(2)
        print("nobody hears", file=sink.stdout)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
