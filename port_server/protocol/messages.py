"""Messages <-> terms. No I/O, and runs no code; `server` acts on the messages.

A frame is read in two steps. Its envelope has the kind and the id: of eval and call it begins with
thirteen fixed bytes, which the dispatcher compares; `parse` reads all others. The body is read when
the request runs, because the options say how, and because a request that is cancelled in the queue
needs no reading.
"""

from __future__ import annotations

from port_server.etf import Atom, DecodeError, decode, encode, read_term

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, TypeAlias

    from .framing import Frame

    Part: TypeAlias = "bytes | memoryview"

PROTOCOL_VERSION: Final = 1
LONGEST_ID: Final = 255

# Version, tuple of 5 or 6, SMALL_ATOM_UTF8_EXT, BINARY_EXT and the three zeros that every id of at
# most 255 bytes has in its length. The byte after is the length, the id follows.
EVAL_PREFIX: Final = b"\x83h\x05w\x04evalm\0\0\0"
CALL_PREFIX: Final = b"\x83h\x06w\x04callm\0\0\0"
ID_LENGTH_AT: Final = 13  # len of both
ID_TERM_AT: Final = 9  # the tag of the BINARY_EXT

OK_HEAD: Final = b"\x83h\x03w\x02ok"
YIELD_HEAD: Final = b"\x83h\x03w\x05yield"
ERROR_HEAD: Final = b"\x83h\x03w\x05error"

_REQUESTS: Final = {"eval": 5, "call": 6}
# Words whose second element is no id of a request.
_WITHOUT_ID: Final = {"init", "shutdown", "close_session", "release", "answer", "segment"}


class ProtocolError(ValueError):
    """A frame that is no message. `id_term` is its id as the bytes of its term, if it has one."""

    def __init__(self, reason: str, id_term: bytes | None = None) -> None:
        super().__init__(reason)
        self.id_term = id_term


class Message:
    """One message that is not on the hot path: equal by value, printable, otherwise inert.

    A subclass names its fields in `__slots__`, in the order in which they are given.
    """

    __slots__: tuple[str, ...] = ()

    def __init__(self, *fields: Any) -> None:
        for name, field in zip(self.__slots__, fields, strict=True):
            setattr(self, name, field)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._fields()!r}"

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


class Init(Message):
    """The owner's first frame: the version it speaks, and its options."""

    __slots__ = ("version", "options")
    version: int
    options: dict[str, Any]


class Cancel(Message):
    """Stop, or never begin, the request of that id."""

    __slots__ = ("id_term",)
    id_term: bytes


class Recall(Message):
    """Give back the request of that id if it has not begun."""

    __slots__ = ("id_term",)
    id_term: bytes


class Ping(Message):
    """Answer with pong."""

    __slots__ = ("id_term",)
    id_term: bytes


class Stacks(Message):
    """Answer with the stacks of all threads."""

    __slots__ = ("id_term",)
    id_term: bytes


class Shutdown(Message):
    """Finish what was read, then leave; `grace_ms` is how long the owner is going to wait."""

    __slots__ = ("grace_ms",)
    grace_ms: int


class Request(Message):
    """An eval or a call that is not written with the fixed prefix: legal, and off the hot path."""

    __slots__ = ("kind", "id_term", "body_at")
    kind: str
    id_term: bytes
    body_at: int


class OpenSession(Message):
    """Make a session: a namespace that lasts, under a name of the client's choosing."""

    __slots__ = ("id_term", "name")
    id_term: bytes
    name: bytes


class CloseSession(Message):
    """Drop a session, after a request of it that is running."""

    __slots__ = ("name",)
    name: bytes


class Release(Message):
    """Release objects whose handles have no owner any more."""

    __slots__ = ("ids",)
    ids: list[int]


class Ack(Message):
    """So many bytes of a request's output were consumed."""

    __slots__ = ("id_term", "count")
    id_term: bytes
    count: int


class Answer(Message):
    """The result of a call that Python made; it is read in the thread that waits for it."""

    __slots__ = ("call_id", "body_at")
    call_id: bytes
    body_at: int


class Credit(Message):
    """The consumer of a stream takes so many more items."""

    __slots__ = ("id_term", "count")
    id_term: bytes
    count: int


class Segment(Message):
    """A frame of `size` bytes stands in a slot of the shared memory; with 0 bytes it is free."""

    __slots__ = ("slot", "generation", "offset", "size")
    slot: int
    generation: int
    offset: int
    size: int


def id_term_of(id: bytes) -> bytes:
    """Write an id as the term it is."""
    return b"m" + len(id).to_bytes(4, "big") + id


# --- to Python ------------------------------------------------------------------------------------


def parse(frame: Frame) -> Message:
    """Read any message; of eval and call the envelope only.

    Raises:
        ProtocolError: the frame is no message; with the id where one is readable.
    """
    try:
        arity, at = _tuple_header(frame)
        kind, at = read_term(frame, at)
    except DecodeError as error:
        raise ProtocolError(f"the frame is no message: {error}") from None
    if type(kind) is not Atom:
        raise ProtocolError(
            f"a message starts with an atom that names it, this one with {_shown(kind)}"
        )
    id_term = None
    if kind not in _WITHOUT_ID and arity > 1:
        id_term, at = _id(frame, at, kind)
    wanted = _arity(kind)
    if wanted == 0:
        raise ProtocolError(
            f"the message {kind!s} is not known (protocol {PROTOCOL_VERSION})", id_term
        )
    if arity != wanted:
        raise ProtocolError(
            f"{kind!s} is a tuple of {wanted} elements, this one has {arity}", id_term
        )
    if kind in _REQUESTS:
        assert id_term is not None
        return Request(str(kind), id_term, at)
    try:
        return _control(str(kind), id_term, frame, at)
    except DecodeError as error:
        raise ProtocolError(f"{kind!s} cannot be read: {error}", id_term) from None


def _arity(kind: str) -> int:
    """Give how many elements a message of that kind has; 0 for an unknown kind."""
    if kind in _REQUESTS:
        return _REQUESTS[kind]
    if kind not in _CONTROLS:
        return 0
    # The kind, its class's fields; an answer's result is read later.
    return len(_CONTROLS[kind]) + (kind not in _WITHOUT_ID) + (kind == "answer")


def _control(kind: str, id_term: bytes | None, frame: Frame, at: int) -> Message:
    make, *fields = _CONTROLS[kind]
    values: list[Any] = [] if id_term is None else [id_term]
    # Struct templates stay structs; they are not converted to Python values.
    binary_as = "str" if make is Init else "bytes"
    for fits, complaint in fields:
        value, at = read_term(frame, at, binary_as=binary_as, plain_structs=True)
        if not fits(value):
            raise ProtocolError(complaint.format(_shown(value)), id_term)
        values.append(value)
    if make is Answer:
        return Answer(*values, at)
    if at != len(frame):
        raise ProtocolError(f"{len(frame) - at} bytes stand behind the {kind}", id_term)
    message: Message = make(*values)
    return message


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_binary(value: object) -> bool:
    return type(value) is bytes


def _are_ids(value: object) -> bool:
    return type(value) is list and all(type(number) is int for number in value)


_INIT: Final = "init is {{init, Version, Options}}: an integer and a map"
_SESSION: Final = (_is_binary, "the name of a session is a binary, not {}")
_SEGMENT: Final = (_is_count, "segment takes numbers, not {}")
# By kind: what a message becomes, and how each of its elements behind the id is checked.
_CONTROLS: Final[dict[str, Any]] = {
    "init": (Init, (_is_count, _INIT), (lambda value: isinstance(value, dict), _INIT)),
    "cancel": (Cancel,),
    "recall": (Recall,),
    "ping": (Ping,),
    "stacks": (Stacks,),
    "shutdown": (Shutdown, (_is_count, "shutdown takes its grace in milliseconds, not {}")),
    "open_session": (OpenSession, _SESSION),
    "close_session": (CloseSession, _SESSION),
    "release": (Release, (_are_ids, "release takes a list of integers, not {}")),
    "ack": (Ack, (_is_count, "ack takes a count of bytes, not {}")),
    "answer": (Answer, (_is_binary, "the id of a call is a binary, not {}")),
    "credit": (Credit, (_is_count, "credit is a count of items, not {}")),
    "segment": (Segment, _SEGMENT, _SEGMENT, _SEGMENT, _SEGMENT),
}


def _tuple_header(frame: Frame) -> tuple[int, int]:
    """Check the version byte and the tuple header; give the arity and where the elements begin."""
    if len(frame) < 3:
        raise DecodeError(f"it has {len(frame)} bytes")
    if frame[0] != 131:
        raise DecodeError(f"its first byte is {frame[0]}, not 131 as in the External Term Format")
    if frame[1] == 104 and frame[2]:
        return frame[2], 3
    if frame[1] == 105 and len(frame) >= 6:
        return int.from_bytes(frame[2:6], "big"), 6
    if frame[1] == 80:
        raise DecodeError("it is compressed; send it with term_to_binary/1, without `compressed`")
    # Not a tuple of elements: decode it all, for the message to be about what it is.
    value = decode(frame, binary_as="bytes")
    raise DecodeError(f"it is {_shown(value)}, not a tuple that starts with an atom")


def _id(frame: Frame, at: int, kind: str) -> tuple[bytes, int]:
    try:
        name, at = read_term(frame, at, binary_as="bytes")
    except DecodeError as error:
        raise ProtocolError(f"the id of {kind!s} cannot be read: {error}") from None
    if type(name) is not bytes or len(name) > LONGEST_ID:
        if isinstance(kind, Atom) and _arity(kind) == 0:
            raise ProtocolError(f"the message {kind!s} is not known (protocol {PROTOCOL_VERSION})")
        raise ProtocolError(
            f"the id of {kind!s} is a binary of at most {LONGEST_ID} bytes, not {_shown(name)}"
        )
    return id_term_of(name), at


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


# --- to the BEAM ----------------------------------------------------------------------------------


def ok(id_term: bytes, value: Any) -> bytes:
    """Write `{ok, Id, Value}`; the hot path does the same with `OK_HEAD` in place."""
    return encode(value, head=OK_HEAD + id_term)


def with_objects(parts: list[Part], object_ids: list[int]) -> list[Part]:
    """Add the ids of the objects inside as one more element to a message, given in parts.

    The receiver sees by the arity alone, without decoding, that there are handles inside.
    """
    head = parts[0]
    assert head[1] == 104
    assert head[2] < 255
    longer = b"\x83h" + bytes((head[2] + 1,)) + bytes(head[3:])
    return [longer, *parts[1:], encode(object_ids, head=b"")]


def error(id_term: bytes, description: Mapping[str, Any]) -> bytes:
    """Write `{error, Id, Map}`."""
    return encode(atom_keys(description), head=ERROR_HEAD + id_term)


def hello(info: Mapping[str, Any]) -> bytes:
    """Write `{hello, Version, Info}`."""
    return encode((Atom("hello"), PROTOCOL_VERSION, atom_keys(info)))


def goodbye(reason: str | Mapping[str, Any]) -> bytes:
    """Write `{goodbye, Reason}`: an atom where all is well, an error map where not."""
    return encode((Atom("goodbye"), Atom(reason) if isinstance(reason, str) else atom_keys(reason)))


def pong(id_term: bytes, status: Mapping[str, Any]) -> bytes:
    """Write `{pong, Id, Map}`."""
    return encode(atom_keys(status), head=b"\x83h\x03w\x04pong" + id_term)


def output(id_term: bytes, stream: str, text: bytes) -> bytes:
    """Write `{output, Id, stdout | stderr, Binary}`."""
    return encode(text, head=b"\x83h\x04w\x06output" + id_term + b"w\x06" + stream.encode())


def stderr(id_terms: list[bytes]) -> bytes:
    """Write `{stderr, [Id]}`: the file of fd 2 has grown while these requests were under way."""
    return encode((Atom("stderr"), [id_term[5:] for id_term in id_terms]))


def log(
    level: str,
    message: str,
    known: Mapping[str, Any],
    extra: Mapping[str, Any],
    default: Callable[[Any], Any],
) -> bytes:
    """Write `{log, Level, Message, Metadata}`; what the caller added keeps its keys as binaries."""
    metadata: dict[Any, Any] = {**extra}
    for key, value in known.items():
        metadata.pop(key, None)  # a string and an atom would be two keys there
        metadata[Atom(key)] = value
    return encode((Atom("log"), Atom(level), message, metadata), default=default)


def atom_keys(map: Mapping[str, Any]) -> dict[Any, Any]:
    """Give a description with atoms for keys, as it is on the wire, all the way down."""
    return {Atom(key): _plain(value) for key, value in map.items()}


def _plain(value: Any) -> Any:
    if type(value) is dict:  # a Struct stays one
        return atom_keys(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
