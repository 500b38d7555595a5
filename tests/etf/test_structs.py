"""Elixir's own structs at their edges: zones, calendars, sets of sets, numbers without end."""

import datetime as dt
import decimal
import subprocess
import sys
import zoneinfo

import pytest

from port_server.etf import Atom, EncodeError, Struct, set_decimals, set_templates

UTC = dt.UTC
try:
    BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
except zoneinfo.ZoneInfoNotFoundError:
    BERLIN = None
ISO = Atom("Elixir.Calendar.ISO")


def both_ways(codec, value):
    return codec.decode(codec.encode(value))


def fields_of(codec, value):
    return codec.decode(codec.encode(value), plain_structs=True)


@pytest.mark.parametrize(
    "value",
    [
        dt.date.min,
        dt.date.max,
        dt.time.min,
        dt.time.max,
        dt.datetime(1, 1, 1),  # noqa: DTZ001  a NaiveDateTime
        dt.datetime(9999, 12, 31, 23, 59, 59, 999_999),  # noqa: DTZ001
        dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
        dt.datetime(2024, 2, 29, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
        range(0),
        range(5, 0, -2),
        range(-(2**70), 2**70, 2**60),
        set(),
        {1, "a", (2,), None, frozenset({1, frozenset()})},
        decimal.Decimal("-0"),
        decimal.Decimal("1E+1000"),
        decimal.Decimal("Infinity"),
        decimal.Decimal("-Infinity"),
        decimal.Decimal("0." + "123456789" * 1000),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_they_come_back_as_they_were(codec, value):
    """The value, its type, and what == does not look at."""
    back = both_ways(codec, value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value) or isinstance(value, (set, frozenset))


def test_a_decimal_without_a_number_comes_back(codec):
    """NaN is equal to nothing, and still a Decimal."""
    assert both_ways(codec, decimal.Decimal("NaN")).is_nan()
    assert fields_of(codec, decimal.Decimal("NaN")).coef == "NaN"


@pytest.mark.skipif(BERLIN is None, reason="no time zone data on this machine")
@pytest.mark.parametrize("fold", [0, 1])
def test_a_zone_keeps_its_name_and_the_hour_that_comes_twice(codec, fold):
    """A ZoneInfo is found again by its name; which of the two hours is told by the offset."""
    value = dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=fold)
    fields = fields_of(codec, value)
    assert fields["time_zone"] == "Europe/Berlin"
    assert fields["zone_abbr"] == ("CET" if fold else "CEST")
    assert (fields["utc_offset"], fields["std_offset"]) == (3600, 0 if fold else 3600)
    back = both_ways(codec, value)
    assert back == value
    assert back.fold == fold
    assert back.tzinfo is BERLIN


def test_a_zone_nobody_knows_here_keeps_its_offset_and_name(codec):
    """The moment is right and the name comes back, with or without time zone data."""
    moment = dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "Moon/Base"))
    assert both_ways(codec, moment) == moment
    assert fields_of(codec, both_ways(codec, moment))["time_zone"] == "Moon/Base"


def test_a_name_that_is_a_path_opens_no_file(codec):
    """A zone's name comes from the wire; ZoneInfo refuses what leaves its directory."""
    fields = fields_of(codec, dt.datetime(2024, 1, 1, tzinfo=UTC))
    fields["time_zone"] = "../../etc/passwd"
    moment = both_ways(codec, fields)
    assert moment == dt.datetime(2024, 1, 1, tzinfo=UTC)
    assert moment.tzname() == "../../etc/passwd"


@pytest.mark.parametrize(
    "struct",
    [
        Struct("Elixir.Date", {"calendar": Atom("Elixir.Other"), "year": 1, "month": 1, "day": 1}),
        Struct("Elixir.Date", {"calendar": ISO, "year": 10_000, "month": 1, "day": 1}),
        Struct("Elixir.Range", {"first": 1, "last": 2, "step": 0}),
        Struct("Elixir.Range", {"first": 1.5, "last": 2, "step": 1}),
        Struct("Elixir.MapSet", {"map": None}),
        Struct("Elixir.Decimal", {"sign": 1, "coef": 1, "exp": 10**30}),
        Struct("Elixir.PyPort.Bytes", {"data": 1}),
    ],
    ids=repr,
)
def test_what_python_has_no_value_for_stays_a_struct(codec, struct):
    """Nothing is lost: it is the same struct on the way back."""
    back = both_ways(codec, struct)
    assert type(back) is Struct
    assert back == struct


def test_templates_must_be_structs():
    """What cannot be a template is refused when it is set, not when the first set crosses."""
    with pytest.raises(TypeError, match="no Struct"):
        set_templates({"map_set": 1})
    set_templates({"unknown": 1, Atom("range"): range(1)})
    set_templates({})


def test_a_value_nobody_can_read_names_its_type(codec):
    """A property that raises is an error at its place, and the cause stays with it."""

    class Odd:
        __dataclass_fields__ = {"x": None}  # noqa: RUF012  looks like a dataclass, and is none

    with pytest.raises(EncodeError, match=r"Odd could not be converted: AttributeError") as caught:
        codec.encode([Odd()])
    assert caught.value.path == "[0]"
    assert isinstance(caught.value.__cause__, AttributeError)


def test_structs_are_mappings_with_attributes(codec):
    """Reading, setting, comparing, copying, matching: a Struct is a dict with a module."""
    user = Struct("Elixir.User", {Atom("name"): "Eve"})
    user.age = 7
    user["email"] = "e@x"
    assert codec.decode(codec.encode(user)) == user
    assert [type(key) for key in both_ways(codec, user)] == [Atom, Atom, Atom]
    assert user != {"name": "Eve", "age": 7, "email": "e@x"}
    assert user != Struct("Elixir.Other", user)
    assert user.copy() == user
    assert repr(Struct("Elixir.A", {"b": 1})) == "%A{b: 1}"
    assert hash(Struct("Elixir.A", {"b": 1})) == hash(Struct("Elixir.A", {"b": 1}))


def test_a_type_is_learnt_after_its_import_however_early_it_was_looked_for():
    """A module that another thread is importing has no types yet; it is looked at again later."""
    code = (
        "import sys, types\n"
        "from port_server.etf import EncodeError, decode, encode\n"
        "sys.modules['decimal'] = types.ModuleType('decimal')\n"
        "try:\n"
        "    encode(object())\n"
        "except EncodeError as error:\n"
        "    assert 'has no term' in str(error), error\n"
        "del sys.modules['decimal']\n"
        "from decimal import Decimal\n"
        "assert decode(encode(Decimal('1.5'))) == Decimal('1.5')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_decimals_without_their_library(codec):
    """An error that names the type, the place and three ways out; or text."""
    try:
        set_decimals("none")
        with pytest.raises(EncodeError, match=r"rows.*Decimal.*mix\.exs.*decimal: :string.*float"):
            codec.encode({"rows": [decimal.Decimal("1.5")]})
        set_decimals("string")
        assert codec.encode([decimal.Decimal("1.50")]) == codec.encode(["1.50"])
    finally:
        set_decimals("struct")
    with pytest.raises(ValueError, match="text"):
        set_decimals("text")
