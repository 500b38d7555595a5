"""Plain terms -> Elixir text, such as `inspect/2` prints it. Pure.

Lists of integers stay lists (never charlists), everything is shown in full, and the structs that
Elixir prints as sigils or calls are printed so.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TypeAlias

from port_server.etf.text.erlang import compose, decimal, enclosed, shortest
from port_server.etf.text.verbatim import Bits, Improper, Name, Opaque, Pairs, Plain

_WORD = re.compile(r"[a-zA-Z_][a-zA-Z0-9_@]*[?!]?")
_ALIAS = re.compile(r"Elixir(\.[A-Z][a-zA-Z0-9_]*)*")
_OPERATORS = frozenset(
    "! != !== % %{} & && &&& * ** + ++ +++ - -- --- -> . .. ... ..// / < <- <<< <<>> <<~ <= <> <~"  # noqa: SIM905 - words
    " <~> = == === =~ > >= >>> @ \\\\ ^ {} | |> || ||| ~> ~>>".split()
)
_Fields: TypeAlias = dict[str, Plain]
_LITERALS = frozenset(("nil", "true", "false"))
_ESCAPES = {"#{": "\\#{", "\ufeff": "\\uFEFF"} | dict(
    zip(
        '\0\a\b\t\n\v\f\r\x1b\x7f\\"',
        r"\0 \a \b \t \n \v \f \r \e \d \\ \"".split(),  # noqa: SIM905 - words
        strict=True,
    )
)
_UNPRINTABLE_RANGES = "\0-\x06\x0e-\x1a\x1c-\x1f\x80-\x9f\ufffe\uffff"
_UNPRINTABLE = re.compile(f"[{_UNPRINTABLE_RANGES}]")
_ODD = re.compile(rf'#\{{|[{_UNPRINTABLE_RANGES}\x07-\x0d\x1b\x7f\ufeff\\"]')


def format_elixir(term: Plain) -> str:
    """The term on one line, as Elixir writes it."""
    return compose(term, _parts)


def _parts(value: Plain) -> str | list[Plain]:
    kind = type(value)
    if kind is Name:
        return atom(value)
    if kind is bytes:
        return _binary(value)
    if kind is int:
        return decimal(value)
    if kind is float:
        # inspect/2 departs from Erlang here: whole numbers below 1.0e16 never have an exponent.
        whole = 1.0 <= abs(value) < 1.0e16 and value.is_integer()
        return f"{int(value)}.0" if whole else shortest(value)
    if kind is tuple:
        return enclosed("{", value, "}")
    if kind is list:
        return _list(value)
    if kind is Pairs:
        return _map(value)
    if kind is Improper:
        return [*enclosed("[", value.items, " | "), value.tail, "]"]
    if kind is Bits:
        head = [str(byte) for byte in value.data[:-1]]
        last = value.data[-1] >> (8 - value.used)
        return f"<<{', '.join([*head, f'{last}::size({value.used})'])}>>"
    return _opaque(value)


def _opaque(value: Opaque) -> str:
    shown = value.shown
    if value.kind == "export":
        name = str(shown[1])
        function = f'"{_escaped(name)}"' if name[:1].isupper() else _callable(name)
        return f"&{atom(str(shown[0]))}.{function}/{shown[2]}"
    if value.kind == "fun":
        return f"#Function<{shown[1]}.{shown[2]}/{shown[3]} in {atom(str(shown[0]))}>"
    name = {"pid": "PID", "port": "Port", "reference": "Reference"}[value.kind]
    return f"#{name}<{'.'.join(str(number) for number in (0, *shown))}>"


def atom(text: str) -> str:
    """The atom as a value: `:a`, `:"a b"`, `nil`, `Foo.Bar`."""
    if text in _LITERALS:
        return str(text)
    if _ALIAS.fullmatch(text):
        nested = text in ("Elixir", "Elixir.Elixir") or text.startswith("Elixir.Elixir.")
        return text if nested else text.removeprefix("Elixir.")
    return ":" + _callable(text)


def _callable(text: str) -> str:
    """The atom's text without its colon, in quotes where it needs them."""
    if _ALIAS.fullmatch(text) or not (_is_word(text) or text in _OPERATORS):
        return f'"{_escaped(text)}"'
    return str(text)


def _is_word(text: str) -> bool:
    if text.isascii():
        return _WORD.fullmatch(text) is not None
    stem = text[:-1] if text[-1] in "?!" else text
    joined = stem.replace("@", "")
    return (
        unicodedata.is_normalized("NFC", text)
        and stem[:1] != "@"
        and joined.isidentifier()
        and not stem.startswith("Elixir.")
    )


def _escaped(text: str) -> str:
    return _ODD.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    escape = _ESCAPES.get(char)
    if escape is not None:
        return escape
    return f"\\x{ord(char):02X}" if ord(char) < 256 else f"\\x{{{ord(char):X}}}"


def _binary(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if _UNPRINTABLE.search(text):
        return f"<<{', '.join(map(str, data))}>>"
    return f'"{_escaped(text)}"'


def _is_key(value: Plain) -> bool:
    return type(value) is Name and not value.startswith("Elixir.")


def _keywords(pairs: list[tuple[Plain, Plain]]) -> list[Plain]:
    parts: list[Plain] = []
    for key, value in pairs:
        parts += (f"{_callable(key)}: ", value, ", ")
    return parts[:-1]


def _list(value: list[Plain]) -> list[Plain]:
    if value and all(type(i) is tuple and len(i) == 2 and _is_key(i[0]) for i in value):
        return ["[", *_keywords(value), "]"]
    return enclosed("[", value, "]")


def _map(pairs: Pairs) -> str | list[Plain]:
    fields = {str(key): value for key, value in pairs if type(key) is Name}
    module = fields.get("__struct__")
    if type(module) is Name and len(fields) == len(pairs):
        special = _STRUCTS.get(str(module))
        shown = special(fields) if special is not None else None
        if shown is not None:
            return shown
        inner = [pair for pair in pairs if pair[0] not in ("__struct__", "__exception__")]
        return [f"%{atom(module)}{{", *_keywords(inner), "}"]
    if all(_is_key(key) for key, _value in pairs):
        return ["%{", *_keywords(list(pairs)), "}"]
    parts: list[Plain] = ["%{"]
    for key, value in pairs:
        parts += (key, " => ", value, ", ")
    parts[-1] = "}"
    return parts


# --- structs with their own notation; each function gives None if the fields are not as expected


def _map_set(fields: _Fields) -> list[Plain] | None:
    members = fields.get("map")
    if type(members) is not Pairs:
        return None
    return ["MapSet.new(", *_list([key for key, _value in members]), ")"]


def _ints(fields: _Fields, *names: str, longest_bits: int | None = None) -> list[int] | None:
    values = [value for name in names if type(value := fields.get(name)) is int]
    if longest_bits is not None and any(value.bit_length() > longest_bits for value in values):
        return None
    return values if len(values) == len(names) else None


# Largest integers in dates and exponents. Python writes no integer of more than 4,300 digits, and a
# frame may contain the year 10 ** 5,000.
_SENSIBLE_BITS = 64


def _range(fields: _Fields) -> str | None:
    numbers = _ints({"step": 1, **fields}, "first", "last", "step")
    if numbers is None:
        return None
    first, last, step = map(decimal, numbers)
    return f"{first}..{last}" + ("" if step == "1" else f"//{step}")


def _decimal(fields: _Fields) -> str | None:
    minus = "-" if fields.get("sign") == -1 else ""
    coef = fields.get("coef")
    special = {"inf": "Infinity", "NaN": "NaN"}.get(coef) if type(coef) is Name else None
    if special is not None:
        return f'Decimal.new("{minus}{special}")'
    numbers = _ints(fields, "coef", "exp")
    if numbers is None or numbers[1].bit_length() > _SENSIBLE_BITS:
        return None
    # The scientific notation of Decimal.to_string/2, which is what inspect/2 uses.
    digits, exp = decimal(numbers[0]), numbers[1]
    adjusted = exp + len(digits) - 1
    if exp == 0:
        text = digits
    elif exp < 0 and adjusted >= -6:
        point = len(digits) + exp
        text = f"{digits[:point]}.{digits[point:]}" if point > 0 else f"0.{'0' * -point}{digits}"
    else:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        text = f"{digits[0]}{fraction}E{adjusted:+d}"
    return f'Decimal.new("{minus}{text}")'


def _date_text(fields: _Fields) -> str | None:
    numbers = _ints(fields, "year", "month", "day", longest_bits=_SENSIBLE_BITS)
    if numbers is None or fields.get("calendar") != "Elixir.Calendar.ISO":
        return None
    year, month, day = numbers
    return f"{'-' if year < 0 else ''}{abs(year):04}-{month:02}-{day:02}"


def _time_text(fields: _Fields) -> str | None:
    numbers = _ints(fields, "hour", "minute", "second", longest_bits=_SENSIBLE_BITS)
    if numbers is None or fields.get("calendar") != "Elixir.Calendar.ISO":
        return None
    match fields.get("microsecond"):
        case (int(count), int(precision)) if count.bit_length() <= _SENSIBLE_BITS:
            hour, minute, second = numbers
            fraction = f".{count:06}"[: precision + 1] if precision > 0 else ""
            return f"{hour:02}:{minute:02}:{second:02}{fraction}"
    return None


def _date(fields: _Fields) -> str | None:
    text = _date_text(fields)
    return text and f"~D[{text}]"


def _time(fields: _Fields) -> str | None:
    text = _time_text(fields)
    return text and f"~T[{text}]"


def _naive(fields: _Fields) -> str | None:
    date, time = _date_text(fields), _time_text(fields)
    return f"~N[{date} {time}]" if date and time else None


def _aware(fields: _Fields) -> str | None:
    date, time = _date_text(fields), _time_text(fields)
    offsets = _ints(fields, "utc_offset", "std_offset", longest_bits=_SENSIBLE_BITS)
    zone, abbreviation = fields.get("time_zone"), fields.get("zone_abbr")
    if not date or not time or offsets is None:
        return None
    if type(zone) is not bytes or type(abbreviation) is not bytes:
        return None
    offset = sum(offsets)
    if zone == b"Etc/UTC" and not offset:
        return f"~U[{date} {time}Z]"
    hours, seconds = divmod(abs(offset), 3600)
    minutes, seconds = divmod(seconds, 60)
    shown = f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}"
    shown += f":{seconds:02}" if seconds else ""
    names = f"{abbreviation.decode(errors='replace')} {zone.decode(errors='replace')}"
    return f"#DateTime<{date} {time}{shown} {names}>"


_STRUCTS = {
    "Elixir.MapSet": _map_set,
    "Elixir.Range": _range,
    "Elixir.Decimal": _decimal,
    "Elixir.Date": _date,
    "Elixir.Time": _time,
    "Elixir.NaiveDateTime": _naive,
    "Elixir.DateTime": _aware,
}
