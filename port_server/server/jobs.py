"""A request that is more than its bytes: what its options ask for, and how far it has come."""

from __future__ import annotations

from port_server.etf import read_term
from port_server.protocol.messages import ID_TERM_AT, ProtocolError
from port_server.runtime.failure import cut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any, Final

    from port_server.protocol.framing import Frame

# Of the code of a request, where others are told of it.
_CODE_CHARS: Final = 200
EMPTY_MAP: Final = b"t\0\0\0\0"
# Options that make a request more than plain.
SPECIAL_OPTIONS: Final = ("session", "parent", "return", "stream", "credit")
_RETURNS: Final = frozenset(("value", "object", "globals"))


class ExpiredError(Exception):
    """The deadline of a request passed before it began."""


class Job:
    """One request.

    Attributes:
        frame: the whole message.
        kind: "eval" or "call".
        id_term: the id as the bytes of its term.
        options_at: where its options begin.
        at: where its code or target begins in the frame: right behind the options.
        binary_as: how its binaries are decoded.
        session: the name of its session, or None.
        parent: the id of the call into the BEAM that it was made by, or None.
        returns: "value", "object" or "globals".
        namespace: what its code runs in, and `names` what it binds there; for "globals" only.
        context: the context variables that its code has, once it runs.
        stream: whether its value is sent item by item.
        credit: how many items may be sent to begin with.
        special: whether it asks for anything beyond being evaluated.
        cancelled: whether its cancel has come.
        ended: why it is ended where no cancel has come, or an empty text.
        elsewhere: whether another lane, or a stream, goes on with it.
        deadline_ms: how long it may wait before it begins, None for ever.
        waited_ms: how long it had waited when its options were read.
    """

    __slots__ = (
        "at",
        "binary_as",
        "cancelled",
        "context",
        "credit",
        "deadline_ms",
        "elsewhere",
        "ended",
        "frame",
        "id_term",
        "kind",
        "names",
        "namespace",
        "options_at",
        "parent",
        "returns",
        "session",
        "special",
        "stream",
        "waited_ms",
    )

    def __init__(self, frame: Frame, kind: str, id_term: bytes, at: int) -> None:
        self.frame = frame
        self.kind = kind
        self.id_term = id_term
        self.at = at
        self.binary_as = "str"
        self.session: bytes | None = None
        self.parent: bytes | None = None
        self.returns = "value"
        self.namespace: dict[str, Any] | None = None
        self.names: frozenset[str] = frozenset()
        self.context: Context | None = None
        self.stream = False
        self.credit = 0
        self.special = False
        self.cancelled = False
        self.ended = ""
        self.elsewhere = False
        self.options_at = at
        self.deadline_ms: int | None = None
        self.waited_ms = 0.0

    @property
    def told_to_end(self) -> str | None:
        """Give the kind of its error if it was told to end: "cancelled" or "exited"."""
        if self.ended:
            return "exited"
        return "cancelled" if self.cancelled else None

    def check_deadline(self, waited_ms: float) -> None:
        """Tell whether there is time left for it.

        Raises:
            ExpiredError: there is none.
        """
        if self.deadline_ms is not None and self.deadline_ms <= waited_ms:
            raise ExpiredError(
                f"the deadline passed before the request began: it had {self.deadline_ms} ms left "
                f"and waited {waited_ms:.0f} ms in the queue"
            )


def code_of(job: Job) -> str:
    """Show what a request was asked to run; for any thread, runs no user code."""
    try:
        # Its `at` may have gone on.
        at = read_term(job.frame, ID_TERM_AT + len(job.id_term), plain_structs=True)[1]
        code = read_term(job.frame, at, plain_structs=True)[0]
    except ValueError:
        return ""
    if type(code) is tuple and len(code) == 4 and code[0] == "code":
        _tag, text, file, line = code
        code = f"{file}:{line}: {text}"
    return cut(str(code), _CODE_CHARS)


def open_job(frame: Frame, kind: str, id_term: bytes, at: int, waited_ms: float) -> Job:
    """Read and check the options of a request, which begin at `at`. Runs no user code.

    Raises:
        DecodeError: the options cannot be read.
        ProtocolError: one is of the wrong type. An unknown one is from a later client, and
            ignored.
        ExpiredError: the deadline has passed.
    """
    # Binaries among the options are names, of any bytes: hence read as bytes, words included.
    options, end = read_term(frame, at, binary_as="bytes", plain_structs=True)
    if type(options) is not dict:
        raise ProtocolError(f"options are a map, not {named(options)}")
    job = Job(frame, kind, id_term, end)
    job.options_at = at
    job.waited_ms = waited_ms
    deadline_ms = options.get("deadline_ms")
    if deadline_ms is not None:
        if type(deadline_ms) is not int:
            raise ProtocolError(f"deadline_ms is an integer, not {named(deadline_ms)}")
        job.deadline_ms = deadline_ms
        job.check_deadline(waited_ms)
    binary_as = _word(options.get("binary_as"))
    if binary_as is not None:
        if binary_as not in {"str", "bytes"}:
            raise ProtocolError(f"binary_as is str or bytes, not {named(binary_as)}")
        job.binary_as = str(binary_as)
        # Told for the answers to its calls, which are read the same way.
        job.special = binary_as != "str"
    for name in SPECIAL_OPTIONS:
        if name in options:
            job.special = True
            _heed(job, name, options[name])
    if job.returns == "globals" and (kind != "eval" or job.stream):
        raise ProtocolError("return => globals is for an eval that is no stream")
    return job


def _heed(job: Job, name: str, value: Any) -> None:
    if value is None:
        return
    if name in {"session", "parent"}:
        if type(value) is not bytes:
            raise ProtocolError(f"{name} is the name of one, a binary, not {named(value)}")
        setattr(job, name, value)
    elif name == "return":
        if _word(value) not in _RETURNS:
            raise ProtocolError(f"return is value, object or globals, not {named(value)}")
        job.returns = _word(value)
    elif name == "stream":
        if type(value) is not bool:
            raise ProtocolError(f"stream is true or false, not {named(value)}")
        job.stream = value
    else:
        if type(value) is not int or value < 0:
            raise ProtocolError(f"credit is how many items may be sent, not {named(value)}")
        job.credit = value


def _word(value: Any) -> Any:
    return value.decode("latin-1") if type(value) is bytes else value


def named(value: object) -> str:
    """Show a value that should have been another one."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
