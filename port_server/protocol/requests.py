"""Requests: an eval or a call, its id, and its options. No I/O, no user code.

A client sends the same options again and again, so they are read once and kept by their bytes.
"""

from __future__ import annotations

from port_server.etf import DecodeError, read_term

from .messages import (
    CALL_PREFIX,
    EVAL_PREFIX,
    ID_LENGTH_AT,
    ID_TERM_AT,
    ProtocolError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from .framing import Frame

_BODY_AT: Final = ID_LENGTH_AT + 1
_RETURNS: Final = frozenset(("value", "object", "globals"))
# The forms that arrays and tables are sent in, the default first.
FORMS: Final = {
    "arrays": ("object", "tensor", "nx"),
    "tables": ("object", "arrow", "explorer"),
}
_EMPTY_MAP: Final = b"t\0\0\0\0"
# A host program sends a few hundred different ones at most; the ids of calls in them are not kept.
_MOST_KEPT: Final = 256
# Longest options that are looked up in the cache: a session's name is the longest of them.
_LONGEST_KEPT: Final = 256


# Characters of a request's code in the text for people.
_SOURCE_CHARS: Final = 200


class ExpiredError(Exception):
    """The deadline of a request passed before it began."""


class Options:
    """The options of a request. Read once, shared by requests, never changed.

    Attributes:
        arrays: what arrays are sent as, "object", "tensor" or "nx"; None for the server's default.
        as_bytes: whether its binaries are decoded as bytes, not as str.
        credit: how many items of a stream may be sent to begin with.
        deadline_ms: how long it may wait before it begins, None for ever.
        error_value: whether the error of an exception has a handle of it.
        parent: the id of the call into the BEAM that it was made by, or None.
        returns: "value", "object" or "globals".
        session: the name of its session, or None.
        stream: whether its value is sent item by item.
        tables: what tables are sent as, "object", "arrow" or "explorer"; None as for arrays.
        plain: whether it can run at once where main is free and it is its turn: it belongs to no
            call, and has time left.
        typed: whether the arguments of a call are made by the type hints of its function.
        usual: whether its value is sent as it is, once, and by the server's defaults, and its
            arguments stay what they are.
    """

    __slots__ = (
        "arrays",
        "as_bytes",
        "credit",
        "deadline_ms",
        "error_value",
        "parent",
        "plain",
        "returns",
        "session",
        "stream",
        "tables",
        "typed",
        "usual",
    )

    def __init__(self, *, as_bytes: bool = False) -> None:
        self.as_bytes = as_bytes
        self.credit = 0
        self.deadline_ms: int | None = None
        self.error_value = False
        self.parent: bytes | None = None
        self.plain = True
        self.returns = "value"
        self.session: bytes | None = None
        self.stream = False
        self.arrays: str | None = None
        self.tables: str | None = None
        self.typed = False
        self.usual = True

    @property
    def binary_as(self) -> str:
        """How its binaries are decoded, as the codec has it."""
        return "bytes" if self.as_bytes else "str"


class Request:
    """One request, from its frame to its reply.

    Attributes:
        frame: the whole message.
        is_call: whether it is a call; else it is an eval.
        id_term: its id as the bytes of its term.
        options: its options.
        at: the offset of its code or target in the frame.
        arrived: when its frame was read, monotonic seconds; 0 if it runs at once.
        cancelled: whether its cancel has come.
        context: the context that its code runs in.
        closing: since when the `finally` of a stream runs that has met its cancel by itself.
        ended: whether its last reply is made.
        why_ended: why it is ended where no cancel has come, or an empty text.
        executor: the executor that runs it, once it was begun elsewhere than in main.
        namespace: the namespace of its code, while that runs.
        granted: how many items of a stream may be sent beyond its first credit.
        progressed: when its progress was last sent, monotonic seconds.
        rest: the value that the executor is to await or iterate, or None.
        sent: how many items of a stream were sent.
        session: the state of its session, from its begin to its end; None where that is not open.
        snippet: its code, if that was read in Python.
        step: the current step, for the report of a failure.
        stream: what its executor iterates it with, once that has begun, or None.
        thread: the ident of the thread that runs it, where that is not main; 0 before it begins.
    """

    # Defaults: a plain request sets only five attributes.
    arrived = 0.0
    cancelled = False
    closing = 0.0
    context: Any = None
    ended = False
    why_ended = ""
    executor: Any = None
    namespace: dict[str, Any] | None = None
    # Two counters with one writer each, because `-=` in two threads may lose a change.
    granted = 0
    sent = 0
    progressed = 0.0
    rest: Any = None
    session: Any = None
    snippet: Any = None
    step = "code"
    stream: Any = None
    thread = 0

    def __init__(
        self, frame: Frame, is_call: bool, id_term: bytes, options: Options, at: int
    ) -> None:
        self.frame = frame
        self.is_call = is_call
        self.id_term = id_term
        self.options = options
        self.at = at

    def end(self, why: str) -> None:
        """Note that it is to end because the server leaves."""
        if not self.cancelled:
            self.cancelled = True
            self.why_ended = why

    @property
    def can_go_on(self) -> bool:
        """Whether an item of a stream may be sent, or the stream ends."""
        return self.sent < self.options.credit + self.granted or self.cancelled

    @property
    def awaits(self) -> bool:
        """Whether `rest` is for the event loop; else it is a stream of plain items."""
        kind = type(self.rest)
        return hasattr(kind, "__await__") or hasattr(kind, "__aiter__")

    @property
    def source(self) -> str:
        """Its code or target, for people. For any thread; runs no user code."""
        try:
            code = read_term(self.frame, self.at, plain_structs=True)[0]
        except ValueError:
            return ""
        if type(code) is tuple and len(code) == 4 and code[0] == "code":
            _tag, text, file, line = code
            code = f"{file}:{line}: {text}"
        text = str(code)
        return text if len(text) <= _SOURCE_CHARS else text[: _SOURCE_CHARS - 1] + "…"

    def check_deadline(self, now: float) -> None:
        """Check the time that is left.

        Raises:
            ExpiredError: no time is left.
        """
        deadline_ms = self.options.deadline_ms
        if deadline_ms is not None:
            waited_ms = (now - self.arrived) * 1000 if self.arrived else 0.0
            if waited_ms >= deadline_ms:
                raise ExpiredError(
                    f"the deadline passed before the request began: it had {deadline_ms} ms left "
                    f"and waited {waited_ms:.0f} ms in the queue"
                )


class Requests:
    """Reads requests.

    Attributes:
        kept: options that were read, by the bytes of their term; for C, which looks there first.
    """

    __slots__ = ("_as_bytes", "kept")

    def __init__(self, *, as_bytes: bool = False) -> None:
        """Prepare; `as_bytes` is for requests that do not say what binaries are."""
        self._as_bytes = as_bytes
        self.kept: dict[bytes, Options] = {_EMPTY_MAP: Options(as_bytes=as_bytes)}

    def read(self, frame: Frame) -> Request | None:
        """Read a request with the fixed prefix; None for anything else.

        Raises:
            ProtocolError: its options are wrong; with its id.
        """
        start = frame[:ID_LENGTH_AT]
        is_call = start == CALL_PREFIX
        if not (is_call or start == EVAL_PREFIX) or len(frame) <= ID_LENGTH_AT:
            return None
        at = _BODY_AT + frame[ID_LENGTH_AT]
        if len(frame) <= at:
            return None
        return self.of(frame, is_call, bytes(frame[ID_TERM_AT:at]), at)

    def of(self, frame: Frame, is_call: bool, id_term: bytes, at: int) -> Request:
        """Give the request whose options begin at `at`.

        Raises:
            ProtocolError: they are wrong; with its id.
        """
        try:
            options, end = read_options(frame, at, as_bytes=self._as_bytes)
        except DecodeError as error:
            raise ProtocolError(str(error.at("options")), id_term) from None
        except ProtocolError as error:
            error.id_term = id_term
            raise
        size = end - at
        if options.parent is None and size <= _LONGEST_KEPT:
            if len(self.kept) >= _MOST_KEPT:
                self.kept.clear()
            self.kept[bytes(frame[at:end])] = options
        return Request(frame, is_call, id_term, options, end)


def read_options(frame: Frame, at: int, *, as_bytes: bool = False) -> tuple[Options, int]:
    """Read and check the options that begin at `at`; give them, and where they end.

    `as_bytes` is the default of theirs.

    Raises:
        DecodeError: they cannot be read.
        ProtocolError: one is of the wrong type. An unknown one is from a later client, and
            ignored.
    """
    # Binaries among the options are names, of any bytes: hence read as bytes, words included.
    given, end = read_term(frame, at, binary_as="bytes", plain_structs=True)
    if type(given) is not dict:
        raise ProtocolError(f"options are a map, not {named(given)}")
    options = Options(as_bytes=as_bytes)
    for name, value in given.items():
        if value is not None:
            _heed(options, name, value)
    options.plain = options.parent is None and (
        options.deadline_ms is None or options.deadline_ms > 0
    )
    options.usual = (
        options.returns == "value"
        and not options.stream
        and not options.typed
        and options.arrays is None
        and options.tables is None
    )
    return options, end


def _heed(options: Options, name: str, value: Any) -> None:
    if name in {"session", "parent"}:
        if type(value) is not bytes:
            raise ProtocolError(f"{name} is the name of one, a binary, not {named(value)}")
        setattr(options, name, value)
    elif name == "deadline_ms":
        if type(value) is not int:
            raise ProtocolError(f"deadline_ms is an integer, not {named(value)}")
        options.deadline_ms = value
    elif name == "binary_as":
        if _word(value) not in {"str", "bytes"}:
            raise ProtocolError(f"binary_as is str or bytes, not {named(_word(value))}")
        options.as_bytes = _word(value) == "bytes"
    elif name == "return":
        if _word(value) not in _RETURNS:
            raise ProtocolError(f"return is value, object or globals, not {named(value)}")
        options.returns = str(_word(value))
    elif name in {"stream", "error_value", "typed"}:
        if type(value) is not bool:
            raise ProtocolError(f"{name} is true or false, not {named(value)}")
        setattr(options, name, value)
    elif name in FORMS:
        if _word(value) not in FORMS[name]:
            known = ", ".join(FORMS[name])
            raise ProtocolError(f"{name} is one of {known}, not {named(_word(value))}")
        setattr(options, name, str(_word(value)))
    elif name == "credit":
        if type(value) is not int or value < 0:
            raise ProtocolError(f"credit is how many items may be sent, not {named(value)}")
        options.credit = value


def _word(value: Any) -> Any:
    return value.decode("latin-1") if type(value) is bytes else value


def named(value: object) -> str:
    """Show a value that should have been another one."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
