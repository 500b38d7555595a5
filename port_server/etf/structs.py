"""Elixir structs <-> Python types: the registry, and the types that come with it.

Conversion functions only; the codecs call them. datetime and decimal are imported when the first
such struct crosses, never at a start.
"""

from __future__ import annotations

import sys

from .errors import EncodeError
from .terms import NOT_FINITE, Atom, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import datetime as dt
    import decimal
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    _Function = TypeVar("_Function", bound=Callable[[Any], Any])
    FromStruct = Callable[[dict[Any, Any]], Any]
    ToStruct = Callable[[Any], Mapping[Any, Any] | Struct]

# The codecs read these two tables directly.
from_struct_by_module: dict[str, FromStruct] = {}
to_struct_by_type: dict[type, tuple[Atom, ToStruct]] = {}
# Functions that give the value to send in place of one, by its type; or NotImplemented.
replacement_by_type: dict[type, Callable[[Any], Any]] = {}
# Types of which long lists are common, and how the C extension writes them by itself: numbers of
# numpy as their value, the others as the struct that the tables above give for them.
QUICK_INT, QUICK_FLOAT, QUICK_BOOL, QUICK_DATE, QUICK_DATETIME, QUICK_DECIMAL = range(1, 7)
QUICK_TIMESTAMP = 7
quick_types: dict[type, int] = {}
# The structs that the C extension reads by itself, unless one of them has another conversion.
QUICK_MODULES = ("Elixir.Date", "Elixir.NaiveDateTime", "Elixir.DateTime", "Elixir.Decimal")
quick_modules: set[str] = set()
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
            not among them); returns the Python value. If it raises, decoding fails with a
            DecodeError that names the place. A class will do. A dataclass, or a class of attrs,
            pydantic or msgspec, gets the fields as its arguments, and needs no `to_struct`.
        to_struct: called with a value; returns its fields as a mapping, whose string keys become
            atoms. Without it the type only travels one way.
        python_type: the type `to_struct` is for, its subclasses included; by default
            `from_struct`, if that is a class.

    Raises:
        TypeError: `to_struct` was given, and no type to use it for.
    """
    full = module if module.startswith("Elixir.") else "Elixir." + module
    if isinstance(from_struct, type) and to_struct is None:
        from .models import both_ways

        ways = both_ways(from_struct)
        if ways is not None:
            python_type = python_type or from_struct
            from_struct, to_struct = ways
    from_struct_by_module[str(full)] = from_struct
    quick_modules.discard(full)
    if to_struct is None:
        return
    kind = python_type if python_type is not None else from_struct
    if not isinstance(kind, type):
        raise TypeError(
            f"register({module!r}, ...) needs python_type=: which type is to_struct for?"
        )
    _claim(kind)
    replacement_by_type.pop(kind, None)
    to_struct_by_type[kind] = (Atom(full), to_struct)


def _claim(kind: type) -> None:
    """Have values of a type, and of its subclasses, looked up in the tables, even if C knows it."""
    if issubclass(kind, _BUILTIN_BASES):
        registered_builtin_subtypes.add(kind)
    quick_types.pop(kind, None)


def encoder(kind: type) -> Callable[[_Function], _Function]:
    """Decorate a function that gives what values of a type, and of its subclasses, are sent as.

    Raises:
        TypeError: it is no type.
    """
    if not isinstance(kind, type):
        raise TypeError(f"@encoder(type) takes a type, not {kind!r}")

    def add(function: _Function) -> _Function:
        _claim(kind)
        replacement_by_type[kind] = function
        return function

    return add


def decoder(module: str) -> Callable[[_Function], _Function]:
    """Decorate a function that gives the value for the fields of a struct; see `register`.

    Raises:
        TypeError: the module is no str.
    """
    if not isinstance(module, str):
        raise TypeError(f'@decoder("MyApp.Money") takes the name of a module, not {module!r}')

    def add(function: _Function) -> _Function:
        register(module, function)
        return function

    return add


# --- the shapes the client's own Elixir gives its structs -------------------------------------

_ISO = Atom("Elixir.Calendar.ISO")
_NO_VALUE: list[Any] = []  # what every Elixir so far maps a MapSet's members to

_DEFAULT_TEMPLATES: dict[str, dict[Any, Any]] = {
    "map_set": {Atom("map"): {}, Atom("version"): 2},
    "range": {Atom("first"): 0, Atom("last"): 0, Atom("step"): 1},
    "nx_tensor": {},
    "duration": {},
}
_templates = dict(_DEFAULT_TEMPLATES)


def set_templates(templates: Mapping[Any, Any]) -> None:
    """Take over the exact shape of structs that differs between Elixir versions.

    Args:
        templates: from a name to a value as the wire gave it: `"map_set"` to `MapSet.new()`, read
            with `plain_structs=True` so that it stays a Struct. Unknown names are ignored.
            Without `"duration"`, that Elixir has no `Duration` (it came with 1.17). An empty
            mapping brings the defaults back: Elixir 1.14's, and `Duration`.

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
    if templates and "duration" not in templates:
        del _templates["duration"]


def template(name: str) -> dict[Any, Any]:
    """Give the fields of a template; none for `"nx_tensor"` where the application has no Nx."""
    return _templates[name]


# --- built in --------------------------------------------------------------------------------


def _bytes_from(fields: dict[Any, Any]) -> Any:
    # The codecs read the usual shape themselves, as raw bytes; this is for all other shapes.
    return Struct("Elixir.PyPort.Bytes", fields)


_NOT_FINITE_NAMES = tuple(map(Atom, NOT_FINITE))


def _map_set_from(fields: dict[Any, Any]) -> Any:
    members = fields.get("map")
    if not isinstance(members, dict):
        return Struct("Elixir.MapSet", fields)
    found = set(members)
    for name in _NOT_FINITE_NAMES:  # keys stay atoms, members are values
        if name in found and any(key is name for key in found):
            found.remove(name)
            found.add(NOT_FINITE[name])
    return found


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


def _duration_from(fields: dict[Any, Any]) -> Any:
    try:
        if fields["year"] or fields["month"]:
            return Struct("Elixir.Duration", fields)  # of no fixed length
        from datetime import timedelta

        return timedelta(
            weeks=fields["week"],
            days=fields["day"],
            hours=fields["hour"],
            minutes=fields["minute"],
            seconds=fields["second"],
            microseconds=fields["microsecond"][0],
        )
    except (KeyError, OverflowError):
        return Struct("Elixir.Duration", fields)


def duration(micros: int, *, months: int = 0) -> Any:
    """Give a `Duration`, whose parts have one sign; NotImplemented if the other side has none."""
    if "duration" not in _templates:
        return NotImplemented
    sign = -1 if micros < 0 else 1
    seconds, part = divmod(abs(micros), 1_000_000)
    days, seconds = divmod(seconds, 86_400)
    years = int(months / 12)  # towards zero
    return Struct(
        "Elixir.Duration",
        {
            Atom("year"): years,
            Atom("month"): months - years * 12,
            Atom("week"): 0,
            Atom("day"): sign * days,
            Atom("hour"): 0,
            Atom("minute"): 0,
            Atom("second"): sign * seconds,
            Atom("microsecond"): (sign * part, 6 if part else 0),
        },
    )


def timedelta_to(value: dt.timedelta) -> Any:
    """Give the `Duration` of a timedelta; NotImplemented if the other side has none."""
    return duration((value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds)


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


_decimals = "struct"
_DECIMAL, _SIGN, _COEF, _EXP = (Atom(name) for name in ("Elixir.Decimal", "sign", "coef", "exp"))


def set_decimals(how: str) -> None:
    """Say what Decimals become: "struct", "string", or "none" if they are an error.

    Raises:
        ValueError: it is none of these.
    """
    global _decimals  # noqa: PLW0603  one other side
    if how not in ("struct", "string", "none"):
        raise ValueError(how)
    _decimals = how
    _learn_quick_decimals()


def _learn_quick_decimals() -> None:
    for kind, function in replacement_by_type.items():
        if function is _decimal_to:
            if _decimals == "struct":
                quick_types[kind] = QUICK_DECIMAL
            else:
                quick_types.pop(kind, None)


def _decimal_to(value: decimal.Decimal) -> Any:
    from decimal import Decimal

    if _decimals == "string":
        return str(value)
    if _decimals == "none":
        raise EncodeError(
            "it is a Decimal, and the Elixir application does not have the library of that name",
            'Add {:decimal, "~> 2.0"} to the dependencies in mix.exs, or set '
            "config :py_port, decimal: :string to have them as text, or return a float or a str",
        )
    sign, digits, exp = value.as_tuple()
    number: Any
    if exp == "F":
        number, exp = Atom("inf"), 0
    elif exp in ("n", "N"):
        number, exp = Atom("NaN"), 0
    else:
        number = int(Decimal((0, digits, 0)))
    return Struct(_DECIMAL, {_SIGN: -1 if sign else 1, _COEF: number, _EXP: exp})


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
register("Duration", _duration_from)
quick_modules.update(QUICK_MODULES)
registered_builtin_subtypes.clear()  # set and frozenset are exact types, not subtypes

_late: dict[str, list[Callable[[Any], None]]] = {}


def when_imported(name: str, learn: Callable[[Any], None]) -> None:
    """Have `learn(module)` add the types of a module to the tables, once user code has imported it.

    Values of a type exist only after its module is imported, so no start imports it.
    """
    _late.setdefault(name, []).append(learn)


def _learn_datetime(module: Any) -> None:
    for kind, struct, to_struct, quick in (
        (module.datetime, "Elixir.DateTime", _datetime_to, QUICK_DATETIME),
        (module.date, "Elixir.Date", _date_fields, QUICK_DATE),
        (module.time, "Elixir.Time", _time_to, None),
    ):
        if kind in to_struct_by_type or kind in replacement_by_type:
            continue  # user code has a conversion of its own
        to_struct_by_type[kind] = (Atom(struct), to_struct)
        if quick is not None:
            quick_types[kind] = quick
    replacement_by_type.setdefault(module.timedelta, timedelta_to)


def _learn_decimal(module: Any) -> None:
    if module.Decimal in to_struct_by_type:  # registered by user code
        return
    replacement_by_type.setdefault(module.Decimal, _decimal_to)
    _learn_quick_decimals()


when_imported("datetime", _learn_datetime)
when_imported("decimal", _learn_decimal)


def learn_imported_types() -> None:
    """Learn the types of modules that user code has imported since the last call."""
    for name, learners in list(_late.items()):
        module = sys.modules.get(name)
        # Another thread may be importing it: the class may be missing, or be the one in Python that
        # the one in C replaces. It has no values yet.
        spec = getattr(module, "__spec__", None)
        if module is None or getattr(spec, "_initializing", False):
            continue
        try:
            for learn in learners:
                learn(module)
        except AttributeError:  # a user's own module of that name
            continue
        _late.pop(name, None)  # last, because another thread may run this function as well
