"""The writing half of the fallback codec: Python values to bytes, with erlang-py for the leaves.

Containers, binaries and big integers are written here: erlang-py writes a str and bytes as a
charlist, None as `undefined`, and is quadratic in big integers. No I/O.
"""

from __future__ import annotations

import sys

import erlang

from . import structs
from .errors import EtfError, encode_error, hook_failed, path_of, show
from .mapping import name_of, resolve
from .terms import Atom, BitString, FrozenList, ImproperList, LocalTerm, Opaque, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Part = bytes | memoryview

MAX_DEPTH_CEILING = 2_000  # levels; the native codec's frames must fit the C stack of any thread
DEFAULT_MAX_DEPTH = 512  # levels; JSON libraries stop near 1000, the smallest thread stacks before
DEFAULT_MAX_BYTES = 2**32 - 1  # what a {packet, 4} header can announce
DEFAULT_BY_REFERENCE_FROM = 65_536  # bytes; below, a copy is cheaper than one more iovec

# The formats of buffers of numbers or single bytes; an array of objects holds addresses.
_NUMERIC = frozenset("?bBhHiIlLqQnNefdgFDc")

_CHANGED = "changed while it was being encoded"


class BadTermError(Exception):
    """A failure on its way up to the root; each container adds its step."""

    def __init__(self, reason: str, remedy: str = "", offset: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.offset = offset
        self.steps: list[object] = []


def _leaf(value: object) -> bytes:
    """Have erlang-py write one leaf, without the version byte."""
    written: bytes = erlang.term_to_binary(value)
    return written[1:]


def _atom(name: str) -> bytes:
    if len(name) > 255:
        raise BadTermError(f"an atom of {len(name)} characters; 255 is the most")
    try:
        return _leaf(erlang.OtpErlangAtom(str(name)))
    except UnicodeEncodeError as error:
        raise _surrogate(error.start) from None


def _surrogate(at: int) -> BadTermError:
    return BadTermError(
        f"a str with a lone surrogate at {at} has no UTF-8 form",
        'Send bytes instead, e.g. text.encode("utf-8", "surrogateescape")',
    )


_CONSTANTS = {None: _atom("nil"), True: _atom("true"), False: _atom("false")}
_STRUCT = _atom("__struct__")


class _Writer:
    """One value being written into `parts`."""

    __slots__ = ("by_reference_from", "default", "max_bytes", "max_depth", "parts", "size")

    def __init__(
        self,
        head: bytes,
        default: Callable[[Any], Any] | None,
        max_depth: int,
        max_bytes: int,
        by_reference_from: int | None,
    ) -> None:
        self.parts: list[Part] = []
        self.size = 0
        self.default = default
        self.max_depth = max_depth
        self.max_bytes = max_bytes
        self.by_reference_from = by_reference_from
        self.put(head)

    def put(self, data: Part) -> None:
        self.parts.append(data)
        self.size += len(data)
        if self.size > self.max_bytes:
            raise BadTermError(
                f"the term is larger than {self.max_bytes} bytes",
                "Send less at once, or raise the limit",
            )

    def term(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is str:
            self.text(value)
        elif value is None or kind is bool:
            self.put(_CONSTANTS[value])
        elif kind is int:
            self.integer(value)
        elif kind is float:
            self.put(self.real(value))
        elif kind is Atom:
            self.put(_atom(value))
        elif kind in (bytes, bytearray, memoryview):
            self.raw(value)
        elif kind is list or kind is FrozenList:
            self.items(b"l", value, depth)
        elif kind is tuple:
            self.items(b"h", value, depth)
        elif kind is dict:
            self.map_(value, depth)
        elif isinstance(value, Struct):
            self.map_(value, depth, module=value.module)
        elif isinstance(value, Opaque):
            if kind is LocalTerm and depth:
                raise BadTermError("a local term inside another term", "Send it alone")
            if type(value.wire) is not bytes:
                raise BadTermError("an opaque term without its bytes")
            self.put(value.wire)
        elif kind is BitString:
            if not value.data or not 1 <= value.bits <= 7:
                raise BadTermError("a BitString that was changed into something else")
            self.put(b"M" + len(value.data).to_bytes(4, "big") + bytes((value.bits,)))
            self.put(value.data)
        elif kind is ImproperList:
            if not value.items:
                raise BadTermError("an ImproperList that was changed into something else")
            self.items(b"l", value.items, depth, tail=value)
        else:
            self.other(value, depth)

    def other(self, value: Any, depth: int) -> None:
        write = self.base(value)
        # A metaclass may mean an enum, and a registered subtype of a built-in goes first.
        plain = type(type(value)) is type and not structs.registered_builtin_subtypes
        if write is not None and plain:
            write(depth)
            return
        try:
            mapped = resolve(value)
        except Exception as error:
            raise BadTermError(*hook_failed(name_of(value), error)) from error
        if mapped is NotImplemented:
            if write is not None:
                write(depth)
                return
            if self.default is None:
                raise BadTermError(
                    f"a value of type {name_of(value)} has no term",
                    "Convert it, or register its type with port_server.etf.register",
                )
            mapped = self.default(value)
        if depth >= self.max_depth:
            raise self.too_deep()
        self.term(mapped, depth + 1)

    def base(self, value: Any) -> Callable[[int], None] | None:
        """Find how to write a subclass of a built-in type: as its base, whatever it overrides."""
        if isinstance(value, str):
            return lambda _: self.text(str.__str__(value))
        if isinstance(value, int):
            return lambda _: self.integer(int.__index__(value))
        if isinstance(value, float):
            return lambda _: self.put(self.real(float.__float__(value)))
        if isinstance(value, bytes):
            return lambda _: self.raw(bytes.__getitem__(value, slice(None)))
        if isinstance(value, bytearray):
            return lambda _: self.raw(bytearray.__getitem__(value, slice(None)))
        if isinstance(value, (list, FrozenList)):
            return lambda depth: self.items(b"l", value, depth)
        if isinstance(value, tuple):
            return lambda depth: self.items(b"h", value, depth)
        if isinstance(value, dict):
            return lambda depth: self.map_(value, depth)
        return None

    def too_deep(self) -> BadTermError:
        return BadTermError(
            f"nested deeper than {self.max_depth} levels",
            "Flatten it, raise max_depth, or look for a value that contains itself",
        )

    @staticmethod
    def real(value: float) -> bytes:
        if value - value == 0.0:
            return _leaf(value)
        # A NaN or an infinity would make the BEAM reject the whole message; these are Nx's words.
        return _atom("nan" if value != value else "infinity" if value > 0 else "neg_infinity")  # noqa: PLR0124

    def integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.put(_leaf(value))
            return
        size = (abs(value).bit_length() + 7) // 8
        count = b"n" + bytes((size,)) if size < 256 else b"o" + size.to_bytes(4, "big")
        self.put(count + bytes((value < 0,)))
        self.put(abs(value).to_bytes(size, "little"))

    def text(self, value: str) -> None:
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise _surrogate(error.start) from None
        self.put(b"m" + len(data).to_bytes(4, "big"))
        self.put(data)

    def raw(self, value: Any) -> None:
        try:
            view = memoryview(value)
        except ValueError as error:  # a released memoryview
            raise BadTermError(*hook_failed(name_of(value), error)) from error
        if view.format.lstrip("@=<>!").removeprefix("Z") not in _NUMERIC:
            raise BadTermError(
                f"the items of a memoryview of format '{view.format}' are no numbers",
                "Send the values as a list, as array.tolist() gives them",
            )
        if view.nbytes > 2**32 - 1:
            raise BadTermError(f"a binary of {view.nbytes} bytes; the format ends at 4 GiB")
        self.put(b"m" + view.nbytes.to_bytes(4, "big"))
        by_reference = (
            self.by_reference_from is not None
            and view.nbytes >= self.by_reference_from
            and view.c_contiguous
        )
        if by_reference:
            self.put(value if type(value) is bytes else view.cast("B"))
        else:
            self.put(view.tobytes())

    def items(self, tag: bytes, values: Any, depth: int, *, tail: Any = None) -> None:
        if depth >= self.max_depth:
            raise self.too_deep()
        count = len(values) if type(values) in (list, tuple) else sum(1 for _ in _each(values))
        if tag == b"h":
            small = count < 256
            self.put(b"h" + bytes((count,)) if small else b"i" + count.to_bytes(4, "big"))
        elif count:
            self.put(b"l" + count.to_bytes(4, "big"))
        index = 0
        try:
            for item in _each(values):
                if index < count:
                    self.term(item, depth + 1)
                index += 1
            if index == count and tail is not None:
                self.term(tail.tail, depth + 1)
        except BadTermError as bad:
            bad.steps.append(index)
            raise
        except EtfError as error:
            error.below(path_of([index]))
            raise
        if index != count:
            raise BadTermError("a list " + _CHANGED)
        if tag == b"l" and tail is None:
            self.put(b"j")

    def map_(self, fields: Any, depth: int, *, module: Atom | None = None) -> None:
        if depth >= self.max_depth:
            raise self.too_deep()
        count = dict.__len__(fields)
        self.put(b"t" + (count + (module is not None)).to_bytes(4, "big"))
        seen: dict[bytes, Any] = {}
        if module is not None:
            self.put(_STRUCT)
            self.put(_atom(module))
            seen[_STRUCT] = Atom("__struct__")
        step: Any = None
        try:
            for key, value in dict.items(fields):
                step = key
                before = len(self.parts)
                if module is not None and type(key) is str:
                    self.put(_atom(key))  # a struct's keys are atoms
                else:
                    self.term(key, depth + 1)
                written = b"".join(self.parts[before:])
                if written in seen:
                    raise BadTermError(
                        f"two keys of one map become equal on the BEAM: {show(seen[written])} "
                        f"and {show(key)}",
                        "Rename one of them, or send a list of pairs",
                    )
                seen[written] = key
                self.term(value, depth + 1)
        except BadTermError as bad:
            bad.steps.append(step)
            raise
        except EtfError as error:
            error.below(path_of([step]))
            raise
        except RuntimeError as error:
            if "during iteration" not in str(error) and "mutated" not in str(error):
                raise
            raise BadTermError("a dict " + _CHANGED) from None
        if dict.__len__(fields) != count:
            raise BadTermError("a dict " + _CHANGED)


def _each(values: Any) -> Iterable[Any]:
    """Iterate as the base type does: an overridden `__iter__` is not asked."""
    return list.__iter__(values) if isinstance(values, list) else tuple.__iter__(values)


def _write(
    value: Any,
    head: Any,
    default: Callable[[Any], Any] | None,
    max_depth: int,
    max_bytes: int,
    by_reference_from: int | None,
) -> list[Part]:
    if not 0 <= max_depth <= MAX_DEPTH_CEILING:
        raise ValueError(f"max_depth is 0 to {MAX_DEPTH_CEILING}, not {max_depth}")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(
        limit + 3 * max_depth
    )  # two frames a level; ours is the limit that counts
    try:
        writer = _Writer(bytes(head), default, max_depth, max_bytes, by_reference_from)
        writer.term(value, 0)
    except BadTermError as bad:
        raise encode_error(bad.reason, bad.remedy, bad.steps) from bad.__cause__
    except RecursionError:
        raise encode_error(
            f"nested deeper than {max_depth} levels",
            "Flatten it, raise max_depth, or look for a value that contains itself",
            [],
        ) from None
    finally:
        sys.setrecursionlimit(limit)
    return writer.parts


def encode(
    value: Any,
    /,
    *,
    head: bytes | bytearray | memoryview = b"\x83",
    default: Callable[[Any], Any] | None = None,
    max_depth: int = DEFAULT_MAX_DEPTH,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> bytes:
    """Write one value behind `head`.

    Args:
        value: what is to be written.
        head: the bytes that stand before the term: its version byte, or a whole envelope.
        default: called with a value that has no term; returns one that has.
        max_depth: how many containers may be inside each other, at most 2000.
        max_bytes: how many bytes the result may have, `head` included.

    Raises:
        EncodeError: there is no term for it, or it is too deep or too large; says where in it.
    """
    return b"".join(_write(value, head, default, max_depth, max_bytes, None))


def encode_parts(
    value: Any,
    /,
    *,
    head: bytes | bytearray | memoryview = b"\x83",
    default: Callable[[Any], Any] | None = None,
    max_depth: int = DEFAULT_MAX_DEPTH,
    max_bytes: int = DEFAULT_MAX_BYTES,
    by_reference_from: int = DEFAULT_BY_REFERENCE_FROM,
) -> list[Part]:
    """Write one value behind `head` in parts for os.writev, large bytes-likes by reference.

    Args:
        value: what is to be written.
        head: the bytes that stand before the term: its version byte, or a whole envelope.
        default: called with a value that has no term; returns one that has.
        max_depth: how many containers may be inside each other, at most 2000.
        max_bytes: how many bytes the result may have, `head` included.
        by_reference_from: how many bytes a bytes-like must have to be a part of its own, which is
            not copied: write it before code runs that may change it.

    Raises:
        EncodeError: there is no term for it, or it is too deep or too large; says where in it.
    """
    parts = _write(value, head, default, max_depth, max_bytes, by_reference_from)
    joined: list[Part] = []
    small: list[Part] = []
    for part in parts:
        if len(part) < by_reference_from or part is parts[0]:
            small.append(part)
            continue
        joined.append(b"".join(small))
        joined.append(part)
        small = []
    if small:
        joined.append(b"".join(small))
    return joined
