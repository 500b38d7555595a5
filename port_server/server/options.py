"""The options of one request: what they are, and that they are of the right types."""

from __future__ import annotations

from port_server.protocol.messages import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_WAYS_TO_READ_BINARIES: Final = frozenset(("str", "bytes"))
_WAYS_TO_RETURN: Final = frozenset(("value", "object"))


class ExpiredError(Exception):
    """The deadline of a request passed before it began."""


def checked(options: Any, waited_ms: float) -> tuple[str, bool]:
    """Check options that were read with `binary_as: bytes`, because names among them are any bytes.

    Returns:
        Its `binary_as`, and whether one is among them that is heeded later.

    Raises:
        ProtocolError: one is of the wrong type. An unknown one is from a later client, and ignored.
        ExpiredError: the deadline has passed.
    """
    if type(options) is not dict:
        raise ProtocolError(f"options are a map, not {named(options)}")
    deadline_ms = options.get("deadline_ms")
    if deadline_ms is not None:
        if type(deadline_ms) is not int:
            raise ProtocolError(f"deadline_ms is an integer, not {named(deadline_ms)}")
        if deadline_ms <= waited_ms:
            raise ExpiredError(
                f"the deadline passed before the request began: it had {deadline_ms} ms left "
                f"and waited {waited_ms:.0f} ms in the queue"
            )
    session = options.get("session")
    if session is not None and type(session) is not bytes:
        raise ProtocolError(f"session is the name of one, a binary, not {named(session)}")
    returns = word(options.get("return"))
    if returns is not None and returns not in _WAYS_TO_RETURN:
        raise ProtocolError(f"return is value or object, not {named(returns)}")
    binary_as = word(options.get("binary_as"))
    if binary_as is not None and binary_as not in _WAYS_TO_READ_BINARIES:
        raise ProtocolError(f"binary_as is str or bytes, not {named(binary_as)}")
    return str(binary_as or "str"), session is not None or returns == "object"


def word(value: Any) -> Any:
    """Give an option's value that is a word, sent as an atom or as a binary."""
    return value.decode("latin-1") if type(value) is bytes else value


def named(value: object) -> str:
    """Show a value that should have been another one."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
