"""The plain eval in C: the same answers as the general path, in every case, and nothing kept."""

from __future__ import annotations

import itertools

import pytest
from raw_client import WITHOUT_C, Port, atoms

from port_server.etf import Atom, encode

pytest.importorskip("port_server.server._fast", reason="see test_build.py")

DEFINES = "def f(): return x\nx = [f]\nlen(x)"
CASES = {
    "an expression": ("1 + 1", {}),
    "a statement": ("n = 1", {}),
    "statements and an expression": ("n = 1\nn + 1", {}),
    "nothing": ("", {}),
    "a return": ("if 1: return 2\nreturn 3", {}),
    "globals": ("a + b", {"a": 1, "b": 2}),
    "globals that were seen before": ("b - a", {"a": 1, "b": 2}),
    "a global that is no name": ("1", {"no name": 1}),
    "a global that is a keyword": ("1", {"for": 1}),
    "a global with two spellings": ("1", {"\ufb01": 1, "fi": 2}),
    "a large global": ("len(data)", {"data": "x" * 100_000}),
    "a struct": ("s", {"s": {Atom("__struct__"): Atom("Elixir.No.Such"), Atom("n"): 1}}),
    "the namespace": ("sorted(globals())", {"given": 1}),
    "its loader": ("type(__loader__).__name__, __name__", {}),
    "text": ("'\u00e9' * 3", {}),
    "a large text": ("'x' * 17_000", {}),
    "a larger one": ("'x' * 70_000", {}),
    "bytes in parts": ("[b'x' * 70_000, b'y' * 70_000]", {}),
    "nested values": ("{'a': [1, 2.5, None, True, (3, {4})], 5: frozenset((6,))}", {}),
    "an integer of a subclass": (
        "from enum import IntEnum\nclass E(IntEnum): A = 1\nE.A",
        {},
    ),
    "an object": ("object", {}),
    "objects inside": ("[object, len]", {}),
    "many objects inside": ("[object] * 3000", {}),
    "something to await": ("import asyncio\nasync def f(): return 7\nf()", {}),
    "await": ("import asyncio\nawait asyncio.sleep(0)\n8", {}),
    "what cannot be awaited": ("class C:\n  def __await__(self): return 9\nC()", {}),
    "a metaclass that raises": (
        (
            "class M(type):\n  def __getattribute__(self, name): raise OSError(name)\n"
            "class C(metaclass=M): pass\nC()"
        ),
        {},
    ),
    "a yield": ("yield 1", {}),
    "a syntax error": ("1 +", {}),
    "an exception": ("def f(): 1 / 0\nf()", {}),
    "an exception in an expression": ("1 / n", {"n": 0}),
    "two exceptions": ("try: 1 / 0\nexcept Exception: [][0]", {}),
    "an exception without words": ("class E(Exception):\n  __str__ = None\nraise E", {}),
    "an exit": ("raise SystemExit(3)", {}),
    "an interrupt": ("raise KeyboardInterrupt", {}),
    "memory": ("raise MemoryError('no')", {}),
    "what cannot be written": ("[1, {'a': 10 ** 10 ** 5, 'b': '\\ud800'}]", {}),
    "what is too deep": ("x = []\nfor _ in range(600): x = [x]\nx", {}),
    "prints": ("print('a'); print('b', flush=True); 1", {}),
    "prints before it fails": ("print('a'); 1 / 0", {}),
    "prints while it is dropped": (
        "class D:\n  def __del__(self): print('dropped')\nd = D(); 1",
        {},
    ),
    "prints while a cycle is dropped": (
        "class D:\n  def __del__(self): print('dropped')\nd = D()\ndef f(): return d\n1",
        {},
    ),
    "another stdout": ("import sys, io; sys.stdout = io.StringIO(); print('lost')", {}),
    "what was another stdout": ("import sys; type(sys.stdout).__name__", {}),
    "no stdout": ("import sys; del sys.stdout", {}),
    "what was no stdout": ("import sys; type(sys.stdout).__name__", {}),
    "a fork": ("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)[1]\nelse: 1", {}),
    "a failing fork": ("import os\npid = os.fork()\nos.waitpid(pid, 0)[1] if pid else 1 / 0", {}),
    "functions": (DEFINES, {}),
}
# One for each way through the C.
EACH_WAY = (
    "an expression",
    "a statement",
    "globals",
    "a global that is no name",
    "a larger one",
    "an object",
    "objects inside",
    "something to await",
    "a yield",
    "a syntax error",
    "an exception in an expression",
    "what cannot be written",
    "prints",
    "functions",
)
ODD = {
    "code that is no text": b"m\0\0\0\2\xff\xfe" + b"t\0\0\0\0",
    "code that is an atom": b"w\1ot\0\0\0\0",
    "code that is a list": b"j" + b"t\0\0\0\0",
    "code that ends too early": b"m\0\0\0\xffab",
    "no code": b"",
    "no globals": b"m\0\0\0\x011",
    "globals that are a list": b"m\0\0\0\x011j",
    "globals that end too early": b"m\0\0\0\x011t\0\0\0\1w\1a",
    "a byte too many": b"m\0\0\0\x011t\0\0\0\0j",
    "code with a file": encode((Atom("code"), "1 / 0", "/a/file.ex", 30), head=b"") + b"t\0\0\0\0",
    "code with a line of its own": encode((Atom("code"), "1", "/a/file.ex", 0), head=b"")
    + b"t\0\0\0\0",
    "the same global twice": b"m\0\0\0\x01at\0\0\0\2w\1aa\1m\0\0\0\1aa\2",
}


def all_of(port, name):
    """Everything that is said about a request, up to its last word."""
    said = [port.reply(name)]
    while said[-1][0] == "output":
        said.append(port.reply(name))
    return said


def both(test):
    """Do the same with two servers, of which only one has the C; give what each has said."""
    said = []
    for prelude in ("", WITHOUT_C):
        with Port(prelude=prelude) as port:
            # The second request with the same options is a plain one.
            for _ in range(2):
                port.value(port.eval("0", deadline_ms=60_000))
            said.append(test(port))
            assert port.value(port.eval("1 + 1", deadline_ms=60_000)) == 2
            assert port.doubled == []
    return said


def test_every_answer_is_the_same():
    """Values, failures, output; twice, as what was compiled before takes a shorter way."""

    def ask(port):
        return {
            (case, turn): all_of(port, port.eval(code, given, deadline_ms=60_000))
            for turn in range(2)
            for case, (code, given) in CASES.items()
        }

    with_c, without = both(ask)
    for case, said in without.items():
        assert with_c[case] == said, case


def test_every_answer_to_an_odd_request_is_the_same():
    """Bodies that no client of ours writes."""

    def ask(port):
        said = {}
        for case, body in ODD.items():
            name = port.new_id()
            port.write(
                b"\x83h\5w\4evalm\0\0\0\x08"
                + name
                + encode(atoms({"deadline_ms": 60_000}), head=b"")
                + body
            )
            said[case] = all_of(port, name)
        return said

    with_c, without = both(ask)
    for case, said in without.items():
        assert with_c[case] == said, case
        assert said[-1][0] == "error", case


def test_several_at_once_are_the_same():
    """What is read together goes through a queue, which the C runs as well."""

    def ask(port):
        cases = [case for case in CASES if "fork" not in case and "stdout" not in case]
        with port.at_once():
            names = [port.eval(*CASES[case], deadline_ms=60_000) for case in cases]
        return dict(zip(cases, [all_of(port, name) for name in names], strict=True))

    with_c, without = both(ask)
    for case, said in without.items():
        assert with_c[case] == said, case


def batch(port, *codes, deadline_ms=60_000):
    """Write evals together, with the options that are usual by then; give their ids."""
    with port.at_once():
        return [port.eval(code, deadline_ms=deadline_ms) for code in codes]


def test_more_than_a_write_takes_comes_in_order():
    """Small replies, large ones and those in parts, hundreds at once, each once."""
    sizes = [1, 300, 17_000, 2, 70_000, 5_000, 16_300, 3] * 80

    def ask(port):
        names = batch(port, *(f"print({n}); 'x' * {size}" for n, size in enumerate(sizes)))
        names += batch(port, *(f"{n}, b'y' * {size}" for n, size in enumerate(sizes)))
        return [all_of(port, name) for name in names]

    with_c, without = both(ask)
    assert with_c == without
    assert [len(said[-1][1]) for said in with_c[: len(sizes)]] == sizes


def test_a_reply_does_not_wait_for_slow_code_behind_it():
    """Code that is not known to be quick lets the replies go that are held."""
    with Port() as port:
        port.value(port.eval("0", deadline_ms=60_000))
        quick, slow, last = batch(port, "1", "import time; time.sleep(0.5); 2", "3")
        assert port.value(quick) == 1
        assert not port.answered(slow)
        assert port.value(slow) == 2
        assert port.value(last) == 3
        # And what was slow once is held to be slow.
        quick, slow = batch(port, "4", "import time; time.sleep(0.5); 2")
        assert port.value(quick) == 4
        assert not port.answered(slow)
        assert port.value(slow) == 2


def test_a_large_frame_of_another_thread_goes_first():
    """It may be held before small replies, in parts."""
    code = (
        "import gc, threading\n"
        "from port_server.etf import Atom, encode\n"
        "from port_server.server.port import Port\n"
        "port = next(x for x in gc.get_objects() if type(x) is Port)\n"
        "term = encode((Atom('send'), 1, 'x' * 20_000))\n"
        "port.held.append([len(term).to_bytes(4, 'big'), term])"
    )
    with Port() as port:
        port.value(port.eval("0", deadline_ms=60_000))
        names = batch(port, code, "1", code, "2", "3")
        assert [port.value(name) for name in names] == [None, 1, None, 2, 3]
        assert port.others.get(timeout=5)[0] == "hello"
        for _ in range(2):
            assert port.others.get(timeout=5)[2] == b"x" * 20_000


def test_what_waits_behind_another_can_be_cancelled():
    """It never begins, and who comes behind it is served."""
    with Port() as port:
        port.value(port.eval("0", deadline_ms=60_000))
        slow, late, last = batch(port, "import time; time.sleep(0.3); 1", "2", "3")
        port.tell(Atom("cancel"), late)
        assert port.value(slow) == 1
        error = port.error(late)
        assert error["kind"] == "cancelled"
        assert error["begun"] is False
        assert port.value(last) == 3


def test_what_waits_too_long_behind_another_does_not_begin():
    """The deadline counts the time in the queue."""
    with Port() as port:
        port.value(port.eval("0", deadline_ms=200))
        slow, late = batch(port, "import time; time.sleep(0.4); 1", "2", deadline_ms=200)
        assert port.value(slow) == 1
        assert port.error(late)["kind"] == "timeout"


def test_what_waits_behind_another_runs_aside_if_it_can():
    """Async code does not wait while the main thread is busy."""
    with Port() as port:
        port.value(port.eval("0", deadline_ms=60_000))
        aside = "import asyncio; await asyncio.sleep(0); 1"
        slow, quick = batch(port, "import time; time.sleep(0.5); 2", aside)
        assert port.value(quick) == 1
        assert not port.answered(slow)
        assert port.value(slow) == 2


@pytest.mark.slow
def test_nothing_is_kept():
    """Blocks of memory and the references to what all requests share stay as many."""
    count = (
        "import gc, sys\n"
        "gc.collect()\n"
        "things = [None, True, sys.intern('shared'), __loader__, __builtins__, type(__loader__)]\n"
        "[sys.getallocatedblocks()] + [sys.getrefcount(thing) for thing in things]"
    )
    cases = [CASES[case] for case in EACH_WAY]
    with Port() as port:

        def take(names):
            for message in (message for name in names for message in all_of(port, name)):
                if message[0] == "ok" and len(message) == 3:
                    port.tell(Atom("release"), message[2])

        def turns(number):
            for _ in range(number):
                for code, given in cases:
                    take([port.eval(code, given, deadline_ms=60_000)])
                with port.at_once():
                    names = [port.eval(code, given, deadline_ms=60_000) for code, given in cases]
                take(names)
            return port.value(port.eval(count, deadline_ms=60_000))

        counts = [turns(200) for _ in range(5)]
        # Caches fill, and what was made at the start goes, but each time less: one that is lost or
        # kept in any of the cases would show 200 times in every row.
        changes = [
            [abs(now - was) for was, now in zip(before, after, strict=True)]
            for before, after in itertools.pairwise(counts)
        ]
        assert all(min(of_one) < 150 for of_one in zip(*changes, strict=True)), counts
