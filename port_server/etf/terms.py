"""The terms Python has no type for: atoms, pids and the like, bitstrings, improper lists, structs.

Values only: the codecs write them, and `structs` converts structs to Python types.
"""

from __future__ import annotations

from _weakref import ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn, Self

    _Tuple = tuple[Any, ...]
    _Dict = dict[Any, Any]
    _Ref = ref["Atom"]
else:  # the parameters are for the type checker; typing itself is too slow to import at a start
    _Tuple, _Dict, _Ref = tuple, dict, ref

MAX_ATOM_CHARACTERS = 255  # the BEAM's own limit; it refuses a message with a longer one

# The floats that the BEAM does not have, by the atoms that stand for them (Nx's words).
NOT_FINITE = {"nan": float("nan"), "infinity": float("inf"), "neg_infinity": float("-inf")}

# Weak, so that a peer that invents names cannot fill the memory; the codecs keep frequent ones.
_atoms: dict[str, _NamedRef] = {}


class _NamedRef(_Ref):
    __slots__ = ("name",)
    name: str


def _forget(gone: _NamedRef) -> None:
    # Another thread may have made the atom anew in the meantime: that one is put back.
    entry = _atoms.pop(gone.name, None)
    if entry is not None and entry is not gone:
        _atoms.setdefault(gone.name, entry)


class Atom(str):
    """An atom: a str of a type of its own. `Atom("a") == "a"`, and `Atom("a") is Atom("a")`.

    Raises:
        ValueError: the name is longer than 255 characters, which no BEAM accepts.
    """

    __slots__ = ("__weakref__",)

    def __new__(cls, name: str) -> Self:
        known = _atoms.get(name)
        atom = known() if known is not None else None
        if atom is not None and type(atom) is cls:
            return atom
        if len(name) > MAX_ATOM_CHARACTERS:
            raise ValueError(f"an atom has at most 255 characters, this one has {len(name)}")
        atom = super().__new__(cls, name)
        plain = str(atom)  # first, because no step between the next two lines may fail
        entry = _NamedRef(atom, _forget)
        entry.name = plain
        _atoms[plain] = entry
        return atom

    def __repr__(self) -> str:
        return f"Atom({str(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (Atom, (str(self),))


def _atom_text(data: bytes, at: int) -> tuple[str, int]:
    tag = data[at]
    if tag in (115, 119):
        begin, size = at + 2, data[at + 1]
    else:
        begin, size = at + 3, int.from_bytes(data[at + 1 : at + 3], "big")
    text = data[begin : begin + size]
    return text.decode("utf-8" if tag in (118, 119) else "latin-1"), begin + size


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4)]


class Opaque:
    """A term that only the BEAM can make: it is carried, compared, hashed and sent back.

    Two are equal if they mean the same term, whichever of the format's encodings they came in.
    """

    __slots__ = ("_same", "wire")
    wire: bytes
    _same: object

    def __init__(self) -> None:
        raise TypeError(f"a {type(self).__name__} comes from the BEAM; it cannot be made here")

    @classmethod
    def from_wire(cls, data: bytes) -> Self:
        term = cls.__new__(cls)
        term.wire = data
        return term

    def _key(self) -> object:
        try:
            return self._same
        except AttributeError:
            self._same = self._parse()
            return self._same

    def _parse(self) -> Any:
        return self.wire

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.wire == other.wire or self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        try:
            return self._text()
        except Exception:  # a repr is used to look at failures, so it must not fail itself
            return f"#{type(self).__name__}<{self.wire.hex()}>"

    def _text(self) -> str:
        return f"#{type(self).__name__}<{self.wire.hex()}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return (self.from_wire, (self.wire,))


class Pid(Opaque):
    """A process identifier."""

    __slots__ = ()

    def _parse(self) -> tuple[str, int, int, int]:
        node, at = _atom_text(self.wire, 1)
        number, serial = _words(self.wire[at : at + 8])
        return (node, number, serial, int.from_bytes(self.wire[at + 8 :], "big"))

    @property
    def node(self) -> str:
        """The name of the node the process lives on."""
        return self._parse()[0]

    def _text(self) -> str:
        _, number, serial, _ = self._parse()
        return f"#PID<0.{number}.{serial}>"


class Port(Opaque):
    """A port identifier."""

    __slots__ = ()

    def _parse(self) -> tuple[str, int, int]:
        node, at = _atom_text(self.wire, 1)
        wide = at + (8 if self.wire[0] == 120 else 4)
        number = int.from_bytes(self.wire[at:wide], "big")
        return (node, number, int.from_bytes(self.wire[wide:], "big"))

    @property
    def node(self) -> str:
        """The name of the node the port lives on."""
        return self._parse()[0]

    def _text(self) -> str:
        return f"#Port<0.{self._parse()[1]}>"


class Reference(Opaque):
    """A reference, as `make_ref/0` and monitors make them."""

    __slots__ = ()

    def _parse(self) -> tuple[str, int, tuple[int, ...]]:
        tag = self.wire[0]
        node, at = _atom_text(self.wire, 1 if tag == 101 else 3)
        if tag == 101:
            return (node, self.wire[at + 4], tuple(_words(self.wire[at : at + 4])))
        wide = at + (4 if tag == 90 else 1)
        creation = int.from_bytes(self.wire[at:wide], "big")
        return (node, creation, tuple(_words(self.wire[wide:])))

    @property
    def node(self) -> str:
        """The name of the node that made the reference."""
        return self._parse()[0]

    def _text(self) -> str:
        words = self._parse()[2]
        return f"#Reference<0.{'.'.join(str(word) for word in reversed(words))}>"


class Fun(Opaque):
    """A function of the BEAM's: a closure, or an external one such as `&Enum.map/2`."""

    __slots__ = ()

    def _parse(self) -> object:
        if self.wire[0] == 113:
            module, at = _atom_text(self.wire, 1)
            function, at = _atom_text(self.wire, at)
            return (module, function, self.wire[at + 1])
        return self.wire

    @property
    def arity(self) -> int:
        """How many arguments the function takes."""
        return self.wire[-1] if self.wire[0] == 113 else self.wire[5]

    def __call__(self, *_arguments: object, **_keywords: object) -> NoReturn:
        raise TypeError(
            f"{self!r} came in a key of a map or in a set and cannot be called here, only sent "
            f"back: functions are callable everywhere else in globals, arguments and results"
        )

    def _text(self) -> str:
        if self.wire[0] == 113:
            module, at = _atom_text(self.wire, 1)
            function, at = _atom_text(self.wire, at)
            return f"&{_module_text(module)}.{function}/{self.wire[at + 1]}"
        index = int.from_bytes(self.wire[22:26], "big")
        module, at = _atom_text(self.wire, 30)
        at += 2 if self.wire[at] == 97 else 5
        wide = 1 if self.wire[at] == 97 else 4
        unique = int.from_bytes(self.wire[at + 1 : at + 1 + wide], "big")
        return f"#Function<{index}.{unique}/{self.arity} in {_module_text(module)}>"


class LocalTerm(Opaque):
    """A term of `term_to_binary(term, [:local])`: only the node that wrote it can read it."""

    __slots__ = ()


def _module_text(module: str) -> str:
    return module.removeprefix("Elixir.") if module.startswith("Elixir.") else f":{module}"


class BitString:
    """A bitstring whose length is no multiple of 8.

    Args:
        data: the bytes, the last one used in part.
        bits: how many of the last byte's bits are used, from the highest: 1 to 7.
    """

    __slots__ = ("bits", "data")
    data: bytes
    bits: int

    def __init__(self, data: bytes, bits: int) -> None:
        if not data or not 1 <= bits <= 7:
            raise ValueError("a BitString has at least one byte and 1 to 7 bits in its last one")
        unused = data[-1] & ((1 << (8 - bits)) - 1)
        # The BEAM does not look at the unused bits; clearing them makes equal ones equal here.
        self.data = bytes(data[:-1]) + bytes((data[-1] - unused,)) if unused else bytes(data)
        self.bits = bits

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitString):
            return NotImplemented
        return self.bits == other.bits and self.data == other.data

    def __hash__(self) -> int:
        return hash((BitString, self.data, self.bits))

    def __len__(self) -> int:
        """Count the bits, not the bytes."""
        return len(self.data) * 8 - 8 + self.bits

    def __repr__(self) -> str:
        return f"BitString({self.data!r}, {self.bits})"


class ImproperList:
    """A list that ends in something else than the empty list: `[1, 2 | tail]`."""

    __slots__ = ("items", "tail")
    items: Any
    tail: Any

    def __init__(self, items: Iterable[Any], tail: Any) -> None:
        # Inside a key the codec passes a FrozenList, which must stay hashable.
        self.items = items if isinstance(items, (list, FrozenList)) else list(items)
        self.tail = tail
        if not self.items:
            raise ValueError("an ImproperList has at least one item before its tail")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImproperList):
            return NotImplemented
        return list(self.items) == list(other.items) and bool(self.tail == other.tail)

    def __hash__(self) -> int:
        return hash((ImproperList, tuple(self.items), self.tail))

    def __repr__(self) -> str:
        return f"ImproperList({list(self.items)!r}, {self.tail!r})"


class FrozenList(_Tuple):
    """A list where Python needs a hashable one: in a map's key, in a set. Goes back as a list."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"FrozenList({list(self)!r})"


class FrozenMap(_Dict):
    """A map where Python needs a hashable one: in a map's key, in a set. Goes back as a map."""

    __slots__ = ("_hash",)
    _hash: int

    def _refuse(self, *_args: object, **_options: object) -> NoReturn:
        """Raise TypeError: it cannot be changed."""
        raise TypeError("a FrozenMap stands in a key and cannot be changed; copy it with dict()")

    __setitem__ = __delitem__ = update = setdefault = pop = popitem = clear = _refuse
    __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        # Kept: keys inside keys would be hashed again at every level, and recurse.
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(frozenset(self.items()))
            return self._hash

    def __repr__(self) -> str:
        return f"FrozenMap({dict(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (FrozenMap, (dict(self),))


class Struct(_Dict):
    """A struct of Elixir's that no registered type stands for: its fields, and its module.

    `user["name"]` and `user.name` are the same; a field named like a method of dict, or `module`,
    is only reached the first way. Goes back to Elixir as the same struct.
    """

    __slots__ = ("module",)
    module: Atom

    def __init__(self, module: str, fields: Mapping[Any, Any] | None = None) -> None:
        dict.__init__(self, fields if fields is not None else {})
        object.__setattr__(self, "module", module if type(module) is Atom else Atom(module))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{self.module} has no field {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module":
            object.__setattr__(self, "module", Atom(value))
        else:
            self[Atom(name)] = value

    def __eq__(self, other: object) -> bool:
        # A dict of the same fields is another term; left to dict, it would be equal.
        return (
            isinstance(other, Struct)
            and self.module == other.module
            and dict.__eq__(self, other) is True
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        # A struct may be a key or a member of a set. It must not be changed then, like any object.
        return hash((self.module, frozenset(self.items())))

    def __repr__(self) -> str:
        fields = ", ".join(f"{key!s}: {value!r}" for key, value in self.items())
        return f"%{self.module.removeprefix('Elixir.')}{{{fields}}}"

    def copy(self) -> Struct:
        """Copy the fields, not the values."""
        return Struct(self.module, self)

    def __reduce__(self) -> tuple[object, ...]:
        return (Struct, (self.module, dict(self)))
