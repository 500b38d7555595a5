"""What Python values become: every type, every refusal, and hooks that misbehave."""

import collections
import dataclasses
import datetime as dt
import enum
import pathlib
import sys
import uuid

import pytest

from port_server.etf import (
    Atom,
    BitString,
    EncodeError,
    FrozenList,
    FrozenMap,
    ImproperList,
    Struct,
    register,
    set_templates,
    structs,
)


def nested(depth, kind=list):
    value = kind()
    for _ in range(depth - 1):
        value = kind([value])
    return value


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: int
    unit: dataclasses.InitVar[str] = "m"


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024  the plainest there is


class Shout(str):
    __slots__ = ()

    def __str__(self):
        return "overridden"


class Loud(list):
    def __iter__(self):
        return iter(["overridden"])


VALUES = [
    (None, b"w\3nil"),
    (True, b"w\4true"),
    (False, b"w\5false"),
    (0, b"a\0"),
    (255, b"a\xff"),
    (256, b"b\0\0\1\0"),
    (-1, b"b\xff\xff\xff\xff"),
    (2**31 - 1, b"b\x7f\xff\xff\xff"),
    (2**31, b"n\4\0\0\0\0\x80"),
    (-(2**31) - 1, b"n\4\1\1\0\0\x80"),
    (2**63, b"n\x08\0" + b"\0" * 7 + b"\x80"),
    (-(2**63), b"n\x08\1" + b"\0" * 7 + b"\x80"),
    (2**64, b"n\x09\0" + b"\0" * 8 + b"\1"),
    (2**2040 - 1, b"n\xff\0" + b"\xff" * 255),
    (-(2**2040), b"o\0\0\1\0\1" + b"\0" * 255 + b"\1"),
    (1.5, b"F\x3f\xf8\0\0\0\0\0\0"),
    (-0.0, b"F\x80" + b"\0" * 7),
    (float("inf"), b"w\x08infinity"),
    (float("-inf"), b"w\x0cneg_infinity"),
    (float("nan"), b"w\3nan"),
    (Atom("é"), b"w\2\xc3\xa9"),
    (Atom("é" * 255), b"v\1\xfe" + b"\xc3\xa9" * 255),
    ("hé", b"m\0\0\0\3h\xc3\xa9"),
    (b"\xff", b"m\0\0\0\1\xff"),
    (bytearray(b"ab"), b"m\0\0\0\2ab"),
    (memoryview(b"abcd")[::2], b"m\0\0\0\2ac"),
    ([], b"j"),
    ([1, [2]], b"l\0\0\0\2a\1l\0\0\0\1a\2jj"),
    ((), b"h\0"),
    ((1,) * 256, b"i\0\0\1\0" + b"a\1" * 256),
    ({}, b"t\0\0\0\0"),
    ({"a": 1}, b"t\0\0\0\1m\0\0\0\1aa\1"),
    (BitString(b"\xff", 1), b"M\0\0\0\1\1\x80"),
    (ImproperList([1], 2), b"l\0\0\0\1a\1a\2"),
    (FrozenList([1]), b"l\0\0\0\1a\1j"),
    (FrozenMap({1: 2}), b"t\0\0\0\1a\1a\2"),
    (Color.RED, b"m\0\0\0\3red"),
    (Level.HIGH, b"a\3"),
    (Point(1, 2), b"t\0\0\0\2m\0\0\0\1xa\1m\0\0\0\1ya\2"),
    (Pair(1, 2), b"h\2a\1a\2"),
    (Shout("x"), b"m\0\0\0\1x"),
    (Loud([1]), b"l\0\0\0\1a\1j"),
    (collections.OrderedDict(a=1), b"t\0\0\0\1m\0\0\0\1aa\1"),
    (uuid.UUID(int=0), b"m\0\0\0\x2400000000-0000-0000-0000-000000000000"),
    (pathlib.Path("/x"), b"m\0\0\0\2/x"),
    (Struct("Elixir.A", {"b": 1}), b"t\0\0\0\2w\x0a__struct__w\x08Elixir.Aw\1ba\1"),
]


@pytest.mark.parametrize(("value", "data"), VALUES, ids=lambda value: repr(value)[:40])
def test_a_value_becomes_its_term(codec, value, data):
    """The bytes are exactly these, behind whatever head the caller gives."""
    assert codec.encode(value) == b"\x83" + data
    assert codec.encode(value, head=b"\x83h\1") == b"\x83h\1" + data
    assert codec.encode([value]) == b"\x83l\0\0\0\1" + data + b"j"
    assert codec.encode({1: value}) == b"\x83t\0\0\0\1a\1" + data
    assert b"".join(codec.encode_parts((value,))) == b"\x83h\1" + data


def test_large_bytes_leave_by_reference(codec):
    """`encode_parts` copies no large bytes-like, and the parts together are the term."""
    large, mutable = bytes(100_000), bytearray(100_000)
    value = [large, "x", mutable, memoryview(large)[1:]]
    parts = codec.encode_parts(value, head=b"head")
    assert b"".join(parts) == codec.encode(value, head=b"head")
    assert any(part is large for part in parts)
    assert [part.obj is mutable for part in parts if type(part) is memoryview] == [True, False]
    with pytest.raises(BufferError):
        mutable.append(1)  # while a part is alive the buffer cannot move
    assert len(codec.encode_parts(value, by_reference_from=10**6)) == 1


def test_the_path_and_the_remedy_are_named(codec):
    """An error says where the value stands, what is wrong and what to do."""
    with pytest.raises(EncodeError) as caught:
        codec.encode({"rows": [0, {Atom("name"): object()}]})
    assert caught.value.path == '["rows"][1]["name"]'
    assert caught.value.reason == "a value of type object has no term"
    assert "register" in caught.value.remedy


def test_default_is_asked_last(codec):
    """`default` gives a mappable value; its own EtfError gets the path, other errors pass."""
    assert codec.encode([object()], default=lambda _: 7) == b"\x83l\0\0\0\1a\7j"

    def full(_):
        raise EncodeError("the table is full")

    with pytest.raises(EncodeError) as caught:
        codec.encode({"a": (object(),)}, default=full)
    assert caught.value.path == '["a"][0]'
    with pytest.raises(ZeroDivisionError):
        codec.encode([object()], default=lambda _: 1 / 0)
    with pytest.raises(EncodeError, match="deeper than"):
        codec.encode(object(), default=lambda value: value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"a": 1, b"a": 2}, "\"a\" and b'a'"),
        ({b"a": 1, "a": 2}, "b'a' and \"a\""),
        ({None: 1, Atom("nil"): 2}, "None and :nil"),
        ({("a",): 1, (b"a",): 2}, "('a',) and (b'a',)"),
        ({float("nan"): 1, Atom("nan"): 2}, "nan and :nan"),
        ({float("nan"): 1, float("nan"): 2}, "nan and nan"),
        ({Color.RED: 1, "red": 2}, "<Color.RED: 'red'> and \"red\""),
    ],
)
def test_keys_that_become_equal_are_an_error_that_names_them(codec, value, names):
    """No entry of a dict, and no member of a set, is dropped in silence."""
    with pytest.raises(EncodeError, match="become equal on the BEAM") as caught:
        codec.encode([value])
    assert names in caught.value.reason
    with pytest.raises(EncodeError, match="become equal on the BEAM"):
        codec.encode(set(value))


def test_depth_and_cycles_are_errors(codec):
    """A cycle ends at the depth limit, with a hint; the limit is exact."""
    cycle = []
    cycle.append(cycle)
    with pytest.raises(EncodeError, match="contains itself"):
        codec.encode(cycle)
    assert codec.encode(nested(512))
    with pytest.raises(EncodeError, match="deeper than 512 levels"):
        codec.encode(nested(513))
    with pytest.raises(EncodeError, match="deeper than 2 levels"):
        codec.encode(((((1,),),),), max_depth=2)


def test_size_is_limited(codec):
    """`max_bytes` bounds the whole result, head included."""
    assert len(codec.encode("x" * 10, max_bytes=16)) == 16
    with pytest.raises(EncodeError, match="larger than 15 bytes"):
        codec.encode("x" * 10, max_bytes=15)
    with pytest.raises(EncodeError, match="larger than 1000 bytes"):
        codec.encode([bytes(100)] * 100, max_bytes=1000)
    with pytest.raises(EncodeError, match="larger than 1000 bytes"):
        codec.encode_parts([bytes(100_000)], max_bytes=1000)
    with pytest.raises(EncodeError, match="larger than 100 bytes"):
        codec.encode(1 << 8000, max_bytes=100)


def test_what_has_no_term_is_refused(codec):
    """Surrogates, long atoms, times with a zone, complex numbers."""
    for value in ("\ud800", 1j, print, codec, dt.time(1, tzinfo=dt.UTC), range):
        with pytest.raises(EncodeError):
            codec.encode([value])
    with pytest.raises(ValueError, match="at most 255"):
        Atom("x" * 256)


def test_sets_become_map_sets_of_the_templates_shape(codec):
    """What the client's Elixir writes for `MapSet.new()` is what it gets."""
    try:
        new = b"\x83t\0\0\0\2w\x0a__struct__w\x0dElixir.MapSetw\3mapt\0\0\0\0"
        set_templates({"map_set": codec.decode(new, plain_structs=True)})
        assert codec.encode(set()) == new
        set_templates({})
        fields = codec.decode(codec.encode({1}), plain_structs=True)
        assert fields == Struct("Elixir.MapSet", {"map": {1: []}, "version": 2})
        assert codec.decode(codec.encode({frozenset({1}), "a"})) == {frozenset({1}), "a"}
    finally:
        set_templates({})


def test_registered_types_cross_as_their_struct(codec):
    """`register` serves a class, its subclasses, and a namedtuple before its base."""

    class Money:
        def __init__(self, fields):
            self.cents = fields["cents"]

    class Gold(Money):
        pass

    try:
        register("Shop.Money", Money, lambda money: {"cents": money.cents})
        register(
            "Shop.Pair",
            lambda f: Pair(f["l"], f["r"]),
            lambda p: {"l": p[0], "r": p[1]},
            python_type=Pair,
        )
        data = codec.encode([Gold({"cents": 5}), Pair(1, 2)])
        money, pair = codec.decode(data)
        assert type(money) is Money
        assert money.cents == 5
        assert type(pair) is Pair
        assert pair == (1, 2)
        assert codec.decode(data, plain_structs=True) == [
            Struct("Elixir.Shop.Money", {"cents": 5}),
            Struct("Elixir.Shop.Pair", {"l": 1, "r": 2}),
        ]
        with pytest.raises(TypeError, match="python_type"):
            register("X", lambda _: 1, lambda _: {})
    finally:
        structs.from_struct_by_module.pop("Elixir.Shop.Money")
        structs.from_struct_by_module.pop("Elixir.Shop.Pair")
        structs.to_struct_by_type.pop(Money)
        structs.to_struct_by_type.pop(Pair)
        structs.registered_builtin_subtypes.discard(Pair)


def test_a_hook_that_changes_what_is_encoded_never_crashes(codec):
    """Lists and dicts that grow, shrink or vanish under the encoder end in an error or a term."""
    for change in (list.clear, lambda v: v.append(1), lambda v: v.__setitem__(slice(None), [])):
        victim = [object(), object(), object()]
        with pytest.raises(EncodeError, match="changed while"):
            codec.encode(victim, default=lambda _, v=victim, c=change: c(v))
    for change in (dict.clear, lambda v: v.update(z=1), lambda v: v.pop("b", None)):
        victim = {"a": object(), "b": object(), "c": object()}
        with pytest.raises(EncodeError, match="changed while"):
            codec.encode(victim, default=lambda _, v=victim, c=change: c(v))


def test_arguments_are_checked(codec):
    """A misspelt option is a TypeError, a wrong value says what would be right."""
    with pytest.raises(TypeError):
        codec.encode(1, hed=b"")
    with pytest.raises(TypeError):
        codec.decode()
    with pytest.raises(TypeError):
        codec.decode("text")
    with pytest.raises(ValueError, match="max_depth"):
        codec.encode(1, max_depth=-1)
    with pytest.raises(ValueError, match="offset"):
        codec.read_term(b"a\1", 3)
    with pytest.raises(ValueError, match="offset"):
        codec.read_term(b"a\1", -1)


def test_looking_at_values_imports_nothing(codec):
    """Encoding an unknown object does not import numpy to see whether it is one of numpy's."""
    before = set(sys.modules)
    with pytest.raises(EncodeError):
        codec.encode(object())
    assert set(sys.modules) == before
