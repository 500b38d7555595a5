"""Arrays of real libraries become tensors, and tensors arrays, by both codecs."""

import builtins
import ctypes
import io
import mmap

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from port_server.etf import Atom, DecodeError, EncodeError, Struct, arrays, set_templates, structs

TENSOR = "Elixir.PyPort.Tensor"


class ByDLPack:
    """A tensor of a library that has nothing but DLPack, as torch's; optionally of another type."""

    def __init__(self, array, code=None, device=1):
        self.array, self.code, self.device = array, code, device

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self):
        capsule = self.array.__dlpack__()
        if self.code is not None:
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.restype, pointer.argtypes = (
                ctypes.c_void_p,
                (ctypes.py_object, ctypes.c_char_p),
            )
            # Behind data, device and ndim.
            ctypes.c_uint8.from_address(pointer(capsule, b"dltensor") + 20).value = self.code
        return capsule


class ByDLPack1(ByDLPack):
    """The same by DLPack 1.0, for memory that must not be written."""

    def __dlpack__(self, *, max_version):
        self.array.flags.writeable = False
        return self.array.__dlpack__(max_version=max_version)


class ByInterface:
    """An image, say: its `__array_interface__` and nothing else."""

    def __init__(self, array, **changes):
        self.array, self.changes = array, changes

    @property
    def __array_interface__(self):
        return {**self.array.__array_interface__, **self.changes}


def as_tensor(arrays_as="tensor"):
    return lambda value: arrays.struct_of(value, arrays_as)


def sent(codec, value):
    """The struct that arrives in Elixir."""
    written = codec.encode(value, default=as_tensor())
    assert b"".join(codec.encode_parts(value, default=as_tensor(), by_reference_from=1)) == written
    return codec.decode(written, binary_as="bytes", plain_structs=True)


@pytest.fixture
def without_numpy(monkeypatch):
    """An environment in which numpy cannot be imported."""
    real = builtins.__import__

    def refuse(name, *args):
        if name.partition(".")[0] in ("numpy", "ml_dtypes"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)


TYPES = {
    "int8": ("s", 8),
    "int16": ("s", 16),
    "int32": ("s", 32),
    "int64": ("s", 64),
    "uint8": ("u", 8),
    "uint16": ("u", 16),
    "uint32": ("u", 32),
    "uint64": ("u", 64),
    "float16": ("f", 16),
    "float32": ("f", 32),
    "float64": ("f", 64),
    "complex64": ("c", 64),
    "complex128": ("c", 128),
    "bool": ("u", 8),
    "bfloat16": ("bf", 16),
}
SHAPES = [(), (0,), (1,), (6,), (2, 3), (2, 0, 3), (1, 2, 3, 1)]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_type_and_shape_goes_both_ways(codec, name, shape):
    """Numpy -> Elixir -> numpy gives an equal array of the same type and shape."""
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    struct = sent(codec, [array])[0]
    assert struct.module == TENSOR
    assert struct["type"] == TYPES[name]
    assert struct["shape"] == shape
    assert struct["data"] == array.tobytes()
    assert struct["meta"] == ({"kind": "bool"} if name == "bool" else {})
    back = codec.decode(codec.encode(array, default=as_tensor()), binary_as="bytes")
    assert type(back) is np.ndarray
    assert back.dtype == dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24).reshape(2, 3, 4).T,
        np.arange(24).reshape(2, 3, 4)[:, ::-2, 1:3],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.arange(3), (2, 3)),
        np.arange(3, dtype=">i4"),
        np.arange(3, dtype=">f8")[::-1],
        np.arange(4).view(type("Own", (np.ndarray,), {})),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_data_is_in_c_order_and_native_byte_order(codec, array):
    """Other orders are converted."""
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
    struct = sent(codec, array)
    assert struct["data"] == native.tobytes()
    assert struct["shape"] == array.shape


def test_an_array_in_order_is_not_copied():
    """The struct refers to the array's own memory."""
    array = np.zeros(1000)
    data = arrays.struct_of(array, "tensor")["data"]
    array[:] = 1.5
    assert bytes(data) == array.tobytes()


@pytest.mark.parametrize(
    ("array", "kind", "unit"),
    [
        (np.array(["2024-02-29T12:00", "NaT"], "M8[ns]"), "datetime64", "ns"),
        (np.array(["2024-02-29"], "M8[D]"), "datetime64", "D"),
        (np.array([1, 2], ">M8[ms]"), "datetime64", "ms"),
        (np.array([-5, "NaT"], "m8[25s]"), "timedelta64", "25s"),
        (pd.date_range("2020", periods=2).to_numpy(), "datetime64", None),
    ],
    ids=["ns", "days", "big-endian", "25s", "pandas"],
)
def test_times_are_their_integers_with_the_unit_in_meta(codec, array, kind, unit):
    """They come back as the same times, NaT included."""
    struct = sent(codec, array)
    assert struct["type"] == ("s", 64)
    assert struct["meta"] == {
        "kind": kind,
        "unit": (unit or np.datetime_data(array.dtype)[0]).encode(),
    }
    assert struct["data"] == array.astype(array.dtype.newbyteorder("=")).view("i8").tobytes()
    back = codec.decode(codec.encode(array, default=as_tensor()), binary_as="bytes")
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.array([{}, 1]), "object"),
        (np.array(["text"]), "<U4"),
        (np.array([b"text"]), "|S4"),
        (np.zeros(2, "V3"), "|V3"),
        (np.zeros(2, [("a", "i4"), ("b", "O")]), "('b', 'O')"),
        (np.zeros(2, "g"), "float128"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
        (np.zeros(2, ml_dtypes.int4), "int4"),
        (np.ma.array([1, 2], mask=[0, 1]), "masked array"),
        (pa.array([1, None]), "no nulls"),
        (ByDLPack(np.arange(3), device=2), "device CUDA:0"),
        (ByDLPack(np.arange(3), device=99), "device type 99:0"),
        (ByDLPack(np.arange(3), code=3), "DLPack's type 3"),
        (ByDLPack(np.arange(3, dtype="g")), "float128"),
        ((ctypes.py_object * 2)(), "format <O"),
        ((ctypes.c_double.__ctype_be__ * 2)(), "format >d"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_type_is_refused_by_name(codec, array, named):
    """The error names the place, the type, and a way out that exists."""
    with pytest.raises(EncodeError) as raised:
        codec.encode({"a": [array]}, default=as_tensor())
    text = str(raised.value)
    assert text.startswith('["a"][0]')
    assert named.replace("float128", str(np.dtype("g"))) in text or "DLPack only" in text
    assert "return: :object" in text or "array.filled(value)" in text


@pytest.mark.parametrize(
    ("value", "kind", "shape", "data"),
    [
        (ByDLPack(np.arange(3, dtype="i2")), ("s", 16), (3,), np.arange(3, dtype="i2")),
        (
            ByDLPack(np.arange(6.0).reshape(2, 3)[:, ::2]),
            ("f", 64),
            (2, 2),
            np.array([0.0, 2, 3, 5]),
        ),
        (ByDLPack(np.arange(3)[::-1]), ("s", 64), (3,), np.array([2, 1, 0])),
        (ByDLPack(np.zeros((0, 3))), ("f", 64), (0, 3), np.zeros(0)),
        (ByDLPack(np.array([True])), ("u", 8), (1,), np.array([True])),
        (ByDLPack(np.array(2j)), ("c", 128), (), np.array(2j)),
        (ByDLPack(np.arange(3, dtype="u2"), code=4), ("bf", 16), (3,), np.arange(3, dtype="u2")),
        (
            ByDLPack(np.arange(6, dtype="u2")[::2], code=4),
            ("bf", 16),
            (3,),
            np.array([0, 2, 4], "u2"),
        ),
        (
            ByInterface(np.arange(6).reshape(2, 3).T),
            ("s", 64),
            (3, 2),
            np.array([0, 3, 1, 4, 2, 5]),
        ),
        (ByInterface(np.arange(3, dtype=">u2")), ("u", 16), (3,), np.arange(3, dtype="u2")),
        (ByDLPack1(np.arange(3)[::-1]), ("s", 64), (3,), np.array([2, 1, 0])),
        (pa.array([1, 2, 3]), ("s", 64), (3,), np.array([1, 2, 3])),
        ((ctypes.c_float * 2 * 2)(), ("f", 32), (2, 2), np.zeros(4, "f4")),
        ((ctypes.c_bool * 2)(False, True), ("u", 8), (2,), np.array([0, 1], "u1")),
        (mmap.mmap(-1, 4), ("u", 8), (4,), np.zeros(4, "u1")),
        (np.complex64(1j), ("c", 64), (), np.complex64(1j)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
)
def test_dlpack_interface_and_buffers_are_arrays(codec, value, kind, shape, data):
    """Strided ones are copied, others are read where they are; their memory outlives them."""
    struct = sent(codec, value)
    assert struct["type"] == kind
    assert struct["shape"] == shape
    assert struct["data"] == data.tobytes()


def test_memory_by_dlpack_lives_as_long_as_the_struct():
    """The array is freed while the struct is there, and its memory is not."""
    data = arrays.struct_of(ByDLPack(np.full(100_000, 1.5)), "tensor")["data"]
    np.full(100_000, 9.0)
    assert bytes(data) == np.full(100_000, 1.5).tobytes()


def test_other_values_are_no_arrays():
    """Columns, frames, scalars and numbers stay what they are."""
    for value in (
        pd.Series([1]),
        pd.DataFrame(),
        5j,
        object(),
        np.ndarray,
        ctypes.c_int(3),
        io.BytesIO(),
    ):
        assert arrays.struct_of(value, "tensor") is None


# --- from Elixir ------------------------------------------------------------------------------


def tensor(kind, shape, data, /, **meta):
    """A tensor as the client sends it."""
    fields = {
        "type": (Atom(kind[0]), kind[1]),
        "shape": shape,
        "data": Struct("Elixir.PyPort.Bytes", {"data": data}),
        "meta": {Atom(key): Atom(value) if key == "kind" else value for key, value in meta.items()},
    }
    return Struct(TENSOR, fields)


def test_a_writable_tensor_is_a_copy(codec):
    """`writable: true` gives an array that can be changed, and the others cannot."""
    data = np.arange(3.0).tobytes()
    for binary_as in ("str", "bytes"):
        array = codec.decode(
            codec.encode(tensor(("f", 64), (3,), data, writable=True)), binary_as=binary_as
        )
        array[0] = 7
        assert array.tolist() == [7, 1, 2]
        fixed = codec.decode(codec.encode(tensor(("f", 64), (3,), data)), binary_as=binary_as)
        with pytest.raises(ValueError, match="read-only"):
            fixed[0] = 7


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (tensor(("f", 64), (3,), b"12345678"), "has 24 bytes, not 8"),
        (tensor(("f", 8), (3,), b"123"), "its type is one of {:s, 8}"),
        (tensor(("x", 64), (3,), b"123"), "its type is one of"),
        (tensor(("f", 64), [3], b"123"), "is a tuple of sizes"),
        (tensor(("f", 64), (-3,), b"123"), "is a tuple of sizes"),
        (
            Struct(TENSOR, {"type": (Atom("u"), 8), "shape": (1,), "data": "x", "meta": {}}),
            "PyPort.Bytes",
        ),
        (
            Struct(TENSOR, {"type": (Atom("u"), 8), "shape": (1,), "data": b"x"}),
            "type, shape, data and meta",
        ),
        (Struct(TENSOR, {"type": Atom("u")}), "type, shape, data and meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tensor_that_does_not_fit_together_is_refused(codec, fields, said):
    """The error names the place, and what a tensor is."""
    with pytest.raises(DecodeError) as raised:
        codec.decode(codec.encode({"a": [fields]}))
    assert said in str(raised.value)
    assert str(raised.value).startswith('["a"][0]')


@pytest.mark.parametrize(
    ("kind", "meta", "format"),
    [
        (("s", 8), {}, "b"),
        (("u", 16), {}, "H"),
        (("s", 64), {}, "q"),
        (("f", 32), {}, "f"),
        (("f", 64), {}, "d"),
        (("u", 8), {"kind": "bool"}, "?"),
        (("s", 64), {"kind": "datetime64", "unit": "ns"}, "q"),
    ],
)
@pytest.mark.usefixtures("without_numpy")
def test_without_numpy_a_tensor_is_a_memoryview(codec, kind, meta, format):
    """It has the format and the shape, and `writable: true` works as well."""
    data = bytes(6 * kind[1] // 8)
    for shape in [(6,), (2, 3), (1, 2, 3)]:
        view = codec.decode(codec.encode(tensor(kind, shape, data, **meta)))
        assert type(view) is memoryview
        assert (view.format, view.shape, view.readonly) == (format, shape, True)
    view = codec.decode(codec.encode(tensor(kind, (2, 3), data, writable=True, **meta)))
    view[1, 2] = 1
    assert view[1, 2] == 1


@pytest.mark.usefixtures("without_numpy")
def test_what_a_memoryview_cannot_be_asks_for_numpy(codec):
    """Types and shapes that it does not have are refused by name."""
    for wrong in (
        tensor(("f", 16), (1,), b"12"),
        tensor(("c", 64), (1,), b"12345678"),
        tensor(("u", 8), (0, 2), b""),
    ):
        with pytest.raises(DecodeError, match="install numpy"):
            codec.decode(codec.encode(wrong))


def test_bfloat16_needs_ml_dtypes(codec, monkeypatch):
    """Numpy has no such type; the error says which package has it."""
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(DecodeError, match="install ml_dtypes"):
        codec.decode(codec.encode(tensor(("bf", 16), (1,), b"12")))


@pytest.mark.usefixtures("without_numpy")
def test_without_numpy_interfaces_are_read_as_they_are(codec):
    """By their address or their buffer, in C order; others are refused by name."""
    array = np.arange(6, dtype="i4").reshape(2, 3)
    for value in (ByInterface(array), ByInterface(array, data=array.tobytes())):
        struct = sent(codec, value)
        assert (struct["type"], struct["shape"], struct["data"]) == (
            ("s", 32),
            (2, 3),
            array.tobytes(),
        )
    for value in (ByInterface(array.T), ByInterface(array.astype(">i4"))):
        with pytest.raises(EncodeError, match="numpy"):
            codec.encode(value, default=as_tensor())
    with pytest.raises(EncodeError, match="not contiguous, and numpy"):
        codec.encode(ByDLPack(array.T), default=as_tensor())


# --- Nx ---------------------------------------------------------------------------------------


@pytest.fixture
def nx():
    """The shape that a client with Nx sends; of a later version, with a field more."""
    backend = Struct("Elixir.Nx.BinaryBackend", {Atom("state"): None})
    fields = {
        "data": backend,
        "type": None,
        "shape": None,
        "names": None,
        "vectorized_axes": [],
        "new?": False,
    }
    set_templates(
        {"nx_tensor": Struct("Elixir.Nx.Tensor", {Atom(key): fields[key] for key in fields})}
    )
    yield
    set_templates({})


@pytest.mark.usefixtures("nx")
def test_a_tensor_of_nx_has_the_shape_that_the_client_has_sent(codec):
    """Its type is Nx's, and fields that are not known here keep their defaults."""
    for array, kind in ((np.arange(6.0).reshape(2, 3), ("f", 64)), (np.array([True]), ("u", 8))):
        written = codec.encode([array], default=as_tensor("nx"))
        struct = codec.decode(written, binary_as="bytes", plain_structs=True)[0]
        assert struct.module == "Elixir.Nx.Tensor"
        assert struct["data"].module == "Elixir.Nx.BinaryBackend"
        assert dict(struct["data"]) == {"state": array.tobytes()}
        rest = {key: value for key, value in struct.items() if key != "data"}
        assert rest == {
            "type": kind,
            "shape": array.shape,
            "names": [None] * array.ndim,
            "vectorized_axes": [],
            "new?": False,
        }


@pytest.mark.usefixtures("nx")
def test_what_nx_does_not_have_is_refused_by_name(codec):
    """Times would lose their unit, and Nx has no empty tensors."""
    for array, said in (
        (np.array([1], "M8[ns]"), r"datetime64\[ns\]"),
        (np.zeros((2, 0)), r"\(2, 0\)"),
    ):
        with pytest.raises(EncodeError, match=said):
            codec.encode(array, default=as_tensor("nx"))


def test_without_nx_the_error_names_the_dependency(codec):
    """The client has sent no such shape."""
    assert structs.template("nx_tensor") == {}
    with pytest.raises(EncodeError, match=r'Add \{:nx, "~> 0.9"\}'):
        codec.encode(np.zeros(1), default=as_tensor("nx"))
