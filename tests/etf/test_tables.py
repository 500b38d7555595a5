"""Tables of real libraries become Arrow streams, and these are tables for all of them."""

import builtins
import datetime as dt
import decimal

import duckdb
import nanoarrow
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from port_server.etf import Atom, DecodeError, EncodeError, Struct, tables

COLUMNS = {
    "n": [1, None, 3],
    "x": [0.5, float("inf"), None],
    "text": ["a", "é", None],
    "flag": [True, None, False],
    "when": [
        dt.datetime.fromisoformat("2024-02-29T12:30:00.000001"),
        None,
        dt.datetime.fromisoformat("1969-07-20"),
    ],
    "day": [dt.date(2024, 2, 29), None, dt.date(1, 1, 1)],
    "price": [decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")],
    "list": [[1, 2], [], None],
}
ARROW = pa.table(COLUMNS)
SOURCES = {
    "pandas": lambda: ARROW.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.DataFrame(ARROW),
    "pyarrow": lambda: ARROW,
    "pyarrow in batches": lambda: pa.RecordBatchReader.from_batches(
        ARROW.schema, ARROW.to_batches(1)
    ),
    "a batch of pyarrow": lambda: ARROW.to_batches()[0],
    "duckdb": lambda: duckdb.from_arrow(ARROW),
    "nanoarrow": lambda: nanoarrow.ArrayStream(ARROW),
}


def sent(codec, value):
    """The struct that arrives in Elixir."""
    written = codec.encode(value, default=tables.struct_of)
    assert (
        b"".join(codec.encode_parts(value, default=tables.struct_of, by_reference_from=1))
        == written
    )
    return codec.decode(written, binary_as="bytes", plain_structs=True)


def received(codec, data):
    """What Python gets for the table of a client."""
    fields = {"format": Atom("arrow_stream"), "data": Struct("Elixir.PyPort.Bytes", {"data": data})}
    return codec.decode(codec.encode(Struct("Elixir.PyPort.Table", fields)))


@pytest.fixture
def only(monkeypatch):
    """Let one of the three libraries be importable."""
    real = builtins.__import__

    def choose(name):
        hidden = {"pyarrow", "polars", "nanoarrow"} - {name}

        def refuse(module, *args):
            if module.partition(".")[0] in hidden:
                raise ImportError(module)
            return real(module, *args)

        monkeypatch.setattr(builtins, "__import__", refuse)

    return choose


@pytest.mark.parametrize("source", SOURCES)
def test_every_table_is_an_arrow_stream(codec, source):
    """It has the names and the values of the table, whichever library made it."""
    table = SOURCES[source]()
    written = codec.encode([table], default=tables.struct_of)
    struct = codec.decode(written, binary_as="bytes", plain_structs=True)[0]
    assert struct.module == "Elixir.PyPort.Table"
    assert struct["format"] == Atom("arrow_stream")
    assert pa.ipc.open_stream(struct["data"]).read_all().to_pydict() == COLUMNS


def test_an_empty_table_is_one():
    """Its columns arrive."""
    for table in (pl.DataFrame({"a": []}), pd.DataFrame({"a": []}), ARROW.slice(0, 0)):
        stream = pa.ipc.open_stream(tables.struct_of(table)["data"])
        assert stream.read_all().num_rows == 0
        assert stream.schema.names == list(
            table.columns if hasattr(table, "to_numpy") else ARROW.column_names
        )


@pytest.mark.parametrize("library", ["pyarrow", "polars", "nanoarrow"])
def test_one_of_three_libraries_is_enough(codec, only, library):
    """Each writes and reads streams by itself."""
    source = duckdb.sql("select 1 as n, 'a' as text")
    only(library)
    data = sent(codec, source)["data"]
    table = received(codec, data)
    assert pa.table(table).to_pydict() == {"n": [1], "text": ["a"]}


def test_without_any_of_them_the_error_names_them(codec, only):
    """Both ways."""
    table = received(codec, b"")
    source = duckdb.sql("select 1 as n")
    only(None)
    with pytest.raises(EncodeError, match="pyarrow, polars or nanoarrow: install one"):
        sent(codec, source)
    with pytest.raises(ImportError, match="pyarrow, polars or nanoarrow: install one"):
        table.__arrow_c_stream__()


def test_a_table_that_arrives_is_a_table_for_all_libraries(codec):
    """Twice and more often, because the stream is read anew each time."""
    table = received(codec, sent(codec, ARROW)["data"])
    assert repr(table).startswith("<port_server.etf.tables.ArrowStream of ")
    for _ in range(2):
        assert pa.table(table).to_pydict() == COLUMNS
        assert pl.DataFrame(table).to_arrow().to_pydict() == COLUMNS
        assert pd.DataFrame.from_arrow(table)["text"].to_list()[:2] == ["a", "é"]
        assert duckdb.from_arrow(table).aggregate("sum(n)").fetchall() == [(4,)]
        assert nanoarrow.ArrayStream(table).read_all().to_pylist()[0]["n"] == 1


def test_a_table_that_arrived_goes_back_as_it_came(codec):
    """The bytes are the same, and no library is asked."""
    data = sent(codec, ARROW)["data"]
    assert sent(codec, received(codec, data))["data"] == data


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (pd.Series([1]), "pandas.Series cannot be written as an Arrow stream"),
        (pl.Series([1]), "a column is no table"),
        (pa.chunked_array([[1]]), "non-struct type int64"),
        (pd.DataFrame({"a": [object()]}), "Could not convert"),
        (duckdb.sql("select error('not today')"), "not today"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_table_of_arrow_is_refused_by_name(codec, value, said):
    """The error names the place, the type, the library's reason and two ways out."""
    with pytest.raises(EncodeError) as raised:
        codec.encode({"a": value}, default=tables.struct_of)
    text = str(raised.value)
    assert text.startswith('["a"]: a ')
    assert said in text
    assert "to_frame()" in text
    assert "return: :object" in text


def test_other_values_are_no_tables():
    """Classes, lazy frames and arrays are none."""
    for value in (pd.DataFrame, pl.LazyFrame(), np.zeros(3), [ARROW], {"a": [1]}, None):
        assert tables.struct_of(value) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"format": Atom("parquet"), "data": Struct("Elixir.PyPort.Bytes", {"data": b""})},
        {"format": Atom("arrow_stream"), "data": "text"},
        {"data": Struct("Elixir.PyPort.Bytes", {"data": b""})},
    ],
)
def test_a_table_of_another_shape_is_refused(codec, fields):
    """The error says what a table is."""
    with pytest.raises(DecodeError, match=r"\[0\].*has the format :arrow_stream"):
        codec.decode(codec.encode([Struct("Elixir.PyPort.Table", fields)]))
