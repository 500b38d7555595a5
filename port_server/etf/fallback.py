"""The codec for systems without the C extension: the same contract, on erlang-py. The reading half.

erlang-py reads and writes the leaves (integers, floats, atoms, pids and their kin). Containers and
binaries are walked here, because erlang-py's own walk drops equal keys, reads `undefined` as None
and a STRING_EXT as bytes, inflates compressed terms without a limit, is quadratic in big integers,
recurses without a limit, and knows neither offsets nor paths. No I/O.
"""

from __future__ import annotations

import sys

import erlang

from . import structs
from .errors import KEY, decode_error, hook_failed, show
from .fallback_encode import (
    DEFAULT_MAX_DEPTH,
    MAX_DEPTH_CEILING,
    BadTermError,
    encode,
    encode_parts,
)
from .mapping import name_of
from .terms import (
    NOT_FINITE,
    Atom,
    BitString,
    FrozenList,
    FrozenMap,
    Fun,
    ImproperList,
    LocalTerm,
    Opaque,
    Pid,
    Port,
    Reference,
    Struct,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["decode", "encode", "encode_parts", "read_term"]

# erlang-py reads this name as None, and its default is an atom that means something else here.
erlang.set_undefined(b"nil")

_CONSTANTS = {"true": True, "false": False, "nil": None}
_NOT_FINITE_NAMES = {str(number): Atom(name) for name, number in NOT_FINITE.items()}
_WAYS_OUT = "Wrap it in PyPort.bytes/1, or pass binary_as: :bytes to have every binary as bytes"


def _leaf(data: bytes) -> Any:
    """Have erlang-py read one leaf whose length is checked already."""
    return erlang.binary_to_term(b"\x83" + data)


def _too_deep(max_depth: int, offset: int | None = None) -> BadTermError:
    return BadTermError(
        f"nested deeper than {max_depth} levels",
        "Flatten it, or raise max_depth"
        if offset is not None
        else "Flatten it, raise max_depth, or look for a value that contains itself",
        offset,
    )


def _is_old_float(text: bytes) -> bool:
    # Python's float() accepts more than the BEAM does: nan, 1_0, a leading blank.
    mantissa, e, exponent = text.lower().partition(b"e")
    whole, _, fraction = mantissa.partition(b".")
    whole = whole[1:] if whole[:1] in (b"+", b"-") else whole
    exponent = exponent[1:] if exponent[:1] in (b"+", b"-") else exponent
    return whole.isdigit() and fraction.isdigit() and (not e or exponent.isdigit())


class _Reader:
    """One buffer being read.

    `at` moves on. `owed` counts elements announced and not yet read: each takes at least a byte, so
    a set of wrong lengths cannot add up to more than the input.
    """

    __slots__ = ("at", "binary_as", "data", "floats_as", "max_depth", "owed", "plain", "view")

    def __init__(
        self, data: bytes, at: int, binary_as: str, floats_as: str, max_depth: int, *, plain: bool
    ) -> None:
        self.data = data
        self.at = at
        self.binary_as = binary_as
        self.floats_as = floats_as
        self.max_depth = max_depth
        self.owed = 0
        self.plain = plain
        self.view = memoryview(data)

    def need(self, count: int) -> None:
        left = len(self.data) - self.at
        if count > left:
            raise BadTermError(
                f"the data ends too early: {count} bytes wanted, {left} left", "", self.at
            )

    def take(self, count: int) -> bytes:
        self.need(count)
        begin = self.at
        self.at = begin + count
        return self.data[begin : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def announce(self, count: int, each: int = 1) -> None:
        left = len(self.data) - self.at - self.owed
        if count and count * each > left:
            raise BadTermError(
                f"{count} elements are announced and {max(left, 0)} bytes are left for them",
                "",
                self.at,
            )
        self.owed += count * each

    def atom_name(self) -> str:
        begin = self.at
        tag = self.number(1)
        if tag not in (100, 115, 118, 119):
            raise BadTermError(f"tag {tag} where an atom belongs", "", begin)
        raw = self.take(self.number(1 if tag in (115, 119) else 2))
        return self.text_of_atom(raw, tag, begin)

    @staticmethod
    def text_of_atom(raw: bytes, tag: int, begin: int) -> str:
        try:
            name = raw.decode("utf-8" if tag in (118, 119) else "latin-1")
        except UnicodeDecodeError:
            raise BadTermError("an atom's name is not UTF-8", "", begin) from None
        if len(name) > 255:
            raise BadTermError(f"an atom of {len(name)} characters; 255 is the most", "", begin)
        return name

    def opaque(self, kind: type[Opaque], begin: int, tail: int) -> Any:
        self.atom_name()
        self.take(tail)
        data = self.data[begin : self.at]
        _leaf(data)
        return kind.from_wire(data)

    def term(self, depth: int, *, as_key: bool = False) -> Any:
        begin = self.at
        tag = self.number(1)
        if tag in (97, 98, 70, 99):
            data = self.take({97: 1, 98: 4, 70: 8, 99: 31}[tag])
            if tag == 99 and not _is_old_float(data.partition(b"\0")[0]):
                raise BadTermError("an old float that is no number", "", begin)
            value = _leaf(self.data[begin : self.at])
            if tag in (70, 99) and value - value != 0.0:
                raise BadTermError("a float that is not finite; the BEAM has none", "", begin)
            return value
        if tag in (100, 115, 118, 119):
            self.at = begin
            name = self.atom_name()
            if name in NOT_FINITE and not self.plain:
                return NOT_FINITE[name]
            return _CONSTANTS[name] if name in _CONSTANTS else Atom(name)
        if tag == 109:
            return self.binary(self.take(self.number(4)), begin, as_key=as_key)
        if tag in (104, 105):
            count = self.number(1 if tag == 104 else 4)
            return tuple(self.items(count, depth, begin, as_key=as_key))
        if tag == 106:
            return FrozenList() if as_key else []
        if tag == 107:
            values = list(self.take(self.number(2)))
            return FrozenList(values) if as_key else values
        if tag == 108:
            return self.list_(depth, begin, as_key=as_key)
        if tag == 116:
            return self.map_(depth, begin, as_key=as_key)
        if tag in (110, 111):
            size = self.number(1 if tag == 110 else 4)
            sign = self.number(1)
            if sign > 1:
                raise BadTermError(f"a big integer's sign byte is {sign}, not 0 or 1", "", begin)
            magnitude = int.from_bytes(self.take(size), "little")
            return -magnitude if sign else magnitude
        if tag == 77:
            return self.bits(begin, as_key=as_key)
        if tag in (88, 103):
            return self.opaque(Pid, begin, 12 if tag == 88 else 9)
        if tag in (89, 102, 120):
            return self.opaque(Port, begin, {89: 8, 102: 5, 120: 12}[tag])
        if tag == 101:
            return self.opaque(Reference, begin, 5)
        if tag in (90, 114):
            words = self.number(2)
            if not 1 <= words <= 5:
                raise BadTermError(f"a reference of {words} words; 1 to 5 are legal", "", begin)
            return self.opaque(Reference, begin, words * 4 + (4 if tag == 90 else 1))
        if tag == 113:
            self.atom_name()
            self.atom_name()
            if self.number(1) != 97:
                raise BadTermError("an external fun without an arity", "", begin)
            self.take(1)
            return Fun.from_wire(self.data[begin : self.at])
        if tag == 112:
            size = self.number(4)
            if size < 33:
                raise BadTermError(f"a fun of {size} bytes; 33 is the least", "", begin)
            self.take(size - 4)
            return Fun.from_wire(self.data[begin : self.at])
        if tag == 121 and depth == 0:
            # No length of the compressed data is announced: it is the rest of the input.
            self.at = len(self.data)
            return LocalTerm.from_wire(self.data[begin:])
        if tag == 121:
            raise BadTermError("a local term inside another term", "", begin)
        if tag == 80:
            raise BadTermError(
                "compressed terms are refused",
                "Leave out the :compressed option of term_to_binary",
                begin,
            )
        raise BadTermError(f"tag {tag} is not one of the External Term Format's", "", begin)

    def binary(self, raw: bytes, begin: int, *, as_key: bool) -> Any:
        if self.binary_as == "str":
            try:
                return raw.decode()
            except UnicodeDecodeError as error:
                at = error.start
            raise BadTermError(
                f"a binary of {len(raw)} bytes is not UTF-8 (byte 0x{raw[at]:02x} at {at})",
                _WAYS_OUT,
                begin,
            )
        if self.binary_as == "bytes" or as_key:
            return raw
        return self.view[self.at - len(raw) : self.at]

    def bits(self, begin: int, *, as_key: bool) -> Any:
        size, used = self.number(4), self.number(1)
        if used > 8 or (used == 0) != (size == 0):
            raise BadTermError(
                f"a bitstring with {used} bits used of the last of {size} bytes", "", begin
            )
        raw = self.take(size)
        if used in (0, 8):
            return self.binary(raw, begin, as_key=as_key)
        return BitString(raw, used)

    def items(self, count: int, depth: int, begin: int, *, as_key: bool, first: int = 0) -> Any:
        if depth >= self.max_depth:
            raise _too_deep(self.max_depth, begin)
        self.announce(count)
        values: list[Any] = []
        try:
            for _ in range(count):
                self.owed -= 1
                values.append(self.term(depth + 1, as_key=as_key))
        except BadTermError as bad:
            bad.steps.append(first + len(values))
            raise
        return values

    def list_(self, depth: int, begin: int, *, as_key: bool) -> Any:
        if depth >= self.max_depth:
            raise _too_deep(self.max_depth, begin)
        values: list[Any] = []
        while True:  # a tail that is a list again goes on with this one, as on the BEAM
            count = self.number(4)
            if self.floats_as != "list" and not as_key and not values and self.only_floats(count):
                return self.typed_floats(count, begin)
            values += self.items(count, depth, begin, as_key=as_key, first=len(values))
            tag = self.data[self.at] if self.at < len(self.data) else -1
            if tag == 108:
                self.at += 1
                continue
            if tag == 106:
                self.at += 1
                break
            try:
                tail = self.term(depth + 1, as_key=as_key)
            except BadTermError as bad:
                bad.steps.append(len(values))
                raise
            if tag == 107:
                values += tail
                break
            if not values:
                return tail
            return ImproperList(FrozenList(values) if as_key else values, tail)
        return FrozenList(values) if as_key else values

    def only_floats(self, count: int) -> bool:
        end = self.at + count * 9
        return (
            count > 0
            and end < len(self.data)
            and self.data[end] == 106
            and self.data[self.at : end : 9] == b"F" * count
        )

    def typed_floats(self, count: int, begin: int) -> Any:
        raw = self.take(count * 9)
        self.at += 1
        swapped = bytearray(count * 8)
        for byte in range(8):
            swapped[byte::8] = (
                raw[8 - byte :: 9] if sys.byteorder == "little" else raw[byte + 1 :: 9]
            )
        doubles = memoryview(swapped).cast("d")
        if any(value - value != 0.0 for value in doubles):
            raise BadTermError("a float that is not finite; the BEAM has none", "", begin)
        if self.floats_as == "memoryview":
            return doubles
        import numpy as np  # type: ignore[import-not-found,unused-ignore]

        return np.frombuffer(swapped, np.float64)

    def map_(self, depth: int, begin: int, *, as_key: bool) -> Any:
        if depth >= self.max_depth:
            raise _too_deep(self.max_depth, begin)
        count = self.number(4)
        if count == 2 and not self.plain:
            after = self.port_bytes()
            if after is not None:
                return after
        self.announce(count, 2)
        fields: dict[Any, Any] = {}
        for _ in range(count):
            self.owed -= 2
            at = self.at
            self.owed += 1  # the value, while the key is read
            try:
                key = self.term(depth + 1, as_key=True)
            except BadTermError as bad:
                bad.steps.append(KEY)
                raise
            if type(key) is float and key - key != 0.0:
                key = _NOT_FINITE_NAMES[str(key)]  # a key is a name: an atom there stays one
            self.owed -= 1
            try:
                if key in fields:
                    raise self.equal_keys(key, fields, at)
            except TypeError:
                raise BadTermError(f"a {name_of(key)} cannot be a key in Python", "", at) from None
            try:
                fields[key] = self.term(depth + 1, as_key=as_key)
            except BadTermError as bad:
                bad.steps.append(key)
                raise
        module = fields.get("__struct__")
        if type(module) is Atom and any(
            type(key) is Atom and key == "__struct__" for key in fields
        ):
            return self.struct(module, fields, begin, as_key=as_key)
        return FrozenMap(fields) if as_key else fields

    @staticmethod
    def equal_keys(key: Any, fields: dict[Any, Any], at: int) -> BadTermError:
        other = next(known for known in fields if known == key)
        return BadTermError(
            f"two keys of one map are equal in Python: {show(other)} and {show(key)}",
            "Rename one of them, or send a list of pairs",
            at,
        )

    def port_bytes(self) -> bytes | None:
        """Read %PyPort.Bytes{} or %PyPort.View{}; None if the next term is another one."""
        begin, owed = self.at, self.owed
        data, module = None, None
        try:
            for _ in range(2):
                name = self.atom_name()
                if name == "data" and self.number(1) == 109:
                    data = self.take(self.number(4))
                elif name == "__struct__":
                    module = self.atom_name()
        except BadTermError:
            module = None
        if module in {"Elixir.PyPort.Bytes", "Elixir.PyPort.View"} and data is not None:
            return data
        self.at, self.owed = begin, owed
        return None

    def struct(self, module: Atom, fields: dict[Any, Any], begin: int, *, as_key: bool) -> Any:
        del fields["__struct__"]
        convert = None if self.plain else structs.from_struct_by_module.get(module)
        if convert is None:
            return Struct(module, fields)
        try:
            value = convert(fields)
        except Exception as error:
            raise BadTermError(*hook_failed(module, error), begin) from error
        return frozenset(value) if as_key and type(value) is set else value


def _read(
    buffer: Any,
    at: int,
    binary_as: str,
    floats_as: str,
    max_depth: int,
    *,
    whole: bool,
    plain: bool,
) -> tuple[Any, int]:
    if binary_as not in ("str", "bytes", "memoryview"):
        raise ValueError(f'binary_as is "str", "bytes" or "memoryview", not {binary_as!r}')
    if floats_as not in ("list", "memoryview", "numpy"):
        raise ValueError(f'floats_as is "list", "memoryview" or "numpy", not {floats_as!r}')
    if not 0 <= max_depth <= MAX_DEPTH_CEILING:
        raise ValueError(f"max_depth is 0 to {MAX_DEPTH_CEILING}, not {max_depth}")
    data = buffer if type(buffer) is bytes else memoryview(buffer).tobytes()
    if not 0 <= at <= len(data):
        raise ValueError(f"offset {at} is outside the buffer of {len(data)} bytes")
    reader = _Reader(data, at, binary_as, floats_as, max_depth, plain=plain)
    if type(buffer) is not bytes:
        reader.view = memoryview(buffer).cast("B")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(
        limit + 3 * max_depth
    )  # two frames a level; ours is the limit that counts
    try:
        if whole:
            version = reader.number(1)
            if version != 131:
                raise BadTermError(f"the first byte is {version}, not the version byte 131", "", at)
        value = reader.term(0)
        if whole and reader.at != len(data):
            more = len(data) - reader.at
            raise BadTermError(f"{more} bytes follow the term", "", reader.at)
    except BadTermError as bad:
        error = decode_error(bad.reason, bad.remedy, bad.steps, bad.offset)
        raise error from bad.__cause__
    except RecursionError:
        deep = _too_deep(max_depth, reader.at)
        raise decode_error(deep.reason, deep.remedy, [], deep.offset) from None
    finally:
        sys.setrecursionlimit(limit)
    return value, reader.at


def decode(
    buffer: Any,
    /,
    *,
    binary_as: str = "str",
    floats_as: str = "list",
    max_depth: int = DEFAULT_MAX_DEPTH,
    plain_structs: bool = False,
) -> Any:
    """Read one whole term: the version byte 131 first, nothing after it.

    Args:
        buffer: any bytes-like object.
        binary_as: what every binary becomes: "str" (it must be UTF-8), "bytes" or "memoryview",
            which lies in `buffer` and is not copied.
        floats_as: what a list of nothing but floats becomes: "list", "memoryview" (of doubles)
            or "numpy" (an array).
        max_depth: how many containers may be inside each other, at most 2000.
        plain_structs: whether every struct stays a `Struct`.

    Raises:
        DecodeError: it is no term, or one without a Python value; says where in it.
    """
    return _read(buffer, 0, binary_as, floats_as, max_depth, whole=True, plain=plain_structs)[0]


def read_term(
    buffer: Any,
    offset: int,
    /,
    *,
    binary_as: str = "str",
    floats_as: str = "list",
    max_depth: int = DEFAULT_MAX_DEPTH,
    plain_structs: bool = False,
) -> tuple[Any, int]:
    """Read one term without a version byte at `offset`; returns it and where it ended.

    Args:
        buffer: any bytes-like object.
        offset: where in it the term begins, in bytes.
        binary_as: what every binary becomes: "str" (it must be UTF-8), "bytes" or "memoryview",
            which lies in `buffer` and is not copied.
        floats_as: what a list of nothing but floats becomes: "list", "memoryview" (of doubles)
            or "numpy" (an array).
        max_depth: how many containers may be inside each other, at most 2000.
        plain_structs: whether every struct stays a `Struct`.

    Raises:
        DecodeError: it is no term, or one without a Python value; says where in it.
    """
    return _read(buffer, offset, binary_as, floats_as, max_depth, whole=False, plain=plain_structs)
