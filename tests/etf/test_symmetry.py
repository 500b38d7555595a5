"""A value that leaves comes back equal and of the same type: every row of docs/types.md."""

import datetime as dt
import decimal
import zoneinfo

import pytest

from port_server.etf import Atom, BitString, FrozenList, FrozenMap, ImproperList, Struct

NAN = float("nan")
# One or more of each type of the table "From Elixir to Python".
VALUES = [
    *(None, True, False, Atom("a"), Atom("Elixir.Enum"), 0, -1, 2**31, -(2**63), 2**64, -(2**200)),
    *(0.0, -0.0, 1.5, 5e-324, NAN, float("inf"), float("-inf"), "", "é", "nan", "infinity"),
    BitString(b"\xa0", 3),
    ImproperList([1, "a"], 2),
    *([], [1, NAN], (), (1, (NAN,)), {}, {"a": NAN}, {Atom("a"): 1}, {1.5: {}}, {(NAN, "a"): 1}),
    *({1, "a"}, set(), {float("inf")}, {(1, float("-inf"))}, range(3), range(9, 1, -2), range(0)),
    *(dt.date(2024, 2, 29), dt.time(1, 2, 3), dt.time(1, 2, 3, 4)),
    dt.datetime(2024, 1, 1),  # noqa: DTZ001
    dt.datetime(2024, 1, 1, 0, 0, 0, 1),  # noqa: DTZ001
    dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2024, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
    *(decimal.Decimal("1.20"), decimal.Decimal("-0"), decimal.Decimal("1E+3")),
    *(decimal.Decimal("NaN"), decimal.Decimal("-Infinity")),
    Struct("Elixir.Some", {Atom("a"): NAN}),
]
PLACES = {
    "top": lambda value: value,
    "list": lambda value: [1, value],
    "tuple": lambda value: (value, "x"),
    "map": lambda value: {"k": value, 2: [value]},
    "struct": lambda value: Struct("Elixir.Some", {Atom("nan"): value, Atom("infinity"): 1}),
}


def same(one, two):
    if type(one) is not type(two):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, (dict, set)):
        return len(one) == len(two) and all(
            any(same(a, b) for b in (two.items() if isinstance(one, dict) else two))
            for a in (one.items() if isinstance(one, dict) else one)
        )
    if isinstance(one, ImproperList):
        return same(one.items, two.items) and same(one.tail, two.tail)
    return repr(one) == repr(two)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_it_comes_back(codec, value, place):
    """At the top and inside of others, not a finite number included."""
    there = PLACES[place](value)
    assert same(codec.decode(codec.encode(there)), there)


@pytest.mark.parametrize("name", ["nan", "infinity", "neg_infinity"])
def test_names_stay_names(codec, name):
    """A key of a map is a name, and with `plain_structs` nothing is converted."""
    assert type(next(iter(codec.decode(codec.encode({Atom(name): 1}))))) is Atom
    assert type(codec.decode(codec.encode(Atom(name)), plain_structs=True)) is Atom
    number = codec.decode(codec.encode(Atom(name)))
    assert same(codec.decode(codec.encode(number)), number)
    assert type(number) is float
    in_key = codec.decode(codec.encode({(Atom(name), FrozenList([Atom(name)])): 1}))
    ((one, (two,)),) = in_key
    assert type(one) is type(two) is float


# The values that do not come back as they were; docs/types.md says each of them.
OTHERS = [
    (b"a", "a"),
    (bytearray(b"a"), "a"),
    (frozenset({1}), {1}),
    (FrozenList([1]), [1]),
    (FrozenMap({"a": 1}), {"a": 1}),
    (Atom("nan"), NAN),
    ({float("inf"): 1}, {Atom("infinity"): 1}),
    (decimal.Decimal("sNaN"), decimal.Decimal("NaN")),
    (dt.time(1, 2, 3, 120000), dt.time(1, 2, 3, 120000)),
]


@pytest.mark.parametrize(("value", "back"), OTHERS, ids=repr)
def test_it_comes_back_as_another(codec, value, back):
    """The BEAM has one type where Python has two."""
    assert same(codec.decode(codec.encode(value)), back)
