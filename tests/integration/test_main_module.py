"""Classes and functions of a request behave as those of a script: `__main__` is the request."""

import pytest

from port_server.etf import Atom
from tests.conftest import eval_

DEFINED = """
import pickle
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
def double(n): return 2 * n
"""

CASES = {
    "pickle of an instance": "pickle.loads(pickle.dumps(Point(3))) == Point(3)",
    "pickle of a function": "pickle.loads(pickle.dumps(double)) is double",
    "pickle of a class, in Python": "pickle._loads(pickle._dumps(Point)) is Point",
    "copy": "import copy\ncopy.deepcopy(Point(3)) == Point(3)",
    "a type hint that is a name": (
        "import typing\nclass Node:\n    child: 'Node'\n"
        "typing.get_type_hints(Node)['child'] is Node"
    ),
    "a dataclass with hints as text": (
        "import dataclasses\nfrom typing import ClassVar\n"
        "@dataclasses.dataclass\nclass A:\n    x: 'int'\n    n: 'ClassVar[int]' = 1\n"
        "[field.name for field in dataclasses.fields(A)] == ['x']"
    ),
    "the source of a class": "import inspect\n'self.x = x' in inspect.getsource(Point)",
    "the source of a class without functions": (
        "import inspect\nclass Empty:\n    y = 1\n"
        "inspect.getsource(Empty) == 'class Empty:\\n    y = 1\\n'"
    ),
    "import __main__": "import __main__\n__main__.Point is Point and 'Point' in dir(__main__)",
    "to set a name": "import __main__\n__main__.z = 5\nz == 5",
    "an enum by pickle": (
        "import enum\nclass Color(enum.Enum):\n    RED = 1\n"
        "pickle.loads(pickle.dumps(Color.RED)) is Color.RED"
    ),
    "in a thread": (
        "import threading\nfound = []\n"
        "thread = threading.Thread(target=lambda: found.append(pickle.dumps(Point(1))))\n"
        "thread.start(); thread.join()\nlen(found) == 1"
    ),
    "in a thread of a library": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor() as pool: found = pool.submit(pickle.dumps, Point(1)).result()\n"
        "pickle.loads(found) == Point(1)"
    ),
    "in async code": (
        "import asyncio\nawait asyncio.sleep(0)\npickle.loads(pickle.dumps(Point(1))) == Point(1)"
    ),
    "unittest.main": (
        "import contextlib, io, unittest\n"
        "class T(unittest.TestCase):\n    def test_a(self): assert double(2) == 4\n"
        "    def test_b(self): self.fail()\n"
        "with contextlib.redirect_stderr(io.StringIO()):\n    main = unittest.main(exit=False)\n"
        "(main.result.testsRun, len(main.result.failures)) == (2, 1)"
    ),
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_in_one_request(server, code):
    assert server.value(DEFINED + code) is True


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_with_what_init_code_has_defined(start, code):
    server = start(
        init=(Atom("init"), 1, {Atom("heartbeat_interval_ms"): 0, Atom("init_code"): DEFINED})
    )
    assert server.value(code) is True


def test_across_the_requests_of_a_session(server):
    server.ask((Atom("open_session"), b"o", b"s"))
    server.value(DEFINED, session=b"s")
    server.value("data = pickle.dumps(Point(3))", session=b"s")
    assert server.value("pickle.loads(data) == Point(3)", session=b"s") is True
    code = "import inspect\ninspect.getsource(Point).startswith('class Point')"
    assert server.value(code, session=b"s") is True


def test_a_class_of_another_request_is_named_in_the_error(server):
    """The message says where to define it."""
    data = server.value(DEFINED + "pickle.dumps(Point(3))")
    error = server.error(
        eval_("import pickle; pickle.loads(data)", {"data": data}, binary_as=Atom("bytes"))
    )
    assert "'Point'" in error["message"]
    assert "in init_code, in the session or in a module" in error["message"]


METHODS = ["fork", "spawn", "forkserver"]

WORK = """
import enum, dataclasses, math, threading
run = threading.Lock()  # of the name of a method
factor = 3
class Color(enum.Enum):
    RED = 1
    def shout(self): return self.name + "!"
@dataclasses.dataclass
class Job:
    n: int
    def run(self): return triple(self.n)
class Big(Job):
    def run(self): return super().run() + 100
def triple(n): return int(math.fabs(n)) * factor
def fact(n): return 1 if n == 0 else n * fact(n - 1)
def adder(m):
    def add(n): return n + m
    return add
def echo(x): return x
"""


@pytest.mark.parametrize("method", METHODS)
def test_multiprocessing_takes_functions_and_classes_by_value(server, method):
    code = f"""{WORK}
import multiprocessing
with multiprocessing.get_context({method!r}).Pool(1) as pool:
    jobs = pool.map(lambda job: job.run(), [Job(1), Big(2)])
    back = pool.apply(echo, (Big(7),))
    red = pool.apply(echo, (Color.RED,))
    out = [pool.map(triple, [1, 2]), pool.apply(fact, (5,)), pool.apply(adder(10), (1,)), jobs,
           back == Big(7), red is Color.RED, pool.apply(Color.shout, (Color.RED,))]
out
"""
    expected = [[3, 6], 120, 11, [3, 106], True, True, b"RED!"]
    assert server.value(code) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_process_and_an_executor(server, method):
    code = f"""{WORK}
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
context = multiprocessing.get_context({method!r})
queue = context.Queue()
def work(queue): queue.put(triple(5))
process = context.Process(target=work, args=(queue,))
process.start()
first = queue.get()
process.join()
with ProcessPoolExecutor(1, mp_context=context) as pool:
    second = list(pool.map(lambda n: n + factor, [1]))
(first, second)
"""
    assert server.value(code) == (15, [4])
