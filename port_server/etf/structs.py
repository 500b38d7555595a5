"""Elixir structs <-> Python types: the registry, and the types that come with it.

Conversion functions only; the codecs call them. datetime and decimal are imported when the first
such struct crosses, never at a start.
"""

from __future__ import annotations

import sys

from .terms import Atom, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import datetime as dt
    import decimal
    from collections.abc import Callable, Mapping
    from typing import Any

    FromStruct = Callable[[dict[Any, Any]], Any]
    ToStruct = Callable[[Any], Mapping[Any, Any] | Struct]

# The codecs read these two tables directly.
from_struct_by_module: dict[str, FromStruct] = {}
to_struct_by_type: dict[type, tuple[Atom, ToStruct]] = {}
# Types that derive from int, str, dict, ...: for these, looking at an exact type is not enough.
registered_builtin_subtypes: set[type] = set()

_BUILTIN_BASES = (int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset)


def register(
    module: str,
    from_struct: FromStruct,
    to_struct: ToStruct | None = None,
    *,
    python_type: type | None = None,
) -> None:
    """Let structs of an Elixir module cross as values of a Python type.

    Args:
        module: the module, with or without the `Elixir.` in front ("MyApp.Money").
        from_struct: called with a dict of the struct's fields (keys are atoms, `__struct__` is
            not among them); returns the Python value. A class will do. If it raises, decoding
            fails with a DecodeError that names the place.
        to_struct: called with a value; returns its fields as a mapping, whose string keys become
            atoms. Without it the type only travels one way.
        python_type: the type `to_struct` is for, its subclasses included; by default
            `from_struct`, if that is a class.

    Raises:
        TypeError: `to_struct` was given, and no type to use it for.
    """
    full = module if module.startswith("Elixir.") else "Elixir." + module
    from_struct_by_module[str(full)] = from_struct
    if to_struct is None:
        return
    kind = python_type if python_type is not None else from_struct
    if not isinstance(kind, type):
        raise TypeError(
            f"register({module!r}, ...) needs python_type=: which type is to_struct for?"
        )
    if issubclass(kind, _BUILTIN_BASES):
        registered_builtin_subtypes.add(kind)
    to_struct_by_type[kind] = (Atom(full), to_struct)


# --- the shapes the client's own Elixir gives its structs -------------------------------------

_ISO = Atom("Elixir.Calendar.ISO")
_NO_VALUE: list[Any] = []  # what every Elixir so far maps a MapSet's members to

_DEFAULT_TEMPLATES: dict[str, dict[Any, Any]] = {
    "map_set": {Atom("map"): {}, Atom("version"): 2},
    "range": {Atom("first"): 0, Atom("last"): 0, Atom("step"): 1},
    "nx_tensor": {},
}
_templates = dict(_DEFAULT_TEMPLATES)


def set_templates(templates: Mapping[Any, Any]) -> None:
    """Take over the exact shape of structs that differs between Elixir versions.

    Args:
        templates: from a name to a value as the wire gave it: `"map_set"` to `MapSet.new()`, read
            with `plain_structs=True` so that it stays a Struct. Unknown names are ignored;
            an empty mapping brings the defaults (Elixir 1.14's) back.

    Raises:
        TypeError: a template is no Struct.
    """
    _templates.clear()
    _templates.update(_DEFAULT_TEMPLATES)
    for name, template in templates.items():
        if str(name) not in _DEFAULT_TEMPLATES:
            continue
        if isinstance(template, (set, frozenset, range)):
            continue  # read without plain_structs: its shape is lost
        if not isinstance(template, Struct):
            raise TypeError(f"the template {name!s} is a {type(template).__name__}, no Struct")
        _templates[str(name)] = dict(template)


def template(name: str) -> dict[Any, Any]:
    """Give the fields of a template; none for `"nx_tensor"` where the application has no Nx."""
    return _templates[name]


# --- built in --------------------------------------------------------------------------------


def _bytes_from(fields: dict[Any, Any]) -> Any:
    # The codecs read the usual shape themselves, as raw bytes; this is for all other shapes.
    return Struct("Elixir.PyPort.Bytes", fields)


def _map_set_from(fields: dict[Any, Any]) -> Any:
    members = fields.get("map")
    if not isinstance(members, dict):
        return Struct("Elixir.MapSet", fields)
    return set(members)


def _map_set_to(value: Any) -> dict[Any, Any]:
    # The members are the keys of a map: two that become equal are found there.
    return {**_templates["map_set"], "map": dict.fromkeys(value, _NO_VALUE)}


def _range_from(fields: dict[Any, Any]) -> Any:
    first, last = fields.get("first"), fields.get("last")
    if type(first) is not int or type(last) is not int:
        return Struct("Elixir.Range", fields)
    step = fields.get("step", 1 if first <= last else -1)
    if type(step) is not int or step == 0:
        return Struct("Elixir.Range", fields)
    return range(first, last + (1 if step > 0 else -1), step)


def _range_to(value: range) -> dict[Any, Any]:
    last = value.stop - (1 if value.step > 0 else -1)
    return {"first": value.start, "last": last, "step": value.step}


def _is_iso(fields: dict[Any, Any]) -> bool:
    # Python has no other calendars (whose year may be 5780), and no years before 1.
    year = fields.get("year", 1)
    return (
        fields.get("calendar") == "Elixir.Calendar.ISO" and type(year) is int and 1 <= year <= 9999
    )


def _date_from(fields: dict[Any, Any]) -> Any:
    if not _is_iso(fields):
        return Struct("Elixir.Date", fields)
    from datetime import date

    return date(fields["year"], fields["month"], fields["day"])


def _date_fields(value: dt.date) -> dict[Any, Any]:
    return {"calendar": _ISO, "year": value.year, "month": value.month, "day": value.day}


def _time_fields(value: dt.time | dt.datetime) -> dict[Any, Any]:
    # Elixir keeps the precision, Python does not: no digits for a whole second, otherwise all.
    micros = value.microsecond
    return {
        "calendar": _ISO,
        "hour": value.hour,
        "minute": value.minute,
        "second": value.second,
        "microsecond": (micros, 6 if micros else 0),
    }


def _time_from(fields: dict[Any, Any]) -> Any:
    if not _is_iso(fields):
        return Struct("Elixir.Time", fields)
    from datetime import time

    return time(fields["hour"], fields["minute"], fields["second"], fields["microsecond"][0])


def _time_to(value: dt.time) -> dict[Any, Any]:
    if value.tzinfo is not None:
        raise ValueError("Elixir has no time of day with a time zone; send a datetime")
    return _time_fields(value)


def _naive(fields: dict[Any, Any]) -> dt.datetime:
    from datetime import datetime

    return datetime(  # noqa: DTZ001  Elixir's NaiveDateTime has no zone either
        fields["year"],
        fields["month"],
        fields["day"],
        fields["hour"],
        fields["minute"],
        fields["second"],
        fields["microsecond"][0],
    )


def _naive_from(fields: dict[Any, Any]) -> Any:
    return _naive(fields) if _is_iso(fields) else Struct("Elixir.NaiveDateTime", fields)


def _datetime_from(fields: dict[Any, Any]) -> Any:
    if not _is_iso(fields):
        return Struct("Elixir.DateTime", fields)
    from datetime import UTC, timedelta, timezone

    naive, zone = _naive(fields), _text(fields["time_zone"])
    offset = timedelta(seconds=fields["utc_offset"] + fields["std_offset"])
    if zone == "Etc/UTC":
        return naive.replace(tzinfo=UTC)
    try:
        from zoneinfo import ZoneInfo

        for fold in (0, 1):  # an hour that comes twice: the offset says which one is meant
            local = naive.replace(tzinfo=ZoneInfo(zone), fold=fold)
            if local.utcoffset() == offset:
                return local
    except Exception:  # noqa: S110  no tzdata, a zone of their own, a name that is no file name
        pass
    unnamed = timezone(offset)
    return naive.replace(tzinfo=unnamed if str(unnamed) == zone else timezone(offset, zone))


def _datetime_to(value: dt.datetime) -> Any:
    fields = _date_fields(value) | _time_fields(value)
    offset = value.utcoffset()
    if offset is None:
        return Struct("Elixir.NaiveDateTime", fields)
    summer = value.dst()
    name = value.tzname() or ""
    zone = getattr(value.tzinfo, "key", None) or getattr(value.tzinfo, "zone", None) or name
    if zone in ("UTC", "Etc/UTC"):
        zone, name = "Etc/UTC", "UTC"
    if offset.microseconds:
        raise ValueError("Elixir's zones are whole seconds away from UTC")
    seconds = offset.days * 86400 + offset.seconds
    extra = summer.days * 86400 + summer.seconds if summer is not None else 0
    return fields | {
        "time_zone": str(zone),
        "zone_abbr": name,
        "utc_offset": seconds - extra,
        "std_offset": extra,
    }


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).decode()
    raise TypeError("a time zone's name is text")  # bytes() of an integer is that many zeros


# Decimal(int) takes quadratic time: 5 ms at 10,000 digits, minutes at a million.
_MOST_DECIMAL_BITS = 33_220


def _decimal_from(fields: dict[Any, Any]) -> Any:
    from decimal import Decimal, InvalidOperation

    sign, coef, exp = fields.get("sign"), fields.get("coef"), fields.get("exp")
    if coef == "NaN":
        return Decimal("-NaN" if sign == -1 else "NaN")
    if coef == "inf":
        return Decimal("-Infinity" if sign == -1 else "Infinity")
    if type(coef) is not int or type(exp) is not int or coef < 0 or sign not in (1, -1):
        return Struct("Elixir.Decimal", fields)
    if coef.bit_length() > _MOST_DECIMAL_BITS:
        return Struct("Elixir.Decimal", fields)
    try:
        # as_tuple, not str: a str of more than 4300 digits is refused, and a context would round.
        return Decimal((int(sign == -1), Decimal(coef).as_tuple().digits, exp))
    except (InvalidOperation, OverflowError, ValueError):
        return Struct("Elixir.Decimal", fields)  # an exponent that Python's Decimal has no room for


def _decimal_to(value: decimal.Decimal) -> dict[Any, Any]:
    from decimal import Decimal

    sign, digits, exp = value.as_tuple()
    number: Any
    if exp == "F":
        number, exp = Atom("inf"), 0
    elif exp in ("n", "N"):
        number, exp = Atom("NaN"), 0
    else:
        number = int(Decimal((0, digits, 0)))
    return {"sign": -1 if sign else 1, "coef": number, "exp": exp}


def _tensor_from(fields: dict[Any, Any]) -> Any:
    from . import arrays

    return arrays.from_fields(fields)


def _table_from(fields: dict[Any, Any]) -> Any:
    from . import tables

    return tables.from_fields(fields)


register("PyPort.Bytes", _bytes_from)
register("PyPort.Tensor", _tensor_from)
register("PyPort.Table", _table_from)
register("MapSet", _map_set_from, _map_set_to, python_type=set)
register("MapSet", _map_set_from, _map_set_to, python_type=frozenset)
register("Range", _range_from, _range_to, python_type=range)
register("Date", _date_from)
register("Time", _time_from)
register("NaiveDateTime", _naive_from)
register("DateTime", _datetime_from)
register("Decimal", _decimal_from)
registered_builtin_subtypes.clear()  # set and frozenset are exact types, not subtypes

_late: dict[str, Callable[[Any], tuple[tuple[type, str, ToStruct], ...]]] = {
    "datetime": lambda module: (
        (module.datetime, "Elixir.DateTime", _datetime_to),
        (module.date, "Elixir.Date", _date_fields),
        (module.time, "Elixir.Time", _time_to),
    ),
    "decimal": lambda module: ((module.Decimal, "Elixir.Decimal", _decimal_to),),
}


def learn_imported_types() -> None:
    """Register the built-in types of modules that user code has imported since the last call.

    Values of datetime's types exist only after datetime is imported, so no start imports it.
    """
    for name, types_of in list(_late.items()):
        module = sys.modules.get(name)
        # Another thread may be importing it: the class may be missing, or be the one in Python that
        # the one in C replaces. It has no values yet.
        spec = getattr(module, "__spec__", None)
        if module is None or getattr(spec, "_initializing", False):
            continue
        try:
            types = types_of(module)
        except AttributeError:  # a user's own module of that name
            continue
        for kind, struct, to_struct in types:
            to_struct_by_type.setdefault(kind, (Atom(struct), to_struct))
        _late.pop(name, None)  # last, because another thread may run this function as well
