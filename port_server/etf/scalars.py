"""The scalars of numpy and pandas: numbers, times and missing values.

Conversion only; neither library is imported for it.
"""

from __future__ import annotations

from . import structs
from .errors import EncodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# The types of numbers by their names in C, of which several may be one type.
_NUMBERS = {
    structs.QUICK_INT: "byte short intc long int_ intp longlong "
    "ubyte ushort uintc ulong uint uintp ulonglong",
    structs.QUICK_FLOAT: "half single double longdouble",
    structs.QUICK_BOOL: "bool_",
}


def install() -> None:
    """Have the types learnt once they are imported."""
    structs.when_imported("numpy", _learn_numpy)
    structs.when_imported("pandas", _learn_pandas)


def _learn_numpy(numpy: Any) -> None:
    table = structs.replacement_by_type
    table.setdefault(numpy.datetime64, lambda value: _datetime64(numpy, value))
    table.setdefault(numpy.timedelta64, lambda value: _timedelta64(numpy, value))
    table.setdefault(numpy.generic, _number)
    for quick, names in _NUMBERS.items():
        for name in names.split():
            kind = getattr(numpy, name, None)
            if kind is not None and kind not in table and kind not in structs.to_struct_by_type:
                structs.quick_types[kind] = quick


def _learn_pandas(pandas: Any) -> None:
    table = structs.replacement_by_type
    table.setdefault(type(pandas.NaT), _nothing)
    table.setdefault(type(pandas.NA), _nothing)
    if pandas.Timestamp not in table and pandas.Timestamp not in structs.to_struct_by_type:
        table[pandas.Timestamp] = _timestamp
        structs.quick_types[pandas.Timestamp] = structs.QUICK_TIMESTAMP
    table.setdefault(pandas.Timedelta, _timedelta)


def _nothing(_value: Any) -> None:
    return None


def _number(value: Any) -> Any:
    plain = value.item()
    if type(plain) is type(value):  # a long double has no smaller form of its own
        return float(plain) if value.dtype.kind == "f" else NotImplemented
    return NotImplemented if isinstance(plain, complex) else plain


def _too_exact(value: Any, target: str, round_it: str, integer: str) -> EncodeError:
    return EncodeError(
        f"{value!r} holds parts of a microsecond, which {target} of Elixir cannot",
        f"Round it, as in {round_it}, or send the integer, {integer}",
    )


def _in_micros(value: Any, unit: str, kind: str, target: str) -> Any:
    """Give a datetime64 or timedelta64 in microseconds, exactly."""
    try:
        micros = value.astype(f"{kind}[us]")
    except OverflowError:
        raise _out_of_range(value, target) from None
    if micros.astype(value.dtype) == value:
        return micros
    if unit in ("ns", "ps", "fs", "as"):
        raise _too_exact(value, target, f'value.astype("{kind}[us]")', 'value.astype("int64")')
    raise _out_of_range(value, target)  # older numpy wraps around


def _out_of_range(value: Any, target: str) -> EncodeError:
    return EncodeError(
        f"{value!r} is out of the range of {target}",
        'Send the integer, value.astype("int64"), or a str',
    )


def _datetime64(numpy: Any, value: Any) -> Any:
    if numpy.isnat(value):
        return None
    micros = _in_micros(value, numpy.datetime_data(value.dtype)[0], "datetime64", "a NaiveDateTime")
    when = micros.item()
    if isinstance(when, int):  # datetime has the years 1 to 9999
        raise _out_of_range(value, "a NaiveDateTime")
    return when


def _timedelta64(numpy: Any, value: Any) -> Any:
    if numpy.isnat(value):
        return None
    unit, count = numpy.datetime_data(value.dtype)
    if unit in ("Y", "M"):
        months = int(value.astype("int64")) * count * (12 if unit == "Y" else 1)
        return structs.duration(0, months=months)
    if unit == "generic":  # a number without a unit
        return NotImplemented
    micros = _in_micros(value, unit, "timedelta64", "a Duration")
    return structs.duration(int(micros.astype("int64")))


def _timestamp(value: Any) -> Any:
    if value.nanosecond:
        raise _too_exact(value, "a DateTime", 'value.floor("us")', "value.value")
    if not 1 <= value.year <= 9999:
        raise _out_of_range(value, "a DateTime")
    return value.to_pydatetime()


def _timedelta(value: Any) -> Any:
    if value.nanoseconds:
        raise _too_exact(value, "a Duration", 'value.floor("us")', "value.value")
    return structs.timedelta_to(value)
