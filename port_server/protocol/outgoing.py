"""Messages that the server sends without being asked: calls, messages to processes, heartbeats."""

from __future__ import annotations

from port_server.etf import encode

from .messages import atom_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

# The ids of calls have eight bytes.
_ID_HEAD: Final = b"m\0\0\0\x08"


def invoke_head(id_term: bytes, call_id: bytes, function: Any) -> bytes:
    """Write `{invoke, Id, CallId, Function, ` of an invoke; the arguments, a list, follow."""
    head = b"\x83h\x05w\x06invoke" + id_term + _ID_HEAD + call_id
    if type(function) is int and 0 <= function < 256:
        return head + bytes((97, function))
    return encode(function, head=head)


def send_head(to: Any) -> bytes:
    """Write the begin of `{send, To, Term}`; `to` is a pid, a name or (name, node)."""
    return encode(to, head=b"\x83h\x03w\x04send")


def progress(id_term: bytes, fields: dict[Any, Any]) -> bytes:
    """Write `{progress, Id, Map}`."""
    return encode(fields, head=b"\x83h\x03w\x08progress" + id_term)


def running(id_term: bytes) -> bytes:
    """Write `{running, Id}`."""
    return b"\x83h\x02w\x07running" + id_term


def heartbeat(status: Mapping[str, Any]) -> bytes:
    """Write `{heartbeat, Map}`."""
    return encode(atom_keys(status), head=b"\x83h\x02w\x09heartbeat")
