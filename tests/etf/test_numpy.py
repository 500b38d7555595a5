"""numpy's scalars are numbers, without numpy being imported for it; typed floats become arrays."""

import pytest

from port_server.etf import EncodeError

numpy = pytest.importorskip("numpy", reason="numpy is in the bench group only")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.int8(-1), -1),
        (numpy.uint64(2**64 - 1), 2**64 - 1),
        (numpy.float32(0.5), 0.5),
        (numpy.float64(0.1), 0.1),
        (numpy.longdouble(0.5), 0.5),
        (numpy.float32("nan"), float("nan")),
        (numpy.bool_(1), True),
        (numpy.str_("é"), "é"),
        (numpy.bytes_(b"x"), b"x"),
    ],
)
def test_scalars_are_numbers(codec, value, plain):
    """A scalar is written like the Python value it stands for, as an item and as a key."""
    assert codec.encode([value]) == codec.encode([plain])
    assert codec.encode({value: 1}) == codec.encode({plain: 1})


def test_arrays_and_complex_scalars_have_no_term(codec):
    """What has no mapping is left to default=: arrays become handles, not lists by accident."""
    for value in (numpy.arange(3), numpy.complex64(1j)):
        with pytest.raises(EncodeError, match="has no term"):
            codec.encode(value)
        assert codec.encode(value, default=lambda _: None) == codec.encode(None)


def test_floats_as_numpy(codec):
    """A list of floats comes as an array over the decoded buffer, writable, of doubles."""
    array = codec.decode(codec.encode([1.5, -2.0]), floats_as="numpy")
    assert isinstance(array, numpy.ndarray)
    assert array.dtype == numpy.float64
    assert array.tolist() == [1.5, -2.0]
    array[0] = 7.0
