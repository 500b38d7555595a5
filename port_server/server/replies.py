"""What a request is answered with: its value or its failure, as the frame of a reply.

May run user code: encoding asks values, and describing a failure asks exceptions.
"""

from __future__ import annotations

import os

from port_server.etf import DecodeError, EncodeError, encode_parts
from port_server.protocol import messages
from port_server.protocol.messages import OK_HEAD, ProtocolError
from port_server.runtime import failure
from port_server.runtime.beam import Cancelled, Ended
from port_server.runtime.namespace import NamespaceError, SessionError
from port_server.runtime.targets import TargetError

from .jobs import ExpiredError
from .memory import Memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from port_server.etf import EtfError
    from port_server.runtime.objects import Exports
    from port_server.settings import Settings

    from .channel import Part
    from .jobs import Job
    from .stdio import Stdio

DEFAULT_MAX_DEPTH: Final = 512  # the codec's
# What to do about text that is none, where it is no value: the codec advises on values.
_REMEDIES: Final = {
    "code": "Python source is UTF-8 text; what is to be bytes is passed as a global",
    "target": "Names of functions and attributes are UTF-8 text",
}


class NotStreamedError(Exception):
    """A top-level `yield` in a request that is no stream."""


class Replies:
    """Writes replies.

    Attributes:
        cancelled: the ids of the requests in main that were told to end.
        closing: the stream that has met its cancel by itself, and since when its `finally` runs.
        memory: what the process is held to.
    """

    __slots__ = ("_encode", "_max_bytes", "_settings", "_stdio", "cancelled", "closing", "memory")

    def __init__(self, stdio: Stdio) -> None:
        self.cancelled: set[bytes] = set()
        self.closing: tuple[bytes, float] = (b"", 0.0)
        self.memory = Memory()
        self._stdio = stdio

    def limit(self, settings: Settings) -> None:
        """Hold later replies to these settings."""
        self._settings = settings
        self._max_bytes = settings.max_frame_bytes
        self._encode = encode_parts
        depth = settings.max_depth
        # Else not passed on: an argument costs as much as a small value.
        if depth != DEFAULT_MAX_DEPTH:
            self._encode = lambda value, **how: encode_parts(value, **how, max_depth=depth)

    def interrupted(self, error: BaseException, id_term: bytes, exports: Exports) -> list[Part]:
        """Write the reply for what a signal raised while another failure was being described."""
        # That one's code is what could not be waited for: it must not be asked again.
        error.__context__ = None
        return self.failed(error, "run", id_term, exports)

    def reply(
        self,
        id_term: bytes,
        value: Any,
        job: Job | None,
        exports: Exports,
        head: bytes = OK_HEAD,
    ) -> list[Part]:
        """Write the reply that carries `value`.

        Raises:
            EncodeError: it cannot be written.
        """
        if job is not None:
            if job.returns == "object":
                value = exports.export(value)
            elif job.namespace is not None:
                value = (value, _bindings(job.namespace, job.names))
        head += id_term
        export = exports.export
        try:
            parts: list[Part] = self._encode(
                value, head=head, default=export, max_bytes=self._max_bytes
            )
        except EncodeError:
            if job is None or job.namespace is None:
                raise
            exports.undo()
            value = (value[0], self._writable(value[1], exports))
            parts = self._encode(value, head=head, default=export, max_bytes=self._max_bytes)
        if exports.ids:
            parts = messages.with_objects(parts, exports.ids)
            exports.ids = []  # a store: between this and the return no signal is handled
        return parts

    def _writable(self, bindings: dict[str, Any], exports: Exports) -> dict[str, Any]:
        """Give what code has bound, with an object for each value that cannot be written.

        Nobody has asked for any one of these values, so none of them is a reason to fail.
        """
        kept = {}
        for name, value in bindings.items():
            try:
                self._encode(
                    (None, {name: value}), default=exports.export, max_bytes=self._max_bytes
                )
            except EncodeError:
                kept[name] = value
            exports.undo()
        return {**bindings, **{name: exports.export(value) for name, value in kept.items()}}

    def failed(
        self,
        error: BaseException,
        step: str,
        id_term: bytes,
        exports: Exports,
        job: Job | None = None,
    ) -> list[Part]:
        """Write the reply for what went wrong at `step`.

        A request that was told to end is `cancelled` or `exited`, whatever exception its code has
        made of that.
        """
        if self._stdio.forked:
            leave_child(error)
        if exports.ids:
            exports.undo()
        try:
            told = job.told_to_end if job is not None else None
            if told is None and id_term in self.cancelled:
                told = "cancelled"
            if isinstance(error, MemoryError):
                return self.memory.lend(
                    lambda: [messages.error(id_term, self.description(error, step, told))]
                )
            return [messages.error(id_term, self.description(error, step, told))]
        except Cancelled:
            raise  # the answer is that, then: see `interrupted`
        except BaseException:  # a `__class__` that raises: whatever it is, it has a reply
            description = failure.describe_unseen(error)
            return [messages.error(id_term, description)]

    def leave_if_forked(self) -> None:
        """End here in a forked child: its code has come to its end, and the loop is not its own."""
        if self._stdio.forked:
            leave_child(None)

    def description(
        self, error: BaseException, step: str, told_to_end: str | None = None
    ) -> dict[str, Any]:
        """Describe what went wrong at `step`; `told_to_end` is the kind if it was told to end."""
        if isinstance(error, ProtocolError):
            return failure.describe_value_error("protocol", error)
        if isinstance(error, ExpiredError):
            return failure.describe("timeout", "", str(error), begun=False)
        if isinstance(error, NotStreamedError):
            return failure.describe("protocol", "", str(error))
        if isinstance(error, Cancelled):
            kind = "exited" if isinstance(error, Ended) else "cancelled"
            return failure.describe_cancelled(error, self._settings, kind)
        if isinstance(error, DecodeError) and step not in {"run", "result"}:
            # A target that is an object is a value like others.
            kind = "protocol" if step in {"options", "code"} else "decode"
            if "UTF-8" in error.reason and step in _REMEDIES:
                kind, error.remedy = "protocol", _REMEDIES[step]
            return failure.describe_value_error(kind, error.at(step))
        if isinstance(error, TargetError):
            return failure.describe_value_error("protocol", error)
        if isinstance(error, SessionError):
            return failure.describe("unavailable", "", str(error), begun=False)
        if isinstance(error, NamespaceError):
            return failure.describe_value_error("decode", error)
        if isinstance(error, EncodeError) and step == "result":
            return failure.describe_value_error("encode", self._about_size(error))
        if told_to_end:
            return failure.describe_cancelled(error, self._settings, told_to_end)
        return failure.describe_exception(error, self._settings)

    def _about_size(self, error: EncodeError) -> EtfError:
        if str(self._max_bytes) in error.reason:
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
