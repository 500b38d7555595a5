"""Promises for all values and for all bytes, kept by both codecs alike."""

import datetime as dt
import math

import erlang
import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_server.etf import (
    Atom,
    BitString,
    DecodeError,
    EncodeError,
    FrozenList,
    ImproperList,
    Struct,
    fallback,
)

native = pytest.importorskip(
    "port_server.etf.native", reason="the extension is missing; test_build.py says why"
)

NOT_ATOMS = ("nil", "true", "false", "nan", "infinity", "neg_infinity")
atoms = st.text(max_size=20).filter(lambda s: s not in NOT_ATOMS).map(Atom)
names = st.text("abcdefgh_", min_size=1, max_size=8).map(Atom)
floats = st.floats()
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
bits = st.builds(BitString, st.binary(min_size=1, max_size=5), st.integers(1, 7))
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**300), 2**300)
    | floats
    | texts
    | atoms.filter(lambda a: len(a) > 0)
    | bits
)
# Keys of one kind, so that none become equal; equal ones have tests of their own.
keys = st.one_of(texts, st.tuples(st.integers(), texts))


def containers(children):
    return (
        st.lists(children, max_size=6)
        | st.lists(children, max_size=6).map(tuple)
        | st.dictionaries(keys, children, max_size=6)
        | st.dictionaries(names, children, max_size=4)
        | st.builds(
            ImproperList,
            st.lists(children, min_size=1, max_size=4),
            st.integers() | texts,
        )
        | st.builds(
            lambda fields: Struct("Elixir.Some", fields),
            st.dictionaries(names, children, max_size=4),
        )
    )


values = st.recursive(leaves, containers, max_leaves=30)
anything = st.recursive(
    leaves
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.binary(max_size=5).map(bytearray)
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.timezones())
    | st.timedeltas()
    | st.decimals()
    | st.complex_numbers()
    | st.just(object())
    | st.frozensets(st.integers() | st.text(max_size=2) | st.binary(max_size=2), max_size=4)
    | st.dictionaries(
        st.text("ab", max_size=1)
        | st.binary(max_size=1)
        | st.sampled_from([None, Atom("nil"), True, Atom("true"), 1.5, math.nan, Atom("nan")])
        | st.tuples(st.text("ab", max_size=1) | st.binary(max_size=1)),
        st.integers(),
        max_size=5,
    ),
    containers,
    max_leaves=15,
)


def same(one, two):
    """Equal in value and in every type, which Python's == would let pass (1 == True)."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return (
            len(one) == len(two)
            and all(same(a, b) for a, b in zip(one, two, strict=True))
            and all(same(one[key], two[key]) for key in one)
            and getattr(one, "module", None) == getattr(two, "module", None)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, ImproperList):
        return same(one.items, two.items) and same(one.tail, two.tail)
    if isinstance(one, float):
        return one.hex() == two.hex()  # "nan" and "inf" as well
    return one == two or one != one  # noqa: PLR0124  a Decimal NaN


def outcome(call, *arguments, **options):
    try:
        return call(*arguments, **options), None
    except (DecodeError, EncodeError) as error:
        return type(error), error


@given(values)
def test_every_value_comes_back(value):
    """Nothing changes on the way out and in again, not even a type."""
    data = native.encode(value)
    assert same(native.decode(data), value)
    assert native.read_term(data, 1)[1] == len(data)
    assert b"".join(native.encode_parts(value, by_reference_from=4)) == data


@given(anything)
def test_both_codecs_write_the_same(value):
    """Byte for byte; where one refuses, so does the other: same place, same words."""
    ours, error = outcome(native.encode, value)
    theirs, other = outcome(fallback.encode, value)
    assert ours == theirs
    if error is not None:
        assert (error.path, error.reason, error.remedy) == (other.path, other.reason, other.remedy)


def hurt(data, changes):
    changed = bytearray(data)
    for at, what, byte in changes:
        at %= len(changed) + 1  # noqa: PLW2901
        if what == "set" and at < len(changed):
            changed[at] = byte
        elif what == "insert":
            changed.insert(at, byte)
        elif what == "delete":
            del changed[at : at + 1 + byte % 4]
    return bytes(changed)


hurts = st.lists(
    st.tuples(
        st.integers(0, 2000), st.sampled_from(["set", "insert", "delete"]), st.integers(0, 255)
    ),
    max_size=4,
)
TAGS = [70, 77, 97, 98, 99, 100, 104, 105, 106, 107, 108, 109, 110, 111, 115, 116, 118, 119, 121]
tag_soup = st.lists(
    st.sampled_from(TAGS).map(lambda tag: bytes((tag,)))
    | st.sampled_from([b"\0\0\0\1", b"\0\0\0\2", b"\0\1", b"\1", b"\2", b"\0"])
    | st.binary(max_size=3),
    max_size=40,
).map(b"".join)
modes = st.fixed_dictionaries(
    {},
    optional={
        "binary_as": st.sampled_from(["str", "bytes"]),
        "plain_structs": st.booleans(),
        "max_depth": st.sampled_from([0, 1, 3, 100]),
    },
)


def check_both(data, options):
    value, error = outcome(native.decode, data, **options)
    other, reason = outcome(fallback.decode, data, **options)
    assert (error is None) == (reason is None), (error, reason)
    if error is None:
        assert same(value, other)
        return
    assert (error.path, error.reason, error.remedy) == (reason.path, reason.reason, reason.remedy)
    assert error.offset == reason.offset


@given(values, hurts, modes)
def test_both_codecs_read_the_same(value, changes, options):
    """A damaged term has the same value, or the same error at the same byte, in both."""
    check_both(hurt(native.encode(value), changes), options)


@given(tag_soup, modes)
def test_any_bytes_decode_or_are_refused(soup, options):
    """No bytes do anything else than give a value or a DecodeError."""
    check_both(b"\x83" + soup, options)


def known_to_erlang_py(value):
    if isinstance(value, Atom):
        return erlang.OtpErlangAtom(str(value))
    if isinstance(value, str):
        return erlang.OtpErlangBinary(value.encode())
    if isinstance(value, list):
        return [known_to_erlang_py(item) for item in value]
    if isinstance(value, tuple):
        return tuple(known_to_erlang_py(item) for item in value)
    if isinstance(value, BitString):
        return erlang.OtpErlangBinary(value.data, value.bits)
    if isinstance(value, ImproperList):
        items = [known_to_erlang_py(item) for item in [*value.items, value.tail]]
        return erlang.OtpErlangList(items, improper=True)
    if type(value) is dict:
        return {known_to_erlang_py(key): known_to_erlang_py(item) for key, item in value.items()}
    return value


@given(
    st.recursive(
        st.booleans() | st.integers() | finite | texts | names | bits,
        lambda children: (
            st.lists(children, max_size=5)
            | st.lists(children, max_size=5).map(tuple)
            | st.builds(ImproperList, st.lists(children, min_size=1, max_size=4), st.integers())
            | st.dictionaries(texts, children, max_size=5)
        ),
        max_leaves=20,
    )
)
def test_erlang_py_agrees(value):
    """The second judge writes the same bytes, and reads ours into the same bytes again."""
    erlang.set_undefined(b"nil")
    data = native.encode(value)
    assert erlang.term_to_binary(known_to_erlang_py(value)) == data
    assert erlang.term_to_binary(erlang.binary_to_term(data)) == data


@given(st.lists(finite, min_size=1, max_size=50))
def test_typed_floats_are_the_floats(numbers):
    """Whichever way a list of floats is read, it is the same numbers, bit by bit."""
    data = native.encode(numbers)
    for codec in (native, fallback):
        view = codec.decode(data, floats_as="memoryview")
        assert [number.hex() for number in view.tolist()] == [number.hex() for number in numbers]


@given(st.lists(st.integers(), max_size=5))
def test_frozen_lists_stand_in_keys(numbers):
    """A list in a key is hashable, equal to its tuple, and a list again on the way back."""
    data = b"\x83t\0\0\0\1" + native.encode(numbers, head=b"") + b"j"
    value = native.decode(data)
    assert value == {FrozenList(numbers): []}
    assert native.encode(value) == data
