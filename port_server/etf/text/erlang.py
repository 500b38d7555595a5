"""Plain terms -> Erlang text, such as `~tp` prints it and `reader` reads it. Pure.

Two departures from `~tp`: a list is never shown as a string (a list of small integers is no text in
Python), and a binary is shown as text only where it is UTF-8 (`~tp` falls back to Latin-1).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from port_server.etf.text.verbatim import Bits, Improper, Name, Opaque, Pairs, Plain

if TYPE_CHECKING:
    from collections.abc import Callable

RESERVED = frozenset(
    "after and andalso band begin bnot bor bsl bsr bxor case catch cond div end fun if let not of"  # noqa: SIM905 - words
    " or orelse receive rem try when xor".split()
)
LETTERS_LOW, LETTERS_UP = "a-zß-öø-ÿ", "A-ZÀ-ÖØ-Þ"  # Erlang's letters are Latin-1's, always
_BARE_ATOM = re.compile(f"[{LETTERS_LOW}][{LETTERS_LOW}{LETTERS_UP}0-9_@]*")
_ESCAPES = {
    ord(mark): escape
    for mark, escape in zip(
        "\n\t\r\b\x7f\x1b\f\v\\",
        r"\n \t \r \b \d \e \f \v \\".split(),  # noqa: SIM905 - words
        strict=True,
    )
}
_ODD = {mark: re.compile(rf"[\x00-\x1f\x7f-\x9f\\{mark}]") for mark in "'\""}
_UNPRINTABLE = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f-\x9f\ufffe\uffff]")


def format_erlang(term: Plain) -> str:
    """The term on one line, as Erlang writes it."""
    return compose(term, _parts)


def compose(term: Plain, parts_of: Callable[[Plain], str | list[Plain]]) -> str:
    """Put a term's text together from its parts: text (`str`) and terms still to be written.

    No recursion, for a term may be nested deeper than Python's stack.
    """
    out: list[str] = []
    waiting: list[Plain] = [term]
    while waiting:
        part = waiting.pop()
        if type(part) is not str:
            part = parts_of(part)
            if type(part) is not str:
                waiting += reversed(part)
                continue
        out.append(part)
    return "".join(out)


def enclosed(opening: str, items: list[Plain], closing: str) -> list[Plain]:
    """The items with commas between them, in brackets."""
    parts: list[Plain] = [opening]
    for item in items:
        parts += (item, ", ")
    if items:
        parts.pop()
    parts.append(closing)
    return parts


def _parts(value: Plain) -> str | list[Plain]:
    kind = type(value)
    if kind is Name:
        return quoted(value)
    if kind is bytes:
        return _binary(value)
    if kind is int:
        return decimal(value)
    if kind is float:
        return shortest(value)
    if kind is tuple:
        return enclosed("{", value, "}")
    if kind is list:
        return enclosed("[", value, "]")
    if kind is Pairs:
        parts: list[Plain] = ["#{"]
        for key, item in value:
            parts += (key, " => ", item, ", ")
        parts[len(parts) - 1 if value else 1 :] = ["}"]
        return parts
    if kind is Improper:
        return [*enclosed("[", value.items, " | "), value.tail, "]"]
    if kind is Bits:
        head = [str(byte) for byte in value.data[:-1]]
        last = value.data[-1] >> (8 - value.used)
        return f"<<{', '.join([*head, f'{last}:{value.used}'])}>>"
    return _opaque(value)


def _opaque(value: Opaque) -> str:
    shown = value.shown
    if value.kind == "pid":
        return f"<0.{shown[0]}.{shown[1]}>"
    if value.kind == "export":
        return f"fun {quoted(str(shown[0]))}:{quoted(str(shown[1]))}/{shown[2]}"
    if value.kind == "fun":
        return f"#Fun<{shown[0]}.{shown[1]}.{shown[2]}>"
    name = "Port" if value.kind == "port" else "Ref"
    return f"#{name}<{'.'.join(str(number) for number in (0, *shown))}>"


def quoted(atom: str) -> str:
    """The atom, in quotes where it needs them."""
    if _BARE_ATOM.fullmatch(atom) and atom not in RESERVED:
        return str(atom)
    return f"'{_escaped(atom, chr(39))}'"


def _escaped(text: str, mark: str) -> str:
    def escape(match: re.Match[str]) -> str:
        char = match[0]
        return "\\" + char if char == mark else _ESCAPES.get(ord(char)) or f"\\{ord(char):03o}"

    return _ODD[mark].sub(escape, text)


def _binary(data: bytes) -> str:
    if not data:
        return "<<>>"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or _UNPRINTABLE.search(text):
        return f"<<{', '.join(map(str, data))}>>"
    return f'<<"{_escaped(text, chr(34))}"{"" if text.isascii() else "/utf8"}>>'


def decimal(value: int) -> str:
    """`str(value)` without Python's limit of 4,300 digits."""
    if -(1 << 14000) < value < 1 << 14000:
        return str(value)
    if value < 0:
        return "-" + decimal(-value)
    width = int(value.bit_length() * 0.30103) // 2
    high, low = divmod(value, 10**width)
    return decimal(high) + decimal(low).rjust(width, "0")


def shortest(value: float) -> str:
    """A float as the BEAM prints it from OTP 25 on.

    The fewest digits that read back as the same float (Python finds the same ones), plain or with
    an exponent, whichever is shorter, and always with an exponent from 2**53 on:
    erlang:float_to_list/2, option `short`.
    """
    sign = "-" if repr(value)[0] == "-" else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    raw = whole + ("" if fraction == "0" else fraction)
    place = len(whole) + int(exponent or 0)  # where the point stands in `raw`
    place -= len(raw) - len(raw.lstrip("0"))
    digits = raw.strip("0")
    if not digits:
        return sign + "0.0"
    scientific = f"{digits[0]}.{digits[1:] or '0'}e{place - 1}"
    if place <= 0:
        plain = "0." + "0" * -place + digits
    elif place >= len(digits):
        plain = digits + "0" * (place - len(digits)) + ".0"
    else:
        plain = f"{digits[:place]}.{digits[place:]}"
    if abs(value) >= 2.0**53 or len(scientific) < len(plain):
        return sign + scientific
    return sign + plain
