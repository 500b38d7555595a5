"""Long lists of dates, Decimals and numpy scalars take no Python call each, both ways."""

import datetime as dt
import decimal
import time

import pytest

from port_server.etf import Atom, structs

native = pytest.importorskip(
    "port_server.etf.native", reason="the extension is missing; test_build.py says why"
)
pandas = pytest.importorskip("pandas", reason="pandas is in the group values only")
numpy = pytest.importorskip("numpy", reason="numpy is in the group values only")

COUNT = 20_000
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)


def seconds(work):
    best = 1.0
    for _ in range(7):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


STRUCTS = {
    "naive": [NOON.replace(tzinfo=None, microsecond=index) for index in range(COUNT)],
    "UTC": [NOON.replace(microsecond=index) for index in range(COUNT)],
    "dates": [NOON.date().replace(day=1 + index % 28) for index in range(COUNT)],
    "decimals": [decimal.Decimal(index) / 100 for index in range(COUNT)],
}


# Measured: 15 to 80 times, of floats that take 1.2 ns each; with a Python call each 600 to 1,500.
@pytest.mark.parametrize("values", STRUCTS.values(), ids=STRUCTS.keys())
def test_values_that_are_structs(values):
    floats = [index * 1.5 for index in range(COUNT)]
    assert seconds(lambda: native.encode(values)) < 250 * seconds(lambda: native.encode(floats))


# Measured: 0.2 to 0.4 times; with a Python call each 1.2 to 2.8.
@pytest.mark.parametrize("values", STRUCTS.values(), ids=STRUCTS.keys())
def test_structs_that_are_values(values):
    """Reading one takes less than reading its fields."""
    term = native.encode(values)
    assert native.decode(term) == values
    fields = seconds(lambda: native.decode(term, plain_structs=True))
    assert seconds(lambda: native.decode(term)) < 0.8 * fields


# Measured: 0.8 to 1 time of a million, 3.5 times for few booleans.
@pytest.mark.parametrize("kind", ["i1", "i8", "u8", "f2", "f4", "f8", "?"])
def test_numpy_scalars(kind):
    array = numpy.arange(COUNT).astype(kind)
    values = list(array)
    assert native.encode(values) == native.encode(array.tolist())
    direct = seconds(lambda: native.encode(values))
    assert direct < 6 * seconds(lambda: native.encode(array.tolist()))


def test_the_quick_way_writes_what_the_slow_one_writes(monkeypatch):
    """Also at the limits of what it takes, and for a zone that is not UTC."""
    values = [
        *(dt.date.min, dt.date.max, NOON, NOON.replace(fold=1)),
        *(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)),  # noqa: DTZ001
        NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
        *map(decimal.Decimal, ["0", "-0", "0.00", "1E+30", "-1.5E-7", "0.0012", "9" * 18]),
        *map(decimal.Decimal, ["9" * 19, "1" + "0" * 40, "NaN", "-Infinity", "sNaN", "1E-999999"]),
        *map(pandas.Timestamp, ["2024-01-01T12:30:00.000007", "2024-01-01T00Z", "1700"]),
        *(pandas.Timestamp("2024-07-01", tz="Europe/Paris"), pandas.Timestamp("0099").as_unit("s")),
        *(numpy.int8(-128), numpy.uint64(2**64 - 1), numpy.float16("inf"), numpy.bool_(0)),
    ]
    quick = [native.encode([value]) for value in values]
    assert {type(value) for value in values} <= set(structs.quick_types)
    for kind in list(structs.quick_types):
        monkeypatch.delitem(structs.quick_types, kind)
    assert [native.encode([value]) for value in values] == quick


DATE = {"calendar": Atom("Elixir.Calendar.ISO"), "year": 2024, "month": 2, "day": 29}
TIME = {"hour": 23, "minute": 59, "second": 58, "microsecond": (7, 6)}
ZONE = {"time_zone": "Etc/UTC", "zone_abbr": "UTC", "utc_offset": 0, "std_offset": 0}
FIELDS = {
    "Date": DATE,
    "NaiveDateTime": DATE | TIME,
    "DateTime": DATE | TIME | ZONE,
    "Decimal": {"sign": -1, "coef": 2**63 - 1, "exp": -2},
}
CHANGES = [
    *({}, {"year": 1}, {"year": 0}, {"year": -4}, {"year": 10_000}, {"year": 2**40}, {"year": "1"}),
    *({"calendar": Atom("Elixir.Other")}, {"month": 13}, {"day": 30}, {"day": 0}, {"day": 1.0}),
    *({"hour": 24}, {"second": 60}, {"microsecond": (10**6, 6)}, {"microsecond": (0, 0)}),
    *({"microsecond": 5}, {"microsecond": (1, 2, 3)}, {"microsecond": (1, None)}),
    *({"time_zone": "Europe/Paris", "utc_offset": 3600}, {"zone_abbr": "X"}, {"utc_offset": 60}),
    *({"sign": 1}, {"sign": 0}, {"coef": 0}, {"coef": 2**64 - 1}, {"coef": 2**64}, {"coef": -1}),
    *({"coef": Atom("NaN")}, {"coef": Atom("inf")}, {"exp": 0}, {"exp": 2**31}, {"exp": -(2**31)}),
    *({"unknown": 1}, {"day": None}, {"exp": None}),
]


@pytest.mark.parametrize("module", FIELDS)
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_the_quick_way_reads_what_the_slow_one_reads(module, order):
    """Values, structs that are no such value, and errors; also with other fields, or one less."""
    terms = []
    for change in CHANGES:
        fields = FIELDS[module] | change
        for left_out in ("", *change):
            kept = [(key, fields[key]) for key in fields if key != left_out]
            struct = [*kept, ("__struct__", Atom(f"Elixir.{module}"))][::order]
            terms.append(native.encode([{Atom(key): value for key, value in struct}]))
    # In the form of older Erlang as well: the names of atoms have two bytes of length.
    terms += [term.replace(b"w\x04", b"d\x00\x04") for term in terms]
    terms += [terms[0][:cut] for cut in range(1, len(terms[0]))]

    def outcome(term):
        found = []
        for options in ({}, {"binary_as": "bytes"}, {"max_depth": 2}, {"max_depth": 3}):
            try:
                value = native.decode(term, **options)
                found.append((type(value[0]), repr(value)))
            except ValueError as error:
                found.append(str(error))
        return found

    quick = [outcome(term) for term in terms]
    assert any(
        not isinstance(first, str) and first[0] in {dt.date, dt.datetime, decimal.Decimal}
        for first, *_ in quick
    )
    structs.quick_modules.discard("Elixir.Date")
    try:
        assert [outcome(term) for term in terms] == quick
    finally:
        structs.quick_modules.update(structs.QUICK_MODULES)


def test_a_conversion_of_ones_own_is_asked():
    """Registered for one of these modules, it is used for each."""
    term = native.encode(NOON.date())
    before = structs.from_struct_by_module["Elixir.Date"]
    try:
        structs.register("Date", lambda fields: fields["year"])
        assert native.decode(term) == 2024
    finally:
        structs.register("Date", before)
        structs.quick_modules.update(structs.QUICK_MODULES)
    assert native.decode(term) == NOON.date()


@pytest.mark.parametrize("depth", range(7))
def test_depth_counts_as_on_the_slow_way(codec, depth):
    """A datetime is a map with a tuple in it, and its conversion a level as well."""
    outcomes = []
    for module in (codec, native):
        try:
            outcomes.append(module.encode([NOON], max_depth=depth))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
