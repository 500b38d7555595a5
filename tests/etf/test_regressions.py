"""What a review broke: each of these crashed, leaked memory, or wrote a frame the BEAM refuses."""

import contextlib
import gc
import sys
import time
import tracemalloc

import pytest

from port_server.etf import Atom, DecodeError, EncodeError, Struct, encode


class Hook:
    """A value without a term: default= is asked."""


def test_a_list_of_floats_that_a_hook_makes_shorter(codec):
    """Floats are read in a run; the run ends where the list now ends."""
    for keep in (1, 2, 3):
        values = [Hook(), *(n + 0.5 for n in range(5_000))]

        def cut(_, values=values, keep=keep):
            del values[keep:]

        with pytest.raises(EncodeError, match="changed while"):
            codec.encode(values, default=cut)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
def test_a_subclass_of_bytes_does_not_speak_for_its_bytes(codec):
    """Whatever __buffer__, __len__ and tobytes say, the base's bytes are written."""

    def lie(*_):
        return memoryview(b"abc" * 50_000)[::2]

    for base in (bytes, bytearray):
        kind = type("Lie", (base,), {"__buffer__": lie, "tobytes": lie, "__len__": lambda _: 1})
        for size in (3, 70_000):
            value, plain = kind(b"x" * size), base(b"x" * size)
            assert codec.encode([value]) == codec.encode([plain])
            parts = codec.encode_parts([value])
            assert sum(map(len, parts)) == len(codec.encode([plain]))
            assert b"".join(parts) == codec.encode([plain])


def test_a_dict_that_a_hook_rebuilds_shows_no_key_twice(codec):
    """The table is compacted under the iteration; the BEAM refuses a key that comes twice."""
    fields = {"a": Hook(), "b": 1, "c": 2}

    def rebuild(_):
        value = fields.pop("a")
        fields.update((number, number) for number in range(100))
        for number in range(100):
            del fields[number]
        fields["a"] = value

    with pytest.raises(EncodeError):
        codec.encode(fields, default=rebuild)


def test_keys_of_a_struct_that_meet(codec):
    """A struct's str keys are atoms when they are compared, too."""
    with pytest.raises(EncodeError, match="become equal"):
        codec.encode(Struct("Elixir.A", {"nil": 1, None: 2}))
    text = type("Text", (str,), {"__eq__": lambda *_: False, "__hash__": str.__hash__})
    assert codec.encode(Struct("Elixir.A", {"x": 1, text("x"): 2}))


def test_a_key_outlives_garbage_collected_in_its_failure(codec):
    """On 3.11 every new object may collect garbage, whose __del__ may empty the dict."""
    for threshold in range(1, 40):
        fields = {f"key-{threshold}" * 20: "\ud800"}

        class Trash:
            def __init__(self, fields):
                self.me, self.fields = self, fields

            def __del__(self):
                self.fields.clear()

        before = gc.get_threshold()
        gc.disable()
        Trash(fields)
        gc.set_threshold(threshold, 1, 1)
        gc.enable()
        try:
            with contextlib.suppress(EncodeError):  # the garbage may go first
                codec.encode(fields)
        finally:
            gc.set_threshold(*before)


def test_a_zone_that_is_a_number_allocates_nothing(codec):
    """bytes(2**28) is 256 MiB of zeros."""
    fields = dict.fromkeys(("year", "month", "day"), 1) | dict.fromkeys(
        ("hour", "minute", "second", "utc_offset", "std_offset"), 0
    )
    fields |= {"calendar": Atom("Elixir.Calendar.ISO"), "microsecond": (0, 0)}
    data = encode(Struct("Elixir.DateTime", fields | {"time_zone": 2**28, "zone_abbr": "x"}))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_structs_and_keys_cost_no_quadratic_time(codec):
    """A Decimal of a MiB, and maps in the keys of maps in the keys of maps."""
    big = b"o" + (2**20).to_bytes(4, "big") + b"\0" + b"\xff" * 2**20
    decimal = (
        b"\x83t\0\0\0\4w\x0a__struct__w\x0eElixir.Decimalw\4signa\1w\4coef" + big + b"w\3expa\1"
    )
    keys = b"\x83" + b"t\0\0\0\1" * 400 + b"t\0\0\0\0" + b"j" * 400
    begin = time.perf_counter()
    assert codec.encode(codec.decode(decimal)) == decimal
    assert codec.encode(codec.decode(keys)) == keys
    assert time.perf_counter() - begin < 0.5

    def below(frames):
        return below(frames - 1) if frames else codec.decode(keys)

    below(700)
