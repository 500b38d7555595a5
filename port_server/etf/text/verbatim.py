"""One term exactly as it stands on the wire: bytes <-> a plain model that loses nothing.

For showing terms to people, and for writing terms that people typed. The codec maps terms to Python
values and so must refuse terms that Python cannot represent (a map with the keys 1 and 1.0, a list
as a key); a person who looks at a frame wants to see them as well. Never on the server's hot path;
no I/O, no text.
"""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple, TypeAlias

VERSION_BYTE = b"\x83"
# float() accepts more: nan, inf, 1_0 and blanks.
_OLD_FLOAT = re.compile(rb"[+-]?[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?")


class Name(str):
    """An atom, by its text; `nil`, `true` and `false` are names like any other here."""

    __slots__ = ()


class Bits(NamedTuple):
    """A bitstring whose last byte has only its `used` (1..7) upper bits in use."""

    data: bytes
    used: int


class Improper(NamedTuple):
    """A list whose tail is not the empty list."""

    items: list[Plain]
    tail: Plain


class Pairs(tuple[tuple["Plain", "Plain"], ...]):
    """A map as its pairs in the order of the wire: keys that Python finds equal stay apart."""

    __slots__ = ()


class Opaque(NamedTuple):
    """A pid, reference, port or fun: its bytes, and the parts of it that people are shown."""

    raw: bytes
    kind: str  # "pid" | "port" | "reference" | "fun" | "export"
    shown: tuple[int | str, ...]


Plain: TypeAlias = (
    Any  # Name | int | float | bytes | Bits | list | Improper | tuple | Pairs | Opaque
)


class VerbatimError(ValueError):
    """These bytes are no term: `offset` is where, counted from the start of the buffer."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


def read(buffer: bytes) -> Plain:
    """Read a whole term, its version byte first and nothing after it.

    Raises:
        VerbatimError: the bytes are not one whole term of the External Term Format.
    """
    if buffer[:1] != VERSION_BYTE:
        found = f"found {buffer[0]}" if buffer else "found nothing"
        raise VerbatimError(
            0, f"expected the version byte 131 of the External Term Format, {found}"
        )
    if buffer[1:2] == b"P":
        raise VerbatimError(1, "a compressed term (tag 80); the protocol refuses these both ways")
    term, end = _Reader(buffer).term(1)
    if end != len(buffer):
        more = _bytes(len(buffer) - end)
        raise VerbatimError(end, f"the term ends here, but {more} more follow")
    return term


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


class _Reader:
    """Reads terms from one buffer, without recursion: depth costs memory, not stack."""

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer

    def term(self, pos: int) -> tuple[Plain, int]:
        """The term (no version byte) at `pos`, and where it ends."""
        open_ones: list[tuple[int, int, list[Plain]]] = []  # tag, how many parts, the parts so far
        while True:
            tag = self._byte(pos)
            count, after = self._parts(tag, pos)
            if count < 0:
                value, pos = self._leaf(tag, pos)
            elif count > 0:
                if count > len(self._buffer) - after:
                    raise VerbatimError(pos, f"{count} parts announced, too few bytes left")
                open_ones.append((tag, count, []))
                pos = after
                continue
            else:
                value, pos = (Pairs() if tag == 116 else ()), after
            while open_ones:
                tag, count, parts = open_ones[-1]
                parts.append(value)
                if len(parts) < count:
                    break
                open_ones.pop()
                value = _close(tag, parts)
            else:
                return value, pos

    def _parts(self, tag: int, pos: int) -> tuple[int, int]:
        """How many terms a container holds, and where the first begins; -1 for a leaf."""
        if tag == 104:
            return self._byte(pos + 1), pos + 2
        if tag == 105:
            return self._uint(pos + 1, 4), pos + 5
        if tag == 108:
            return self._uint(pos + 1, 4) + 1, pos + 5
        if tag == 116:
            return 2 * self._uint(pos + 1, 4), pos + 5
        return -1, pos

    def _take(self, pos: int, size: int) -> bytes:
        piece = self._buffer[pos : pos + size]
        if len(piece) < size:
            missing = _bytes(size - len(piece))
            raise VerbatimError(len(self._buffer), f"the term breaks off, {missing} short")
        return piece

    def _byte(self, pos: int) -> int:
        return self._take(pos, 1)[0]

    def _uint(self, pos: int, size: int) -> int:
        return int.from_bytes(self._take(pos, size))

    def _name(self, pos: int) -> tuple[Name, int]:
        tag = self._byte(pos)
        if tag in (100, 118):
            size, start = self._uint(pos + 1, 2), pos + 3
        elif tag in (115, 119):
            size, start = self._byte(pos + 1), pos + 2
        else:
            raise VerbatimError(pos, f"expected an atom, found tag {tag}")
        raw = self._take(start, size)
        try:
            text = raw.decode("latin-1" if tag in (100, 115) else "utf-8")
        except UnicodeDecodeError:
            raise VerbatimError(start, "an atom that is not UTF-8") from None
        return Name(text), start + size

    def _small(self, pos: int) -> tuple[int, int]:
        """An integer that fits 32 bits, as funs carry them."""
        tag = self._byte(pos)
        if tag == 97:
            return self._byte(pos + 1), pos + 2
        if tag == 98:
            return int.from_bytes(self._take(pos + 1, 4), signed=True), pos + 5
        raise VerbatimError(pos, f"expected a small integer, found tag {tag}")

    def _leaf(self, tag: int, pos: int) -> tuple[Plain, int]:
        match tag:
            case 97 | 98:
                return self._small(pos)
            case 100 | 115 | 118 | 119:
                return self._name(pos)
            case 106:
                return [], pos + 1
            case 109:
                size = self._uint(pos + 1, 4)
                return self._take(pos + 5, size), pos + 5 + size
            case 107:
                size = self._uint(pos + 1, 2)
                return list(self._take(pos + 3, size)), pos + 3 + size
            case 70:
                value = struct.unpack(">d", self._take(pos + 1, 8))[0]
                return self._finite(value, pos), pos + 9
            case 99:
                return self._old_float(pos), pos + 32
            case 110 | 111:
                width = 1 if tag == 110 else 4
                size, start = self._uint(pos + 1, width), pos + 2 + width
                magnitude = int.from_bytes(self._take(start, size), "little")
                return (-magnitude if self._byte(start - 1) else magnitude), start + size
            case 77:
                size, used = self._uint(pos + 1, 4), self._byte(pos + 5)
                data = self._take(pos + 6, size)
                if used == 8 or (used == 0 and not size):
                    return data, pos + 6 + size
                if not 0 < used < 8 or not size:
                    raise VerbatimError(pos + 5, f"a bitstring with {used} bits in its last byte")
                return Bits(data, used), pos + 6 + size
            case 88 | 103:
                return self._pid(tag, pos)
            case 89 | 102 | 120:
                return self._port(tag, pos)
            case 90 | 101 | 114:
                return self._reference(tag, pos)
            case 112 | 113:
                return self._fun(tag, pos)
        raise VerbatimError(pos, f"tag {tag} is no term of the External Term Format known here")

    def _old_float(self, pos: int) -> float:
        digits = self._take(pos + 1, 31).partition(b"\0")[0]
        if not _OLD_FLOAT.fullmatch(digits):
            raise VerbatimError(pos + 1, f"no float: {digits!r}")
        return self._finite(float(digits), pos)

    def _finite(self, value: float, pos: int) -> float:
        if value - value != 0.0:
            raise VerbatimError(pos, "a float that is not finite; the BEAM has none")
        return value

    def _opaque(self, start: int, end: int, kind: str, *shown: int | str) -> tuple[Opaque, int]:
        return Opaque(self._take(start, end - start), kind, shown), end

    def _pid(self, tag: int, pos: int) -> tuple[Opaque, int]:
        _node, at = self._name(pos + 1)
        number, serial = self._uint(at, 4), self._uint(at + 4, 4)
        return self._opaque(pos, at + 8 + (4 if tag == 88 else 1), "pid", number, serial)

    def _port(self, tag: int, pos: int) -> tuple[Opaque, int]:
        _node, at = self._name(pos + 1)
        width = 8 if tag == 120 else 4
        end = at + width + (1 if tag == 102 else 4)
        return self._opaque(pos, end, "port", self._uint(at, width))

    def _reference(self, tag: int, pos: int) -> tuple[Opaque, int]:
        if tag == 101:
            _node, at = self._name(pos + 1)
            return self._opaque(pos, at + 5, "reference", self._uint(at, 4))
        count = self._uint(pos + 1, 2)
        _node, at = self._name(pos + 3)
        at += 4 if tag == 90 else 1
        words = [self._uint(at + 4 * index, 4) for index in range(count)]
        return self._opaque(pos, at + 4 * count, "reference", *reversed(words))

    def _fun(self, tag: int, pos: int) -> tuple[Opaque, int]:
        if tag == 113:
            module, at = self._name(pos + 1)
            function, at = self._name(at)
            arity, at = self._small(at)
            return self._opaque(pos, at, "export", module, function, arity)
        size, arity = self._uint(pos + 1, 4), self._byte(pos + 5)
        module, at = self._name(pos + 30)
        index, at = self._small(at)
        unique, at = self._small(at)
        return self._opaque(pos, pos + 1 + size, "fun", module, index, unique, arity)


def _close(tag: int, parts: list[Plain]) -> Plain:
    if tag in (104, 105):
        return tuple(parts)
    if tag == 116:
        return Pairs(zip(parts[::2], parts[1::2], strict=True))
    tail = parts.pop()
    if type(tail) is list:  # a proper tail of any length makes a proper list, as on the BEAM
        return parts + tail
    if type(tail) is Improper:
        return Improper(parts + tail.items, tail.tail)
    return Improper(parts, tail)


def write(term: Plain) -> bytes:
    """The term in the External Term Format, version byte first; lists as the BEAM writes them."""
    out = bytearray(VERSION_BYTE)
    waiting: list[Plain] = [term]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is Name:
            raw = value.encode()
            small = len(raw) < 256
            out += bytes((119, len(raw))) if small else b"v" + len(raw).to_bytes(2)
            out += raw
        elif kind is int:
            out += _integer(value)
        elif kind is bytes:
            out += b"m" + len(value).to_bytes(4) + value
        elif kind is tuple:
            size = len(value)
            out += bytes((104, size)) if size < 256 else b"i" + size.to_bytes(4)
            waiting += reversed(value)
        elif kind is list:
            if not value:
                out += b"j"
            elif len(value) < 65536 and all(type(i) is int and 0 <= i < 256 for i in value):
                out += b"k" + len(value).to_bytes(2) + bytes(value)
            else:
                out += b"l" + len(value).to_bytes(4)
                waiting += [[], *reversed(value)]
        elif kind is Pairs:
            out += b"t" + len(value).to_bytes(4)
            waiting += [side for pair in reversed(value) for side in reversed(pair)]
        elif kind is float:
            out += b"F" + struct.pack(">d", value)
        elif kind is Bits:
            out += b"M" + len(value.data).to_bytes(4) + bytes((value.used,)) + value.data
        elif kind is Improper:
            out += b"l" + len(value.items).to_bytes(4)
            waiting += [value.tail, *reversed(value.items)]
        elif kind is Opaque:
            out += value.raw
        else:
            raise TypeError(f"no plain term: {value!r}")
    return bytes(out)


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return bytes((97, value))
    if -(1 << 31) <= value < 1 << 31:
        return b"b" + value.to_bytes(4, signed=True)
    magnitude = abs(value)
    size = (magnitude.bit_length() + 7) // 8
    head = bytes((110, size)) if size < 256 else b"o" + size.to_bytes(4)
    return head + bytes((value < 0,)) + magnitude.to_bytes(size, "little")
