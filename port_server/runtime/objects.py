"""The table behind object handles: values with no Elixir counterpart stay here, handles travel.

This module reads and writes the fields of a handle, not frames. The other side of the port decides
which process owns an object, and when it is released.
"""

from __future__ import annotations

from itertools import count, islice

from port_server.etf import Atom, DecodeError, EncodeError, Struct, register

from . import failure
from .api import Callback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Final

    from port_server.settings import Settings

    Aside = tuple[list[int | memoryview], tuple[str, str]]

MODULE: Final = Atom("Elixir.PyPort.Object")
LONGEST_REPR: Final = 200  # characters; a handle is looked at in a shell and in a log line
LONGEST_TYPE: Final = 200  # characters, too

# As the codec's: a smaller binary is copied by the BEAM in less time than its place takes.
_BEHIND_FROM_BYTES: Final = 65_536
LOADED: Final = 0  # in the place of an id, see Exports

_MANY: Final = 10  # objects: with fewer, heartbeats name no type
_SAMPLE: Final = 64  # looked at to tell the type of most; each heartbeat does

_SERVER, _TOKEN, _ID = Atom("server"), Atom("token"), Atom("id")
_TYPE, _REPR, _REF = Atom("type"), Atom("repr"), Atom("ref")

# The length and time of a container's repr grow with the container: these are walked here.
_BRACKETS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_DEEPEST: Final = 4  # containers inside each other: the work multiplies with each
# About LONGEST_REPR digits; above 4,300 Python refuses to write them.
_LONGEST_INT_BITS: Final = 640


_Module: Final = type(failure)
# Types whose repr is written in C, takes no time, and asks nothing of other values.
_QUICK: Final = frozenset(
    (
        int,
        float,
        complex,
        bool,
        type(None),
        type(...),
        type(lambda: None),
        type(len),
        type(_ for _ in ()),
    )
)


class Objects:
    """The objects that the other side holds, by id.

    An id is used once: an object that is sent twice has two, so that each can be released alone.

    Attributes:
        dropped: objects that were released and wait for `drop`.
        limit: the highest number of objects.
    """

    __slots__ = ("_ids", "_server", "_table", "_token", "_tokens", "dropped", "limit")

    def __init__(self, settings: Settings, server: Any, token: str | bytes) -> None:
        """Begin; the owner's pid and its token mark this server's handles."""
        self.limit = settings.max_objects
        self._table: dict[int, Any] = {}
        self.dropped: list[Any] = []
        self._ids = count(1)
        self._server = server
        self._token = token
        # A request may ask for its binaries as bytes.
        as_text = token if isinstance(token, str) else token.decode("latin-1")
        self._tokens = (token, as_text, as_text.encode())

    def install(self) -> None:
        """Register the decoding of handles into the objects themselves."""
        register(MODULE, self.find)

    def __len__(self) -> int:
        """Count the objects that are held."""
        return len(self._table)

    def add(self, value: Any) -> tuple[int, Struct]:
        """Keep `value`; give its id and its handle.

        Raises:
            EncodeError: there are `limit` of them already.
        """
        type_name, text = describe(value)
        if len(self._table) >= self.limit:
            raise EncodeError(
                f"this {type_name} would be object {self.limit + 1} of the server, which holds at "
                f"most {self.limit} (max_objects)",
                "Release objects that are no longer used, return plain values, or start the server "
                "with a larger max_objects",
            )
        number = next(self._ids)
        self._table[number] = value
        fields = {
            _SERVER: self._server,
            _TOKEN: self._token,
            _ID: number,
            _TYPE: type_name,
            _REPR: text,
            _REF: None,  # the client puts something there, or nothing
        }
        return number, Struct(MODULE, fields)

    def common_type(self) -> str | None:
        """Name the type of most of the latest objects; None if they are few. For any thread."""
        if len(self._table) < _MANY:
            return None
        try:
            kinds = list(map(type, islice(reversed(self._table.values()), _SAMPLE)))
        except RuntimeError:  # main has added others meanwhile
            return None
        ids = [id(kind) for kind in kinds]  # comparing types may run their code
        return failure.class_name(kinds[ids.index(max(ids, key=ids.count))])

    def find(self, fields: dict[Any, Any]) -> Any:
        """Give the object that a handle with these fields stands for.

        Raises:
            DecodeError: there is none; the handle is another server's, an old or an invented one.
        """
        number = fields.get("id")
        if type(number) is not int or fields.get("token") not in self._tokens:
            raise DecodeError(
                f"{_named(fields)} belongs to another server, or to an earlier start of this one",
                "An object can only be used where it lives",
            )
        try:
            return self._table[number]
        except KeyError:
            raise DecodeError(
                f"{_named(fields)} was released",
                "An object lives as long as its owner, or until it is released",
            ) from None

    def release(self, ids: Iterable[int]) -> None:
        """Release objects. Unknown ids are ignored: an object may be released and its owner end.

        No code of the objects runs in here; `drop` runs it, where user code may run.
        """
        for number in ids:
            if number in self._table:
                self.dropped.append(self._table.pop(number, None))

    def drop(self) -> None:
        """Drop the released objects; their `__del__` runs now, unless other code holds them."""
        self.dropped.clear()


class Exports:
    """The objects that leave in one reply: the codec's `default` hook, and its results.

    One for each thread that encodes. A request may wait while its reply is encoded; the executor
    then keeps its objects apart from those of the requests that run on top of it.

    Attributes:
        ids: the objects of the reply that is being encoded, -1 - number of the functions of Elixir
            in it, LOADED for tables in it that the client is to load, and large data that stands
            behind its term.
        export: gives the struct or the handle for a value. The codec calls it for a value that has
            no term.
        forms: what arrays and tables are sent as, by the options `arrays` and `tables`.
    """

    __slots__ = ("_defaults", "_objects", "export", "forms", "ids")

    def __init__(self, objects: Objects, forms: tuple[str, str]) -> None:
        self._objects = objects
        self.ids: list[int | memoryview] = []
        self.export: Callable[[Any], Struct] = self._export  # bound once, not once a request
        self.forms = self._defaults = forms

    def _export(self, value: Any) -> Struct:
        if type(value) is Callback:
            self.ids.append(-1 - value.index)
            return value.fields
        arrays, tables = self.forms
        if tables != "object" or type(value).__name__ == "ArrowStream":
            from port_server.etf import tables as of_tables  # noqa: PLC0415  no start needs it

            struct = of_tables.struct_of(value, self._place)
            if struct is not None:
                if tables == "explorer":
                    self.ids.append(LOADED)
                return struct
        if arrays != "object":
            from port_server.etf import arrays as of_arrays  # noqa: PLC0415

            struct = of_arrays.struct_of(value, arrays, self._place)
            if struct is not None:
                return struct
        return self.handle(value)

    def _place(self, data: memoryview) -> Any:
        """Put large data behind the term, where the BEAM has no need to copy it; give its place."""
        if len(data) < _BEHIND_FROM_BYTES:
            return data
        place = (self.data_bytes, len(data))
        self.ids.append(data)
        return Struct("Elixir.PyPort.Bytes", {"data": place})

    @property
    def data_bytes(self) -> int:
        """How many bytes are to stand behind the term."""
        return sum(len(data) for data in self.ids if type(data) is memoryview)

    def use(self, arrays: str | None, tables: str | None) -> tuple[str, str]:
        """Send arrays and tables in these forms from here on; give the forms before."""
        before = self.forms
        self.forms = (arrays or before[0], tables or before[1])
        return before

    def handle(self, value: Any) -> Struct:
        """Keep any value, and give its handle.

        Raises:
            EncodeError: there are too many objects.
        """
        number, handle = self._objects.add(value)
        self.ids.append(number)
        return handle

    def put_aside(self) -> Aside:
        """Begin anew, for requests on top; give what `put_back` needs."""
        aside = self.ids, self.forms
        self.ids, self.forms = [], self._defaults
        return aside

    def put_back(self, aside: Aside) -> None:
        """Go on with the reply that was put aside."""
        self.ids, self.forms = aside

    def take(self) -> tuple[list[int], list[memoryview]]:
        """Give the ids and the data, and begin a new list: the reply is complete."""
        taken, self.ids = self.ids, []
        data = [one for one in taken if type(one) is memoryview]
        return [one for one in taken if type(one) is int], data

    def undo(self) -> None:
        """Forget the objects of a reply that is not going to be sent."""
        self._objects.release(self.take()[0])
        self._objects.drop()


def describe(value: Any) -> tuple[str, str]:
    """Give the name of the type and a short text that shows `value`, both bounded.

    Runs no user code, because a `__repr__` may take any time, and the caller has not asked for it.
    A type with its own `__repr__` gets the text of an object without one.
    """
    try:
        text = _show(value, 0, _quick_repr)
    except Exception:  # another thread changes a container meanwhile
        text = object.__repr__(value)
    return _type_name(value), _cut(text, LONGEST_REPR)


def shown(value: Any) -> str:
    """Give the repr of `value`, bounded, whatever its `__repr__` does.

    Only KeyboardInterrupt passes, because it stops a running request.
    """
    try:
        return _cut(_show(value, 0, repr), LONGEST_REPR)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return _cut(
            f"<{_type_name(value)} whose repr fails: {failure.type_name(error)}>", LONGEST_REPR
        )


def _type_name(value: Any) -> str:
    return _cut(failure.class_name(type(value)), LONGEST_TYPE)


def _quick_repr(value: Any) -> str:
    kind = type(value)
    if kind in _QUICK:
        return repr(value)
    if kind is _Module:  # its repr asks the loader for its own
        return f"<module {_show(value.__dict__.get('__name__'), 1, _quick_repr)}>"
    return type.__repr__(value) if issubclass(kind, type) else object.__repr__(value)


def _show(value: Any, depth: int, repr: Callable[[Any], str]) -> str:
    kind = type(value)
    if kind is str or kind is bytes or kind is bytearray:
        return f"{value[: LONGEST_REPR + 1]!r}"
    if kind is int and value.bit_length() > _LONGEST_INT_BITS:
        return f"<int of {value.bit_length()} bits>"
    brackets = _BRACKETS.get(kind)
    if brackets is None:
        return repr(value)
    if not value:
        return f"{value!r}"
    opening, closing = brackets
    if depth == _DEEPEST:
        return f"{opening}…{closing}"
    room = LONGEST_REPR
    items = []
    for item in value.items() if kind is dict else value:
        if room <= 0:
            items.append("…")
            break
        # Not looked up by the key, whose `__eq__` is user code as well.
        parts = item if kind is dict else (item,)
        text = ": ".join([_cut(_show(part, depth + 1, repr), LONGEST_REPR) for part in parts])
        items.append(text)
        room -= len(text) + 2
    comma = "," if kind is tuple and len(items) == 1 else ""
    return f"{opening}{', '.join(items)}{comma}{closing}"


def _cut(text: str, limit: int) -> str:
    """Cut to `limit` characters of valid Unicode, of exactly the type str."""
    more = str.__len__(text) > limit
    text = str.__getitem__(text, slice(0, limit - 1 if more else limit))
    text = str.__str__(text).encode("utf-8", "backslashreplace").decode()
    if more or len(text) > limit:
        return text[: limit - 1] + "…"
    return text


def _named(fields: dict[Any, Any]) -> str:
    """Name a handle whose fields may be wrong."""
    kind, number = fields.get("type"), fields.get("id")
    if isinstance(kind, bytes):
        kind = kind.decode("utf-8", "replace")
    known = f" ({_cut(kind, 60)})" if isinstance(kind, str) and kind else ""
    return f"the object {number}{known}" if type(number) is int else "a malformed handle"
