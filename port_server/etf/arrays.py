"""Arrays <-> `%PyPort.Tensor{}`: numbers in memory of the CPU, which leave by reference.

Conversion only. A server imports this module when the first array or tensor crosses, and numpy is
imported for a tensor that arrives.
"""

from __future__ import annotations

import math
import sys
from struct import calcsize

from . import structs
from .errors import EncodeError
from .mapping import name_of
from .terms import Atom, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    # Kind and bytes of an item as numpy writes them ("f8"), shape, bytes in C order, meta.
    Array = tuple[str, tuple[int, ...], Any, dict[Atom, Any]]

# The types of Elixir, as Nx names them, by numpy's. "bf2", which numpy lacks, is bfloat16.
_TYPES: Final = {
    **{f"i{bits // 8}": (Atom("s"), bits) for bits in (8, 16, 32, 64)},
    **{f"u{bits // 8}": (Atom("u"), bits) for bits in (8, 16, 32, 64)},
    **{f"f{bits // 8}": (Atom("f"), bits) for bits in (16, 32, 64)},
    **{f"c{bits // 8}": (Atom("c"), bits) for bits in (64, 128)},
    "bf2": (Atom("bf"), 16),
    "b1": (Atom("u"), 8),
}
_CODES: Final = {kind: code for code, kind in _TYPES.items() if code != "b1"}
# Formats of the buffer protocol: kind of numpy's by code.
_KINDS: Final = {
    "?": "b",
    **dict.fromkeys("bhilqn", "i"),
    **dict.fromkeys("BHILQN", "u"),
    **dict.fromkeys("efd", "f"),
}
_FORMATS: Final = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "f4": "f",
    "f8": "d",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}
_NATIVE: Final = "<" if sys.byteorder == "little" else ">"

_KIND, _UNIT, _WRITABLE = Atom("kind"), Atom("unit"), Atom("writable")
_BOOL: Final = {_KIND: Atom("bool")}
_TIMES: Final = {"M": Atom("datetime64"), "m": Atom("timedelta64")}
_WAYS_OUT: Final = "Convert it first, or send it as it is with return: :object or arrays: :object"


# --- to Elixir --------------------------------------------------------------------------------


def struct_of(
    value: Any, arrays: str, place: Callable[[memoryview], Any] = memoryview
) -> Struct | None:
    """Give the struct for an array; None for a value that is none.

    Args:
        value: any value.
        arrays: "tensor" for a `PyPort.Tensor`, "nx" for an `Nx.Tensor`.
        place: gives the value to send for the data, a view of bytes.

    Raises:
        EncodeError: no such struct has the type of its items, or its memory cannot be read here.
    """
    array = _array_of(value)
    if array is None:
        return None
    code, shape, data, meta = array
    if code not in _TYPES:
        raise _no_type(value, code)
    kind = _TYPES[code]
    data = memoryview(data).cast("B") if 0 not in shape else memoryview(b"")
    if arrays == "nx":
        return _nx_tensor(value, kind, shape, meta, lambda: place(data))
    fields = {"type": kind, "shape": shape, "data": place(data), "meta": meta}
    return Struct("Elixir.PyPort.Tensor", fields)


def _nx_tensor(
    value: Any, kind: Any, shape: Any, meta: dict[Atom, Any], data: Callable[[], Any]
) -> Struct:
    template = structs.template("nx_tensor")
    if not template:
        raise EncodeError(
            "the Elixir application does not have the library Nx",
            'Add {:nx, "~> 0.9"} to the dependencies in mix.exs, or use arrays: :tensor',
        )
    if meta.get(_UNIT):
        raise _no_type(value, f"{meta[_KIND]}[{meta[_UNIT]}]")
    if 0 in shape:
        raise EncodeError(
            f"Nx has no tensors without items, as one of the shape {shape}", _WAYS_OUT
        )
    backend = Struct(template[Atom("data")].module, {"state": data()})
    names = [None] * len(shape)
    fields = {"data": backend, "type": kind, "shape": shape, "names": names}
    return Struct("Elixir.Nx.Tensor", template | {Atom(name): fields[name] for name in fields})


def _array_of(value: Any) -> Array | None:
    numpy = sys.modules.get("numpy")
    if isinstance(value, getattr(numpy, "ndarray", ())):
        return _from_numpy(numpy, value)
    kind = type(value)
    if hasattr(kind, "__array_interface__"):
        return _from_interface(value)
    if hasattr(kind, "__dlpack__"):
        return _from_dlpack(value)
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        return None
    return _from_buffer(value, view) if view.ndim else None


def _from_numpy(numpy: Any, array: Any) -> Array:
    dtype = array.dtype
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    if isinstance(array, masked):
        raise EncodeError("a masked array has no tensor type", "Fill it first: array.filled(value)")
    meta: dict[Atom, Any] = {}
    code = "bf2" if dtype.name == "bfloat16" else f"{dtype.kind}{dtype.itemsize}"
    if dtype.kind in _TIMES:
        unit, count = numpy.datetime_data(dtype)
        meta = {_KIND: _TIMES[dtype.kind], _UNIT: unit if count == 1 else f"{count}{unit}"}
        code = "i8"
    elif dtype.kind == "b":
        meta = _BOOL
    elif code not in _TYPES:
        raise _no_type(array, str(dtype))
    array = numpy.asarray(array, dtype=dtype.newbyteorder("="), order="C")
    return code, array.shape, memoryview(array.reshape(-1).view("u1")), meta


def _from_interface(value: Any) -> Array:
    try:
        import numpy as np
    except ImportError:
        pass
    else:
        return _from_numpy(np, np.asarray(value))
    interface = value.__array_interface__
    typestr, shape, data = interface["typestr"], tuple(interface["shape"]), interface.get("data")
    order, code = typestr[0], typestr[1:]
    if interface.get("strides") is not None or (order not in ("|", _NATIVE)):
        raise EncodeError(
            f"an array of the type {typestr} in another order than that of C or of this machine "
            f"cannot be read without numpy",
            "Install numpy, or make it contiguous first",
        )
    if code not in _TYPES:
        raise _no_type(value, typestr)
    if isinstance(data, tuple):
        from . import dlpack

        size = math.prod(shape) * int(code.lstrip("biufc"))
        data = dlpack.memory(data[0], size, value)
    return code, shape, memoryview(value if data is None else data), _meta_of(code)


def _from_dlpack(value: Any) -> Array:
    from . import dlpack

    try:
        code, shape, data = dlpack.read(value)
    except Exception as error:
        why = str(error).rstrip(".")
        raise EncodeError(f"a {name_of(value)} cannot be read: {why}", _WAYS_OUT) from None
    return code, shape, data, _meta_of(code)


def _from_buffer(value: Any, view: memoryview) -> Array:
    letter = view.format.lstrip("@=" + _NATIVE)  # the other order is left, and is not known
    if letter not in _KINDS:
        raise _no_type(value, f"format {view.format}")
    code = f"{_KINDS[letter]}{calcsize(view.format)}"
    data = view if view.c_contiguous else view.tobytes()
    return code, tuple(view.shape or ()), data, _meta_of(code)


def _meta_of(code: str) -> dict[Atom, Any]:
    return _BOOL if code == "b1" else {}


def _no_type(value: Any, dtype: str) -> EncodeError:
    return EncodeError(f"a {name_of(value)} of {dtype} has no tensor type", _WAYS_OUT)


# --- from Elixir ------------------------------------------------------------------------------


def from_fields(fields: dict[Any, Any]) -> Any:
    """Give the array for the fields of a `PyPort.Tensor`: numpy's, else a memoryview.

    Raises:
        ValueError: they do not fit together, or Python has no such array.
    """
    try:
        kind, shape, data, meta = (fields[name] for name in ("type", "shape", "data", "meta"))
        code = _CODES[kind]
    except (KeyError, TypeError):
        known = ", ".join(f"{{:{letter}, {bits}}}" for letter, bits in _CODES)
        raise ValueError(
            f"a tensor has type, shape, data and meta, and its type is one of {known}; got "
            f"{fields.get('type')!r}"
        ) from None
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the shape of a tensor is a tuple of sizes, not {shape!r}")
    if not isinstance(data, (bytes, memoryview)) or type(meta) is not dict:
        raise ValueError("the data of a tensor is a binary in PyPort.Bytes, and its meta a map")
    needed = math.prod(shape) * kind[1] // 8
    if len(data) != needed:
        raise ValueError(
            f"the data of a tensor of the shape {shape} and the type {{:{kind[0]}, {kind[1]}}} "
            f"has {needed} bytes, not {len(data)}"
        )
    special = meta.get(_KIND)
    if special == "bool":
        code = "b1"
    memory: Any = memoryview(data)
    if meta.get(_WRITABLE) is not True:
        memory = memory.toreadonly()
    elif memory.readonly:
        memory = bytearray(data)
    try:
        import numpy as np
    except ImportError:
        return _view(code, shape, memory)
    dtype = _dtype(code)
    if special in _TIMES.values():
        unit = meta.get(_UNIT)
        dtype = f"{special}[{unit.decode() if isinstance(unit, bytes) else unit}]"
    array = np.ndarray(shape, dtype, memory)
    if not array.flags.aligned:  # which costs time, and is refused by some libraries
        array = array.copy()
        array.flags.writeable = meta.get(_WRITABLE) is True
    return array


def _dtype(code: str) -> Any:
    if code != "bf2":
        return code
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ValueError(
            "numpy has no {:bf, 16}: install ml_dtypes into the environment, or send {:f, 32}"
        ) from None
    return bfloat16


def _view(code: str, shape: tuple[int, ...], memory: Any) -> Any:
    if code not in _FORMATS or 0 in shape:
        raise ValueError(
            f"a memoryview of {code} with the shape {shape} is not possible: install numpy into "
            f"the environment"
        )
    view: Any = memoryview(memory)
    return view.cast(_FORMATS[code], shape)
