"""Tables <-> `%PyPort.Table{}`: exporters of Arrow C streams, as bytes of an Arrow IPC stream.

Conversion only. A server imports this module when the first table crosses. pyarrow, polars or
nanoarrow does the work.
"""

from __future__ import annotations

import sys
from io import BytesIO

from .errors import EncodeError
from .mapping import name_of
from .terms import Atom, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    Functions = dict[str, Callable[[Any], Any]]

_FORMAT: Final = Atom("arrow_stream")


class ArrowStream:
    """A table of Elixir's, for all libraries that import Arrow C streams.

    `polars.DataFrame(table)`, `pyarrow.table(table)`, `pandas.DataFrame.from_arrow(table)`.

    Attributes:
        data: the bytes of the Arrow IPC stream.
    """

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Read the stream, with pyarrow, polars or nanoarrow."""
        return _first(_READERS)(self.data).__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"<port_server.etf.tables.ArrowStream of {len(self.data)} bytes>"


def struct_of(value: Any, place: Callable[[memoryview], Any] = memoryview) -> Struct | None:
    """Give the struct for a table; None for a value that is none.

    Args:
        value: any value.
        place: gives the value to send for the data, a view of bytes.

    Raises:
        EncodeError: it cannot be written as an Arrow stream.
    """
    if type(value) is ArrowStream:
        return _table(place(memoryview(value.data)))
    if not hasattr(type(value), "__arrow_c_stream__"):
        return None
    own = type(value).__module__.partition(".")[0]
    try:
        data = (_WRITERS.get(own) or _first(_WRITERS))(value)
    except Exception as error:
        raise EncodeError(
            f"a {name_of(value)} cannot be written as an Arrow stream: {str(error).rstrip('.')}",
            "Make it a table of types that Arrow has, as series.to_frame() does for a column, or "
            "send it as it is with return: :object or tables: :object",
        ) from None
    return _table(place(memoryview(data)))


def from_fields(fields: dict[Any, Any]) -> ArrowStream:
    """Give the stream for the fields of a `PyPort.Table`.

    Raises:
        ValueError: it is none.
    """
    data = fields.get("data")
    if fields.get("format") != _FORMAT or not isinstance(data, (bytes, memoryview)):
        raise ValueError(
            "a table has the format :arrow_stream, and as data a binary in PyPort.Bytes"
        )
    return ArrowStream(data)


def _table(data: Any) -> Struct:
    return Struct("Elixir.PyPort.Table", {"format": _FORMAT, "data": data})


def _first(functions: Functions) -> Callable[[Any], Any]:
    """Give the function for the first of the libraries that is installed."""
    for name, function in functions.items():
        try:
            __import__(name)
        except ImportError:
            continue
        return function
    raise ImportError("Arrow streams need pyarrow, polars or nanoarrow: install one of them")


def _write_pyarrow(value: Any) -> memoryview:
    import pyarrow as pa
    import pyarrow.ipc

    if isinstance(value, getattr(sys.modules.get("pandas"), "DataFrame", ())):
        # As its own stream is made; to export that and to import it costs a tenth of the whole.
        reader = pa.Table.from_pandas(value).to_reader()
    else:
        reader = pa.RecordBatchReader.from_stream(value)
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _write_polars(value: Any) -> memoryview:
    import polars as pl

    if isinstance(value, pl.Series):
        raise TypeError("a column is no table")
    frame = value if isinstance(value, pl.DataFrame) else pl.DataFrame(value)
    sink = BytesIO()
    # Views of strings are read by the newest libraries only.
    frame.write_ipc_stream(sink, compat_level=pl.CompatLevel.oldest())
    return sink.getbuffer()


def _write_nanoarrow(value: Any) -> memoryview:
    from nanoarrow.ipc import StreamWriter

    sink = BytesIO()
    with StreamWriter.from_writable(sink) as writer:
        writer.write_stream(value)
    return sink.getbuffer()


def _read_pyarrow(data: Any) -> Any:
    import pyarrow.ipc

    return pyarrow.ipc.open_stream(data)


def _read_polars(data: Any) -> Any:
    import polars as pl

    return pl.read_ipc_stream(BytesIO(data))


def _read_nanoarrow(data: Any) -> Any:
    from nanoarrow.ipc import InputStream

    return InputStream.from_readable(BytesIO(data))


_WRITERS: Final[Functions] = {
    "pyarrow": _write_pyarrow,
    "polars": _write_polars,
    "nanoarrow": _write_nanoarrow,
}
_READERS: Final[Functions] = {
    "pyarrow": _read_pyarrow,
    "polars": _read_polars,
    "nanoarrow": _read_nanoarrow,
}
