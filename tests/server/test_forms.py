"""`arrays` and `tables`: what the arrays and the tables in the value of a request are sent as."""

import numpy as np
import pyarrow as pa
import pytest
from raw_client import WITHOUT_C, Port

from port_server.etf import Atom, Struct

LOADED = 0  # in the list of ids: a table that the client is to load
MADE = """
import numpy as np, pyarrow as pa
array, table = np.arange(3), pa.table({'a': [1]})
"""
HANDLES, TENSOR, TABLE = ["Object", "Object"], ["ndarray", "Object"], ["Object", "ArrowStream"]
BOTH = ["ndarray", "ArrowStream"]


@pytest.fixture(params=["", WITHOUT_C], ids=["in C", "in Python"])
def begin(request):
    """Start servers with options of init."""
    running = []

    def begin(**options):
        port = Port(init={"heartbeat_interval_ms": 0, **options}, prelude=request.param)
        running.append(port)
        return port.__enter__()

    yield begin
    for port in running:
        port.__exit__(None)


def kinds(values):
    """Name the types of values as they arrive."""
    return [v.module.rpartition(".")[2] if type(v) is Struct else type(v).__name__ for v in values]


def words(**options):
    return {name: Atom(value) for name, value in options.items()}


def test_a_request_says_what_arrays_and_tables_are(begin):
    """The default is objects; each option is by itself; nested and alone, of evals and calls."""
    port = begin()
    cases = [
        ({}, HANDLES),
        ({"arrays": "tensor"}, TENSOR),
        ({"tables": "arrow"}, TABLE),
        ({"arrays": "tensor", "tables": "arrow"}, BOTH),
        ({"arrays": "object", "tables": "object"}, HANDLES),
    ]
    for options, wanted in cases:
        value = port.value(port.eval(MADE + "[array, table]", **words(**options)), 60)
        assert kinds(value) == wanted
        value = port.value(port.eval(MADE + "{'a': ([array], table)}", **words(**options)))[b"a"]
        assert kinds([value[0][0], value[1]]) == wanted
        assert kinds([port.value(port.eval(MADE + "table", **words(**options)))]) == wanted[1:]
        assert kinds([port.value(port.call("numpy:arange", [3], **words(**options)))]) == wanted[:1]


def test_a_server_says_it_for_requests_that_do_not(begin):
    """A request that does has its own way, for each of the options."""
    port = begin(arrays="tensor", tables="arrow")
    for options, wanted in [
        ({}, BOTH),
        ({"arrays": "object"}, TABLE),
        ({"tables": "object"}, TENSOR),
        ({"arrays": "object", "tables": "object"}, HANDLES),
    ]:
        value = port.value(port.eval(MADE + "[array, table]", **words(**options)), 60)
        assert kinds(value) == wanted


def test_the_numbers_arrive(begin):
    """A large array leaves by reference, a small one in the frame; both are right."""
    port = begin(arrays="tensor", tables="arrow")
    for size in (3, 1_000_000):
        value = port.value(port.eval(f"import numpy\nnumpy.arange({size}) * 0.5"), 60)
        np.testing.assert_array_equal(value, np.arange(size) * 0.5)
        code = f"import pyarrow\npyarrow.table({{'n': range({size})}})"
        assert pa.table(port.value(port.eval(code), 60))["n"].to_pylist() == list(range(size))


def test_large_data_stands_behind_the_term(begin):
    """In the order of its places, beside objects, small data and functions; not above the limit."""
    port = begin(arrays="tensor", tables="arrow", max_frame_bytes=4_500_000)
    code = """
import numpy as np, pyarrow as pa
large = [np.full(100_000, n) for n in range(3)]
table = pa.table({'n': np.arange(100_000)})
"""
    name = port.eval(code + "{'a': large, 'b': (np.arange(3), table, large[0]), 'c': object()}")
    kind, value, ids = port.reply(name, 60)
    assert (kind, len(ids)) == ("ok", 1)
    assert [array[-1] for array in value[b"a"]] == [0, 1, 2]
    small, table, again = value[b"b"]
    assert (small.tolist(), again[-1], pa.table(table)["n"][-1].as_py()) == ([0, 1, 2], 0, 99_999)
    port.tell(Atom("release"), ids)
    for wrong in ("large * 2", "{'a': [object()], 'b': large * 2}", "large * 2, 'x' * 100_000"):
        error = port.error(port.eval(code + wrong))
        assert error[Atom("kind")] == "encode"
        assert b"larger than 4500000 bytes" in error[Atom("message")]
        assert b"larger max_frame_bytes" in error[Atom("message")]
    assert port.settled(objects=0)
    callback = Struct("Elixir.PyPort.Callback", {Atom("index"): 0, Atom("arity"): 1})
    name = port.eval(code + "f(large)", {"f": callback})
    _request, call, _function, args = port.invoked()
    assert [array[-1] for array in args[0]] == [0, 1, 2]
    port.tell(Atom("answer"), call, (Atom("ok"), 1))
    assert port.value(name) == 1


def test_items_of_streams_are_what_they_were_when_they_were_made(begin):
    """A generator may use its array again for the next item."""
    port = begin(arrays="tensor")
    code = """
import numpy as np
array = np.zeros(100_000)
for n in range(3):
    array[:] = n
    yield array
"""
    name = port.eval(code, stream=True, credit=10)
    for n in range(3):
        kind, value = port.reply(name, 60)[:2]
        assert (kind, value[0], value[-1]) == ("yield", n, n)
    assert port.value(name) is None


def test_awaited_values_and_globals_are_converted_too(begin):
    """Whatever path a request takes."""
    port = begin()
    both = words(arrays="tensor", tables="arrow")
    code = MADE + "import asyncio\nawait asyncio.sleep(0)\n[array, table]"
    assert kinds(port.value(port.eval(code, **both), 60)) == BOTH
    code = "async def items():\n    yield array\n    yield table\nitems()"
    name = port.eval(MADE + code, stream=True, credit=10, **both)
    assert kinds([port.reply(name)[1], port.reply(name)[1]]) == BOTH
    _value, bindings = port.value(port.eval(MADE, **both, **words(**{"return": "globals"})))
    assert kinds([bindings[b"array"], bindings[b"table"]]) == BOTH


def test_an_object_that_is_asked_for_is_one(begin):
    """`return: object` is stronger, and a binding that has no type is an object."""
    port = begin(arrays="tensor", tables="arrow")
    options = words(**{"return": "object"})
    for name in ("array", "table"):
        assert kinds([port.value(port.eval(MADE + name, **options), 60)]) == ["Object"]
    code = MADE + "no = np.array([{}])\narray"
    value, bindings = port.value(port.eval(code, **words(**{"return": "globals"})))
    assert kinds([value, bindings[b"no"], bindings[b"array"]]) == ["ndarray", "Object", "ndarray"]
    error = port.error(port.eval(MADE + "[0, np.array([{}])]"))
    assert error[Atom("kind")] == "encode"
    assert error[Atom("message")].startswith(b"result[1]: a numpy.ndarray of object")


def test_a_table_for_explorer_is_announced(begin):
    """The ids of the reply have a 0 in front, or beside those of objects; no object is kept."""
    port = begin(tables="explorer")
    for code, announced in [("table", 1), ("[table, table]", 2), ("array", 0), ("1", 0)]:
        _kind, _value, *ids = port.reply(port.eval(MADE + code), 60)
        assert (ids[0] if ids else []).count(LOADED) == announced
    assert port.status()[Atom("objects")] == 1  # array
    error = port.error(port.eval(MADE + "[table, object(), 10 ** 10 ** 6, '\\ud800']"))
    assert error[Atom("kind")] == "encode"
    assert port.status()[Atom("objects")] == 1


def test_a_table_of_elixir_comes_back_as_it_was(begin):
    """In every form, and with no library asked."""
    port = begin()
    data = Struct("Elixir.PyPort.Bytes", {"data": b"not even an Arrow stream"})
    fields = {"format": Atom("arrow_stream"), "data": data}
    for options in ({}, {"tables": "arrow"}, {"tables": "explorer"}):
        name = port.eval("[t]", {"t": Struct("Elixir.PyPort.Table", fields)}, **words(**options))
        (table,) = port.value(name)
        assert table.data == b"not even an Arrow stream"


def test_arguments_of_calls_into_the_beam_have_the_form_of_the_server(begin):
    """Also where they are made while a reply is encoded; and requests on top have theirs."""
    code = (
        MADE
        + """
class Lazy:
    def __array__(self): pass
    @property
    def __array_interface__(self):
        f(array)
        return array.__array_interface__
[Lazy(), Lazy(), array]
"""
    )
    callback = Struct("Elixir.PyPort.Callback", {Atom("index"): 0, Atom("arity"): 1})
    for options, sent in (({}, "Object"), ({"arrays": "tensor"}, "ndarray")):
        port = begin(**options)
        name = port.eval(code, {"f": callback}, arrays=Atom("tensor"))
        for _ in range(2):
            _request, call, _function, args, *_ids = port.invoked()
            assert kinds(args) == [sent]
            inner = port.eval(MADE + "array", parent=call)
            assert kinds([port.value(inner)]) == [sent]
            port.tell(Atom("answer"), call, (Atom("ok"), None))
        assert kinds(port.value(name)) == ["ndarray"] * 3


@pytest.mark.parametrize(
    "options", [{"arrays": "list"}, {"tables": "tensor"}, {"arrays": "arrow"}, {"tables": 1}]
)
def test_a_wrong_form_is_refused(begin, options):
    """The error names the option and what it may be."""
    ((name, value),) = options.items()
    port = begin()
    error = port.error(port.eval("1", **{name: Atom(value) if type(value) is str else value}))
    assert error[Atom("kind")] == "protocol"
    assert f"{name} is one of object, ".encode() in error[Atom("message")]


def test_a_conversion_without_an_end_is_cancelled(begin):
    """A table may take any time to make, and is user code."""
    port = begin()
    code = """
import pyarrow as pa
schema = pa.schema([("a", pa.int64())])
def batches():
    f()
    while True:
        yield pa.record_batch({"a": [1]}, schema)
pa.RecordBatchReader.from_batches(schema, batches())
"""
    callback = Struct("Elixir.PyPort.Callback", {Atom("index"): 0, Atom("arity"): 0})
    name = port.eval(code, {"f": callback}, tables=Atom("arrow"))
    _request, call, *_rest = port.invoked()
    port.tell(Atom("answer"), call, (Atom("ok"), None))
    port.tell(Atom("cancel"), name)
    assert port.error(name)[Atom("kind")] == "cancelled"
    assert port.value(port.eval("1 + 1")) == 2


def test_a_buffer_of_arrow_is_its_bytes_in_every_form(begin):
    """It has the buffer protocol, as arrays have, and is a binary."""
    port = begin()
    for options in ({}, {"arrays": "tensor"}, {"tables": "arrow"}):
        for size in (3, 100_000):
            code = f"import pyarrow; [pyarrow.py_buffer(b'a' * {size})]"
            assert port.value(port.eval(code, **words(**options)), 60) == [b"a" * size]
