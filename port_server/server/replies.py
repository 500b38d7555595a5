"""The replies: a value or a failure, as the frame that answers a request.

May run user code: encoding asks values, and describing a failure asks exceptions.
"""

from __future__ import annotations

import os

from port_server.etf import DecodeError, EncodeError, encode_parts
from port_server.protocol import messages
from port_server.protocol.framing import HEADER_BYTES
from port_server.protocol.messages import OK_HEAD, ProtocolError
from port_server.protocol.requests import ExpiredError
from port_server.runtime import failure
from port_server.runtime.api import Cancelled, Ended
from port_server.runtime.namespace import NamespaceError, SessionError
from port_server.runtime.targets import TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from port_server.etf import EtfError
    from port_server.protocol.requests import Request
    from port_server.runtime.objects import Exports
    from port_server.settings import Settings

    from .memory import Memory
    from .port import Part, Port

    # A whole frame with its header, or the parts of a message.
    Reply = bytes | list[Part]

# Remedies for text that is no Unicode and no value; the codec has the remedies for values.
_REMEDIES: Final = {
    "code": "Python source is UTF-8 text; pass bytes as a global",
    "target": "Names of functions and attributes are UTF-8 text",
}


class NotStreamedError(Exception):
    """A top-level `yield` in a request that is no stream."""


class Replies:
    def __init__(self, port: Port, memory: Memory, settings: Settings) -> None:
        self._memory = memory
        self._port = port
        self._settings = settings

    def value(
        self, request: Request, value: Any, exports: Exports, head: bytes = OK_HEAD
    ) -> list[Part]:
        """Write the reply that carries `value`.

        Raises:
            EncodeError: it cannot be written.
        """
        options = request.options
        if options.arrays is None and options.tables is None:
            return self._value(request, value, exports, head)
        before = exports.use(options.arrays, options.tables)
        try:
            return self._value(request, value, exports, head)
        finally:
            exports.use(*before)

    def _value(self, request: Request, value: Any, exports: Exports, head: bytes) -> list[Part]:
        returns = request.options.returns
        bindings: dict[str, Any] | None = None
        if returns == "object":
            value = exports.handle(value)
        elif returns == "globals" and request.snippet is not None:
            assert request.namespace is not None
            bindings = _bindings(request.namespace, request.snippet.names)
            value = (value, bindings)
        head += request.id_term
        try:
            parts = self.encode(value, exports, head)
        except EncodeError:
            if bindings is None:
                raise
            exports.undo()
            parts = self.encode((value[0], self._writable(bindings, exports)), exports, head)
        return self.with_objects(parts, exports)

    def encode(self, value: Any, exports: Exports, head: bytes = b"") -> list[Part]:
        """Write a message that begins with `head`, then `value`.

        Raises:
            EncodeError: it cannot be written.
        """
        settings = self._settings
        parts: list[Part] = encode_parts(
            value,
            head=head,
            default=exports.export,
            max_bytes=settings.max_frame_bytes,
            max_depth=settings.max_depth,
        )
        return parts

    def with_objects(self, reply: Reply, exports: Exports) -> list[Part]:
        """Add the ids of the objects in a reply to it, and the data that stands behind its term.

        Raises:
            EncodeError: it is too large with the data.
        """
        parts = self.parts(reply)
        if exports.ids:
            limit = self._settings.max_frame_bytes
            if sum(map(len, parts)) + exports.data_bytes > limit:
                raise EncodeError(f"the term and its data are larger than {limit} bytes")
            ids, data = exports.take()
            if ids:
                parts = messages.with_objects(parts, ids)
            parts = [*parts, *data]
        return parts

    @staticmethod
    def parts(reply: Reply) -> list[Part]:
        """Give a reply as the parts of its message."""
        return [reply[HEADER_BYTES:]] if type(reply) is bytes else reply  # type: ignore[return-value]

    def leave_if_forked(self) -> None:
        """End a forked child here: its code has ended, and the main loop belongs to its parent."""
        if self._port.forked:
            leave_child(None)

    def _writable(self, bindings: dict[str, Any], exports: Exports) -> dict[str, Any]:
        """Give the bindings, with an object for each value that cannot be written.

        The caller has asked for none of them by name, so none is a reason to fail.
        """
        kept = {}
        for name, value in bindings.items():
            try:
                self.encode((None, {name: value}), exports)
            except EncodeError:
                kept[name] = value
            exports.undo()
        return {**bindings, **{name: exports.handle(value) for name, value in kept.items()}}

    def failed(self, error: BaseException, request: Request, exports: Exports) -> list[Part]:
        if self._port.forked:
            leave_child(error)
        if exports.ids:
            exports.undo()
        try:
            if isinstance(error, MemoryError):
                return self._memory.lend(self._failure, error, request)
            return self._failure(error, request, exports)
        except Cancelled:
            raise  # it becomes the answer: see `Evaluator.interrupted`
        except BaseException:  # e.g. a `__class__` that raises: every failure has a reply
            return [messages.error(request.id_term, failure.describe_unseen(error))]

    def never_begun(self, request: Request) -> list[Part]:
        """Write the reply for a request that is ended before it has begun."""
        kind = "exited" if request.why_ended else "cancelled"
        message = request.why_ended or "cancelled before it began"
        return [messages.error(request.id_term, failure.describe(kind, "", message, begun=False))]

    def _failure(
        self, error: BaseException, request: Request, exports: Exports | None = None
    ) -> list[Part]:
        description = self._description(error, request)
        if exports is None:
            return [messages.error(request.id_term, description)]
        if request.options.error_value and description["kind"] == "python":
            try:
                description["value"] = exports.handle(error)
            except EncodeError as full:  # too many objects
                description["message"] += f" (no error.value: {full})"
        return self.with_objects([messages.error(request.id_term, description)], exports)

    def _description(self, error: BaseException, request: Request) -> dict[str, Any]:
        step = request.step
        if isinstance(error, ProtocolError):
            return failure.describe_value_error("protocol", error)
        if isinstance(error, ExpiredError):
            return failure.describe("timeout", "", str(error), begun=False)
        if isinstance(error, NotStreamedError):
            return failure.describe("protocol", "", str(error))
        told_to_end = "exited" if request.why_ended else "cancelled"
        if isinstance(error, Cancelled):
            if not error.args:  # raised in a thread, which takes a class only
                error.args = (request.why_ended or "cancelled",)
            kind = "exited" if isinstance(error, Ended) else told_to_end
            return failure.describe_cancelled(error, self._settings, kind)
        if isinstance(error, DecodeError) and step not in {"run", "result"}:
            # An object as target is an ordinary value.
            kind = "protocol" if step == "code" else "decode"
            if "UTF-8" in error.reason and step in _REMEDIES:
                kind, error.remedy = "protocol", _REMEDIES[step]
            return failure.describe_value_error(kind, error.at(step))
        if isinstance(error, TargetError):
            return failure.describe_value_error("protocol", error)
        if isinstance(error, SessionError):
            return failure.describe("unavailable", "", str(error), begun=False)
        if isinstance(error, NamespaceError):
            return failure.describe_value_error("decode", error)
        if request.cancelled:  # code, or a library that encodes, may have raised another exception
            return failure.describe_cancelled(error, self._settings, told_to_end)
        if isinstance(error, EncodeError) and step == "result":
            return failure.describe_value_error("encode", self._about_size(error))
        return failure.describe_exception(error, self._settings)

    def _about_size(self, error: EncodeError) -> EtfError:
        if str(self._settings.max_frame_bytes) in error.reason:
            error.remedy = "Return less at once, or start the server with a larger max_frame_bytes"
        return error.at("result")


def _bindings(namespace: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: namespace[name] for name in sorted(names) if name in namespace}


def leave_child(error: BaseException | None) -> NoReturn:
    """End a forked child whose code has come to its end, as Python ends a script."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
        try:
            failure.print_to_stderr(error)
        except BaseException:
            os._exit(status)
    os._exit(status & 0xFF)
