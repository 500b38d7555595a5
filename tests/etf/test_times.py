"""Durations, and the dates of numpy and pandas: one type each, whatever their unit."""

import datetime as dt

import pytest

from port_server.etf import Atom, EncodeError, Struct, set_templates

numpy = pytest.importorskip("numpy", reason="numpy is in the group values only")
pandas = pytest.importorskip("pandas", reason="pandas is in the group values only")

NOON = dt.datetime(2024, 2, 29, 12)  # noqa: DTZ001
UTC_NOON = NOON.replace(tzinfo=dt.UTC)


@pytest.fixture
def no_duration():
    set_templates({"another": 1})
    yield
    set_templates({})


def duration(codec, value):
    fields = codec.decode(codec.encode([value]), plain_structs=True)[0]
    assert fields.module == "Elixir.Duration"
    return {str(name): part for name, part in fields.items() if part not in (0, (0, 0))}


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (dt.timedelta(), {}),
        (dt.timedelta(days=1, seconds=2), {"day": 1, "second": 2}),
        (dt.timedelta(microseconds=-1), {"microsecond": (-1, 6)}),
        (dt.timedelta(hours=-25), {"day": -1, "second": -3600}),
        (dt.timedelta.max, {"day": 999999999, "second": 86399, "microsecond": (999999, 6)}),
        (numpy.timedelta64(1500, "ms"), {"second": 1, "microsecond": (500000, 6)}),
        (numpy.timedelta64(2, "W"), {"day": 14}),
        (numpy.timedelta64(5000, "ns"), {"microsecond": (5, 6)}),
        (numpy.timedelta64(-14, "M"), {"year": -1, "month": -2}),
        (numpy.timedelta64(3, "Y"), {"year": 3}),
        (pandas.Timedelta("1 days 00:00:01"), {"day": 1, "second": 1}),
        (pandas.Timedelta(-1, "us"), {"microsecond": (-1, 6)}),
    ],
    ids=repr,
)
def test_durations(codec, value, parts):
    """Everything that is a duration is an Elixir Duration, whose parts have one sign."""
    assert duration(codec, value) == parts


@pytest.mark.parametrize(
    "value", [dt.timedelta(days=-3, seconds=5, microseconds=7), dt.timedelta.min, dt.timedelta()]
)
def test_durations_come_back(codec, value):
    """A timedelta is the same timedelta again; a Duration of weeks and hours is one as well."""
    back = codec.decode(codec.encode(value))
    assert (type(back), back) == (dt.timedelta, value)
    names = ("year", "month", "week", "day", "hour", "minute", "second")
    fields = {Atom(name): 0 for name in names} | {Atom("microsecond"): (0, 0)}
    longer = Struct("Elixir.Duration", fields | {Atom("week"): 1, Atom("hour"): -1})
    assert codec.decode(codec.encode(longer)) == dt.timedelta(weeks=1, hours=-1)
    months = Struct("Elixir.Duration", fields | {Atom("month"): 1})
    assert codec.decode(codec.encode(months)) == months
    too_long = Struct("Elixir.Duration", fields | {Atom("week"): 10**12})
    assert codec.decode(codec.encode(too_long)) == too_long


@pytest.mark.usefixtures("no_duration")
def test_before_elixir_1_17(codec):
    """A server whose Elixir has no Duration gives an object for each of them."""
    for value in (dt.timedelta(1), numpy.timedelta64(1, "s"), pandas.Timedelta(1, "s")):
        assert codec.encode(value, default=lambda _: 7) == codec.encode(7)


@pytest.mark.parametrize(
    "value",
    [pandas.NaT, pandas.NA, numpy.datetime64("NaT", "s"), numpy.timedelta64("NaT", "ns")],
    ids=repr,
)
def test_missing_values_are_nil(codec, value):
    """At the top, in a list and in a map."""
    assert codec.encode([value, {"a": value}]) == codec.encode([None, {"a": None}])
    assert codec.encode(value) == codec.encode(None)


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps"])
def test_every_unit_of_datetime64_is_a_naive_datetime(codec, unit):
    """A day as well: a dtype has one Elixir type."""
    value = numpy.datetime64("1970-01-01", unit)
    assert codec.encode([value]) == codec.encode([dt.datetime(1970, 1, 1)])  # noqa: DTZ001


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_are_datetimes(codec, unit):
    """With and without a zone, whatever unit pandas keeps them in."""
    assert codec.encode(pandas.Timestamp(NOON).as_unit(unit)) == codec.encode(NOON)
    paris = pandas.Timestamp(UTC_NOON).as_unit(unit).tz_convert("Europe/Paris")
    assert codec.encode(paris) == codec.encode(paris.to_pydatetime())


@pytest.mark.parametrize(
    ("value", "round_it", "integer"),
    [
        (numpy.datetime64("2024-01-01T00:00:00.000000001"), 'astype("datetime64[us]")', "int64"),
        (numpy.datetime64("1960-01-01T00:00:00.000000999"), 'astype("datetime64[us]")', "int64"),
        (numpy.datetime64(5, "as"), 'astype("datetime64[us]")', "int64"),
        (numpy.timedelta64(-1, "ns"), 'astype("timedelta64[us]")', "int64"),
        (pandas.Timestamp("2024-01-01T00:00:00.000000001Z"), '.floor("us")', "value.value"),
        (pandas.Timedelta(1, "ns"), '.floor("us")', "value.value"),
    ],
    ids=repr,
)
def test_nanoseconds_are_not_dropped(codec, value, round_it, integer):
    """The error names the place and two ways out, and both of them work."""
    with pytest.raises(EncodeError) as caught:
        codec.encode({"rows": [1, value]})
    text = str(caught.value)
    assert text.startswith(f'["rows"][1]: {value!r} holds parts of a microsecond')
    assert round_it in text
    assert integer in text
    for way in (caught.value.remedy.split("as in ")[1].split(", or")[0], integer):
        if way != "int64":
            codec.encode(eval(way, {"value": value}))
    codec.encode(eval(caught.value.remedy.split("the integer, ")[1], {"value": value}))


@pytest.mark.parametrize(
    "value",
    [
        numpy.datetime64(9000, "Y"),
        numpy.datetime64(-5000, "Y"),
        numpy.datetime64(10**9, "Y"),
        numpy.datetime64(10**18, "D"),
        numpy.timedelta64(10**18, "W"),
        pandas.Timestamp("2024-01-01").as_unit("s").replace(year=12000),
    ],
    ids=repr,
)
def test_years_that_elixir_does_not_have(codec, value):
    """What would wrap around in numpy is an error as well."""
    with pytest.raises(EncodeError, match="out of the range of"):
        codec.encode([value])
