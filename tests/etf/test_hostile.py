"""Bytes and values made to hurt: never a crash, never much memory, never much time."""

import contextlib
import gc
import os
import pathlib
import random
import resource
import sys
import time
import tracemalloc
import zlib

import pytest

from port_server.etf import Atom, DecodeError, EncodeError, Struct, terms

MIB = 2**20
STATM = pathlib.Path("/proc/self/statm")


def corpus(codec):
    value = {
        "rows": [{"id": n, "name": f"n{n}", "x": n * 1.5, "t": (n, [n], None)} for n in range(20)],
        Atom("k"): [Atom("ok"), True, 2**80, -(2**63), b"bytes", [1, 2, 3], range(3), {1, 2}],
        (1, "a"): Struct("Elixir.User", {"age": 7}),
    }
    node = b"w\x0dnonode@nohost"
    return [
        codec.encode(value),
        b"\x83l\0\0\0\3X" + node + b"\0\0\0\x60\0\0\0\0\0\0\0\0Z\0\3" + node + bytes(16)
        + b"qw\4listw\3mapa\2j",
        b"\x83h\4M\0\0\0\2\3\xff\xe0k\0\3abcl\0\0\0\1a\1a\2c" + b"1.5".ljust(31, b"\0"),
    ]  # fmt: skip


@pytest.mark.parametrize("binary_as", ["str", "memoryview"])
def test_mutations_decode_or_are_refused(codec, binary_as):
    """Tens of thousands of damaged terms: a value or a DecodeError, and what decodes encodes."""
    dice = random.Random(3)
    seeds = corpus(codec)
    rounds = 20_000 if codec.__name__.endswith("native") else 1_000
    for _ in range(rounds):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(1, len(data))
            what = dice.random()
            if what < 0.5:
                data[at] = dice.choice((0, 1, 97, 108, 116, 255, dice.randrange(256)))
            elif what < 0.7:
                data[at:at] = dice.randbytes(dice.randrange(1, 5))
            elif what < 0.9:
                del data[at : at + dice.randrange(1, 5)]
            else:
                other = dice.choice(seeds)
                data[at:] = other[dice.randrange(1, len(other)) :]
        try:
            value = codec.decode(data, binary_as=binary_as)
        except DecodeError as error:
            str(error)
            continue
        try:
            codec.encode(value)
        except EncodeError as error:
            assert "become equal" in str(error) or "local term" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "level", [b"h\1", b"l\0\0\0\1", b"t\0\0\0\1a\1", b"l\0\0\0\0", b"t\0\0\0\1"]
)
def test_a_million_levels_are_refused_at_once(codec, level):
    """Nesting ends at the limit, not at the end of the stack, whatever the level is made of."""
    data = b"\x83" + level * (10**6 if codec.__name__.endswith("native") else 10**5)
    begin = time.perf_counter()
    try:
        codec.decode(data)
    except DecodeError as error:
        assert len(str(error)) < 10_000  # noqa: PT017  an endless empty list is legal
    assert time.perf_counter() - begin < 1


def test_the_deepest_setting_fits_the_stack():
    """2,000 levels, the most that can be asked for, work in both directions."""
    native = pytest.importorskip("port_server.etf.native", reason="see test_build.py")
    for level, end in ((b"h\1", b"j"), (b"l\0\0\0\1", b"j" * 2_000)):
        data = b"\x83" + level * 1_999 + end
        value = native.decode(data, max_depth=2_000)
        assert native.encode(value, max_depth=2_000) == data
        while value:  # from the outside: to compare or to free it whole is Python's own recursion
            value = value[0]


LIES = [
    b"\x83m\xff\xff\xff\xff",
    b"\x83l\x7f\xff\xff\xff" + b"j" * 50,
    b"\x83i\xff\xff\xff\xff" + b"j" * 50,
    b"\x83t\xff\xff\xff\xff" + b"j" * 50,
    b"\x83o\xff\xff\xff\xff\0" + b"j" * 50,
    b"\x83M\xff\xff\xff\xff\1" + b"j" * 50,
    b"\x83p\xff\xff\xff\xff" + b"j" * 50,
    b"\x83" + b"l\x00\x0f\xff\x00" * 500 + b"j" * MIB,
    b"\x83" + b"i\x00\x0f\xff\x00" * 500 + b"j" * MIB,
    b"\x83" + b"t\x00\x07\xff\x00j" * 500 + b"j" * MIB,
]


@pytest.mark.parametrize("data", LIES, ids=lambda data: repr(data[:12]))
def test_lying_lengths_allocate_nothing_much(codec, data):
    """A length is believed only as far as there are bytes for it, nested lengths together."""
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The fallback copies and recurses; 8 bytes an announced element is the C's promise.
    assert peak < 10 * len(data) + MIB


def test_a_zlib_bomb_is_not_inflated(codec):
    """Compressed terms are refused before a byte of them is looked at."""
    bomb = zlib.compress(b"k\xff\xff" + bytes(50 * MIB))
    data = b"\x83P" + (50 * MIB).to_bytes(4, "big") + bomb
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="compressed"):
            codec.decode(data)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_big_integer_costs_no_quadratic_time(codec):
    """One MiB of digits goes in and out within milliseconds."""
    data = b"\x83o" + MIB.to_bytes(4, "big") + b"\1" + b"\xff" * MIB
    begin = time.perf_counter()
    value = codec.decode(data)
    assert codec.encode(value) == data
    assert time.perf_counter() - begin < 0.5


def test_a_binary_that_is_not_utf8_is_not_copied_into_its_error():
    """A UnicodeDecodeError would hold all of its input."""
    native = pytest.importorskip("port_server.etf.native", reason="see test_build.py")
    data = b"\x83m" + (8 * MIB).to_bytes(4, "big") + b"a" * (8 * MIB - 1) + b"\xff"
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=f"at {8 * MIB - 1}"):
            native.decode(data)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_new_atoms_are_forgotten(codec):
    """Names that a peer makes up are not kept."""
    for number in range(100_000 if codec.__name__.endswith("native") else 10_000):
        name = b"made_up_%d" % number
        codec.decode(b"\x83w" + bytes((len(name),)) + name)
    gc.collect()
    assert len(terms._atoms) < 5_000


class Changing:
    """A value whose conversion changes the container it stands in."""

    def __init__(self, change):
        self.change = change


@pytest.mark.parametrize("size", [1, 2, 100])
def test_conversions_that_change_their_container_never_crash(codec, size):
    """Whatever default= does to the lists and dicts around it: an error, or a readable term."""
    dice = random.Random(size)
    for seed in range(200):
        inner: list = []
        outer: dict = {"inner": inner, "more": [inner, (inner,)]}

        def change(_, inner=inner, outer=outer):
            for _ in range(dice.randrange(4)):
                what = dice.randrange(7)
                if what == 0:
                    inner.clear()
                elif what == 1:
                    inner.extend(Changing(None) for _ in range(3))
                elif what == 2:
                    outer.pop("more", None)
                elif what == 3:
                    outer[dice.randrange(20)] = [inner]
                elif what == 4 and inner:
                    del inner[dice.randrange(len(inner))]
                elif what == 5:
                    outer.pop(dice.randrange(20), None)
                else:
                    outer["inner"] = {"x": 1}
            return [None, "text", b"x" * 20_000, [1], {"a": 1}][dice.randrange(5)]

        inner.extend(Changing(None) if dice.random() < 0.5 else "x" * seed for _ in range(size))
        for write in (codec.encode, lambda *a, **k: b"".join(codec.encode_parts(*a, **k))):
            try:
                data = write(outer, default=change)
            except EncodeError:
                continue
            codec.decode(data)


def test_a_float_method_or_an_iterator_of_a_subclass_is_not_called(codec):
    """A subclass of a built-in type is written as its base: nothing of its own runs."""

    def no(*_):
        raise AssertionError("called")

    names = (
        "__float__ __int__ __index__ __iter__ __len__ __getitem__ __abs__ __str__ __bytes__"
        " encode keys items to_bytes bit_length"
    )
    values = (2**70, 7, 1.5, "x", b"x", [1], (1,), {1: 2})
    for base, value in ((type(value), value) for value in values):
        overridden = {name: no for name in names.split() if hasattr(base, name)}
        kind = type("Sub", (base,), overridden)
        assert codec.encode(kind(value)) == codec.encode(value)


def resident_kib():
    return int(STATM.read_text().split()[1]) * resource.getpagesize() // 1024


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_nothing_leaks():
    """After a warm-up, good and bad input leave the memory as it was (10^6 with ETF_LONG=1)."""
    native = pytest.importorskip("port_server.etf.native", reason="see test_build.py")
    good = corpus(native)
    bad = [data[: len(data) // 2] for data in good]
    bad += [b"\x83m\0\0\0\1\xff", b"\x83h\2a\1t\0\0\0\2a\1ja\1j", b"\x83" + b"h\1" * 600, b"\x83y"]
    unwritable = [[object()], {"a": 1, b"a": 2}, ["\ud800"], [1j], {"a": [(object(),)]}]

    def turn(count):
        for _ in range(count):
            for data in good:
                value = native.decode(data)
                native.encode(value)
                native.encode_parts(value, by_reference_from=3)
                native.decode(data, binary_as="memoryview", floats_as="memoryview")
            for data in bad:
                with contextlib.suppress(DecodeError):
                    native.decode(data)
            for value in unwritable:
                with contextlib.suppress(EncodeError):
                    native.encode(value)

    count = 70_000 if os.environ.get("ETF_LONG") else 600
    turn(count)
    gc.collect()
    before, blocks = resident_kib(), sys.getallocatedblocks()
    turn(count)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 300  # a leak would cost a block in every turn
    assert resident_kib() - before < 1024


def test_reference_counts_of_shared_objects_stay():
    """Constants, cached atoms, cached keys and small integers are given and taken in pairs."""
    native = pytest.importorskip("port_server.etf.native", reason="see test_build.py")
    data = b"\x83h\4w\4kept" + b"t\0\0\0\1m\0\0\0\3key" + b"a\xc8w\3nilw\4true"
    kept, fields, *_ = value = native.decode(data)
    watched = [kept, next(iter(fields)), Atom, Struct, value]
    if sys.version_info < (3, 12):  # later ones do not count these any more
        watched += [fields["key"], None, True]
    gc.collect()  # what other tests have left behind holds some of these, too
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(1000):
        assert native.encode(native.decode(data)) == data
        for broken in (data[:-1], data + b"j"):
            with pytest.raises(DecodeError):
                native.decode(broken)
    after = [sys.getrefcount(thing) for thing in watched]
    assert all(abs(a - b) < 20 for a, b in zip(before, after, strict=True)), (before, after)
