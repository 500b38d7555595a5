"""The scheduler alone, as tables: what comes in, what comes out. No thread, no file descriptor."""

from __future__ import annotations

import types

import pytest

from port_server.protocol.requests import Options, Request
from port_server.server.calls import Call
from port_server.server.scheduler import Scheduler
from port_server.settings import Settings


class Main:
    """What main is at, without a main thread."""

    def __init__(self):
        self.requests = {}

    def find(self, id_term):
        return self.requests.get(id_term)


class Stream:
    """A stream that can go on as often as it is told."""

    def __init__(self, request, turns=1):
        self.request = request
        self.ready = False
        request.granted = turns

    def advance(self):
        self.request.sent += 1
        self.ready = False


def request(name, session=None, parent=None, size=1):
    options = Options()
    options.session = session
    options.parent = parent
    return Request(b"x" * size, False, name.encode(), options, 0)


def call_of(scheduler, number, maker, *, lock=None, future=None):
    call = Call(number, maker)
    call.lock, call.future = lock, future
    scheduler.calls[call.id] = call
    return call


@pytest.fixture
def main():
    return Main()


@pytest.fixture
def scheduler(main):
    return Scheduler(Settings().replace(max_queue_bytes=100, running_after_ms=5), main)


# Each step: "+name:session" a request comes, "-name" it ends. Behind "=" stands what may begin.
ORDERS = {
    "without a session all begin": ["+a=a", "+b=b", "-a=", "-b="],
    "one of a session at a time": ["+a:s=a", "+b:s=", "+c:s=", "-a=b", "-b=c", "-c="],
    "sessions do not wait for each other": ["+a:s=a", "+b:t=b", "+c:s=", "-b=", "-a=c"],
    "a session that was empty begins anew": ["+a:s=a", "-a=", "+b:s=b", "-b="],
    "the end of one that waits changes nothing": ["+a:s=a", "+b:s=", "-b=", "-a=b"],
    "an end that is told twice counts once": ["+a:s=a", "+b:s=", "-a=b", "-a=", "+c:s=", "-b=c"],
}


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_the_order_within_sessions(scheduler, steps):
    known = {}
    for step in steps:
        what, _, expected = step.partition("=")
        name, _, session = what[1:].partition(":")
        if what[0] == "+":
            known[name] = request(name, session.encode() or None)
            began = [known[name]] if scheduler.begin(known[name]) else []
        else:
            following = scheduler.end(known[name])
            began = [] if following is None else [following]
        assert [one.id_term.decode() for one in began] == list(expected), step


def test_how_many_wait_is_known(scheduler):
    requests = [request(name, b"s") for name in "abc"]
    for one in requests:
        scheduler.begin(one)
    assert scheduler.waiting == 2
    scheduler.drop(b"b")
    assert scheduler.waiting == 1
    assert scheduler.end(requests[0]) is requests[2]
    assert scheduler.waiting == 0


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_request_within_a_call_of_its_session_does_not_wait(scheduler, depth):
    """However many calls there are in between; an unrelated request does."""
    first = holder = request("first", b"s")
    scheduler.begin(first)
    for number in range(depth):
        call = call_of(scheduler, number, holder)
        holder = request(f"inner {number}", b"s" if number == depth - 1 else None, call.id)
        assert scheduler.begin(holder)
    assert not scheduler.begin(request("other", b"s"))
    assert scheduler.end(holder) is None  # the first one still holds the session
    assert scheduler.end(first).id_term == b"other"


def test_calls_that_go_in_a_circle_are_no_endless_loop(scheduler):
    scheduler.begin(request("holder", b"s"))
    call = Call(1, None)
    call.request = request("one", b"s", call.id)
    scheduler.calls[call.id] = call
    assert not scheduler.begin(call.request)


WHERE = {  # what the call's thread waits on -> whether a request within the call runs there
    "main": ({}, True),
    "a thread": ({"lock": types.SimpleNamespace()}, True),
    "async code": ({"future": types.SimpleNamespace()}, False),
}


@pytest.mark.parametrize(("waits", "there"), WHERE.values(), ids=WHERE)
def test_where_a_request_within_a_call_runs(scheduler, waits, there):
    call = call_of(scheduler, 1, request("maker"), **waits)
    assert scheduler.call_of(request("inner", parent=call.id)) is (call if there else None)
    assert scheduler.call_of(request("other", parent=b"over")) is None
    assert scheduler.call_of(request("plain")) is None


# Names in capitals are streams; behind ":" stands how often one can go on.
TURNS = {
    "requests in order": (["a", "b", "c"], ["a", "b", "c"]),
    "a stream first, then what is queued": (["a", "S:1", "b"], ["S", "a", "b"]),
    "all that is queued between two turns": (["a", "S:2", "b"], ["S", "a", "b", "S"]),
    "streams take turns": (["S:2", "T:2"], ["S", "T", "S", "T"]),
    "a cancelled stream before everything": (["a", "b", "S:0!"], ["S", "a", "b"]),
    "nothing": ([], []),
}


@pytest.mark.parametrize(("given", "expected"), TURNS.values(), ids=TURNS)
def test_streams_and_requests_take_turns(scheduler, given, expected):
    for word in given:
        name, _, turns = word.partition(":")
        if name.islower():
            scheduler.queue.append(request(name))
            continue
        stream = Stream(request(name), int(turns.rstrip("!")))
        stream.request.cancelled = turns.endswith("!")
        scheduler.make_ready(stream)
    order = []
    while (due := scheduler.next()) is not None:
        if isinstance(due, Stream):
            order.append(due.request.id_term.decode())
            due.request.cancelled = False
            due.advance()
            scheduler.make_ready(due)
        else:
            order.append(due.id_term.decode())
    assert order == expected


def test_a_stream_of_a_call_waits_in_that_call(scheduler):
    """It goes on while main waits for the call, and with main's own when the call is over."""
    call = call_of(scheduler, 1, request("maker"))
    stream = Stream(request("S", parent=call.id))
    scheduler.make_ready(stream)
    inner = request("inner", parent=call.id)
    call.queue.append(inner)
    assert scheduler.next() is None
    scheduler.take_over(call)
    assert {scheduler.next(), scheduler.next()} == {stream, inner}


PLACES = ["queue", "for_threads", "call", "session"]


@pytest.mark.parametrize("place", PLACES)
def test_what_has_not_begun_can_be_dropped_wherever_it_waits(scheduler, place):
    one = request("one", b"s" if place == "session" else None)
    if place == "call":
        call_of(scheduler, 1, request("maker")).queue.append(one)
    elif place == "session":
        scheduler.begin(request("holder", b"s"))
        assert not scheduler.begin(one)
    else:
        getattr(scheduler, place).append(one)
    assert scheduler.drop(b"another") is None
    assert scheduler.drop(b"one") is one
    assert scheduler.drop(b"one") is None


def test_what_has_begun_is_found_and_not_dropped(scheduler, main):
    here, there = request("here"), request("there")
    main.requests[b"here"] = here
    scheduler.elsewhere[b"there"] = there
    assert scheduler.find(b"here") is here
    assert scheduler.find(b"there") is there
    assert scheduler.find(b"nowhere") is None
    assert scheduler.drop(b"there") is None


def test_the_ends_in_other_threads_are_settled_in_order(scheduler):
    first, second, third = (request(name, b"s") for name in "abc")
    for one in (first, second, third):
        scheduler.begin(one)
    scheduler.elsewhere[first.id_term] = first
    scheduler.finish(first)
    assert (first.ended, scheduler.elsewhere) == (True, {})
    assert scheduler.settle() == [second]
    assert scheduler.settle() == []


FULL = {
    "nothing": ([], [], False),
    "up to the limit": ([60], [40], False),
    "above it in main's queue": ([101], [], True),
    "above it together": ([60], [41], True),
}


@pytest.mark.parametrize(("main_s", "threads", "full"), FULL.values(), ids=FULL)
def test_when_no_more_is_read_ahead(scheduler, main_s, threads, full):
    scheduler.queue.extend(request("q", size=size) for size in main_s)
    scheduler.for_threads.extend(request("t", size=size) for size in threads)
    assert scheduler.full is full
    call_of(scheduler, 1, None)  # its answer may stand behind the requests
    assert not scheduler.full


def test_what_has_begun_elsewhere_is_told_once(scheduler, main):
    one = request("one")
    scheduler.note(one)
    assert (scheduler.take_fresh(), scheduler.take_fresh()) == ([one], [])
    silent = Scheduler(Settings(), main)
    silent.note(one)
    assert silent.take_fresh() == []
