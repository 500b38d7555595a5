"""Long lists of dates, Decimals and numpy scalars are written without a Python call each."""

import datetime as dt
import decimal
import time

import pytest

from port_server.etf import structs

native = pytest.importorskip(
    "port_server.etf.native", reason="the extension is missing; test_build.py says why"
)
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


# Measured: 15 to 80 times, of floats that take 1.2 ns each; with a Python call each 600 to 1,500.
@pytest.mark.parametrize(
    "values",
    [
        [NOON.replace(tzinfo=None, microsecond=index) for index in range(COUNT)],
        [NOON.replace(microsecond=index) for index in range(COUNT)],
        [NOON.date().replace(day=1 + index % 28) for index in range(COUNT)],
        [decimal.Decimal(index) / 100 for index in range(COUNT)],
    ],
    ids=["naive", "UTC", "dates", "decimals"],
)
def test_values_that_are_structs(values):
    floats = [index * 1.5 for index in range(COUNT)]
    assert seconds(lambda: native.encode(values)) < 250 * seconds(lambda: native.encode(floats))


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
        *(numpy.int8(-128), numpy.uint64(2**64 - 1), numpy.float16("inf"), numpy.bool_(0)),
    ]
    quick = [native.encode([value]) for value in values]
    assert {type(value) for value in values} <= set(structs.quick_types)
    for kind in list(structs.quick_types):
        monkeypatch.delitem(structs.quick_types, kind)
    assert [native.encode([value]) for value in values] == quick


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
