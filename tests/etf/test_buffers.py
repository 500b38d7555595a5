"""A memoryview is a binary if its items are numbers; the addresses of objects never leave."""

import ctypes

import numpy as np
import pytest

from port_server.etf import EncodeError


class Pair(ctypes.Structure):
    """A number, and an object."""

    _fields_ = (("number", ctypes.c_int), ("object", ctypes.py_object))


@pytest.mark.parametrize(
    ("buffer", "format"),
    [
        (np.array([{}, "a"]), "O"),
        (np.array([{}, "a"], dtype=object)[::2], "O"),
        (np.zeros(2, dtype=[("number", "i4"), ("object", "O")]), "T{i:number:O:object:}"),
        (np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]), "T{i:a:d:b:}"),
        (np.array(["text"]), "4w"),
        (np.array([b"text"]), "4s"),
        (np.zeros(2, dtype="V3"), "3x"),
        ((ctypes.py_object * 2)(), "<O"),
        ((ctypes.c_void_p * 2)(), "<P"),
        ((Pair * 2)(), "T{<i:number:4x<O:object:}"),
    ],
)
def test_items_that_are_no_numbers_are_refused_by_name(codec, buffer, format):
    """The error names the place and the format, alone and nested, at any size."""
    for view in (memoryview(buffer), memoryview(buffer)[:1]):
        with pytest.raises(EncodeError) as raised:
            codec.encode({"a": [1, view]})
        assert str(raised.value).startswith('["a"][1]')
        assert "memoryview of format" in str(raised.value)
        assert format.split(":")[0] in str(raised.value)
        with pytest.raises(EncodeError, match=r"tolist\(\)"):
            codec.encode_parts(view, by_reference_from=0)


@pytest.mark.parametrize("dtype", [*"?bBhHiIlLqQnNefdgFDG", ">i4", "<f8", "c"])
def test_numbers_and_single_bytes_are_binaries(codec, dtype):
    """Each numeric format of numpy's is written as its bytes."""
    array = np.zeros(3, dtype="S1" if dtype == "c" else dtype)
    view = memoryview(array).cast("B").cast("c") if dtype == "c" else memoryview(array)
    assert codec.decode(codec.encode(view), binary_as="bytes") == array.tobytes()
