"""Binary syntax, `<<Value:Size/Type-...>>`: segments in, bytes or a bitstring out. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from port_server.etf.text.verbatim import Bits

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SEGMENT_BITS = 1 << 27  # <<0:99999999999>> is a slip of the hand, not 12 GB of zeros

_TYPES = frozenset(("integer", "float", "utf8", "utf16", "utf32"))
_MODIFIERS = frozenset(("big", "little", "native", "signed", "unsigned", "unit"))
_FLOAT_FORMATS = {16: "e", 32: "f", 64: "d"}


class SegmentError(ValueError):
    """A segment that has no meaning; the text says why."""


class Segment:
    """One part of a binary: its value, with its size and type."""

    __slots__ = ("size", "types", "unit", "value")

    def __init__(self, value: Any) -> None:
        self.value = value  # an int, a float or a str
        self.size: int | None = None
        self.unit: int | None = None
        self.types: list[str] = []


def pack(segments: Iterable[Segment]) -> bytes | Bits:
    """The bits of all segments, one behind the other.

    Raises:
        SegmentError: a type that is none, a size where none can be, a value that does not fit.
    """
    whole = bytearray()
    odd, odd_bits = 0, 0  # the bits behind the last whole byte
    for segment in segments:
        for value, bits in _pieces(segment):
            if not odd_bits and not bits % 8:
                whole += value.to_bytes(bits // 8)
                continue
            odd, odd_bits = (odd << bits) | value, odd_bits + bits
            rest = odd_bits % 8
            whole += (odd >> rest).to_bytes(odd_bits // 8)
            odd, odd_bits = odd & ((1 << rest) - 1), rest
    if not odd_bits:
        return bytes(whole)
    whole.append(odd << (8 - odd_bits))
    return Bits(bytes(whole), odd_bits)


def _pieces(segment: Segment) -> Iterable[tuple[int, int]]:
    """The segment as non-negative integers with their widths in bits."""
    value, size, types = segment.value, segment.size, segment.types
    kind, little = _kind(types)
    if kind.startswith("utf"):
        if size is not None or segment.unit is not None:
            raise SegmentError(f"a {kind} segment has no size")
        encoded = _encoded(value, kind, little=little)
        return ((int.from_bytes(encoded), 8 * len(encoded)),)
    unit = 1 if segment.unit is None else segment.unit
    if size is None and segment.unit is not None:
        raise SegmentError("a unit needs a size in front of it: Value:Size/unit:Bits")
    if not 1 <= unit <= 256:
        raise SegmentError(f"a unit is between 1 and 256 bits, not {unit}")
    default = 64 if kind == "float" else 8
    bits = (default if size is None else size) * unit
    if bits > MAX_SEGMENT_BITS:
        raise SegmentError(f"a segment of {bits} bits; at most {MAX_SEGMENT_BITS} are taken")
    if isinstance(value, str):
        if kind == "float":
            return tuple(_number(ord(char), kind, bits, little=little) for char in value)
        if bits == 8:  # by far the most common, and maybe megabytes
            try:
                encoded = value.encode("latin-1")
            except UnicodeEncodeError as error:
                raise SegmentError(
                    f'{value[error.start]} does not fit a byte: write <<"..."/utf8>> for text'
                    " beyond Latin-1"
                ) from None
            return ((int.from_bytes(encoded), 8 * len(encoded)),)
        return tuple(_number(ord(char), kind, bits, little=little) for char in value)
    return (_number(value, kind, bits, little=little),)


def _kind(types: list[str]) -> tuple[str, bool]:
    kind, little = "integer", False
    for name in types:
        if name in _TYPES:
            kind = name
        elif name in ("binary", "bytes", "bitstring", "bits"):
            raise SegmentError(f"{name}: only numbers and strings stand in a binary here")
        elif name not in _MODIFIERS:
            raise SegmentError(
                f"{name} is no type of a binary's segment; there are integer, float, utf8, utf16,"
                " utf32, signed, unsigned, big, little and unit:Bits"
            )
    if "little" in types:
        little = True
    elif "native" in types:
        little = struct.pack("=H", 1) == b"\x01\x00"
    return kind, little


def _encoded(value: Any, kind: str, *, little: bool) -> bytes:
    endian = "" if kind == "utf8" else "-le" if little else "-be"
    codec = f"utf-{kind[3:]}{endian}"
    try:
        if isinstance(value, float):
            raise SegmentError(f"a float cannot be {kind}")
        return (chr(value) if isinstance(value, int) else value).encode(codec)
    except (ValueError, OverflowError):
        raise SegmentError(f"{value!r} is no character that {kind} can hold") from None


def _number(value: Any, kind: str, bits: int, *, little: bool) -> tuple[int, int]:
    if kind == "float":
        form = _FLOAT_FORMATS.get(bits)
        if form is None:
            raise SegmentError(f"a float has 16, 32 or 64 bits, not {bits}")
        try:
            return int.from_bytes(struct.pack(("<" if little else ">") + form, value)), bits
        except (OverflowError, struct.error):
            raise SegmentError(f"{value} does not fit a float of {bits} bits") from None
    if isinstance(value, float):
        raise SegmentError(f"{value} is a float: write {value}/float")
    value &= (1 << bits) - 1
    if little:
        value = _little(value, bits)
    return value, bits


def _little(value: int, bits: int) -> int:
    """The same bits with the bytes in the other order; an incomplete byte stands last."""
    whole, rest = divmod(bits, 8)
    data = (value & ((1 << 8 * whole) - 1)).to_bytes(whole, "little")
    return (int.from_bytes(data) << rest) | (value >> 8 * whole)
