"""The main lane: one request after another in the main thread, from its bytes to those of its reply.

`MainLane.answer` is the one place where user code is entered and left. What comes later goes
around it: the baton is let go before and taken after, the window for cancellation is open inside.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from port_server.etf import DecodeError, EncodeError, encode_parts, read_term
from port_server.protocol import messages
from port_server.protocol.messages import OK_HEAD, ProtocolError
from port_server.runtime import failure
from port_server.runtime.namespace import NamespaceError, Namespaces
from port_server.runtime.snippet import PLAIN, Snippet, Snippets
from port_server.runtime.targets import TargetError, Targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from port_server.etf import EtfError
    from port_server.protocol.framing import Frame
    from port_server.runtime.output import Output, Streams
    from port_server.runtime.targets import Target
    from port_server.settings import Settings

    from .channel import Channel, Part
    from .stdio import Stdio

_EMPTY_MAP: Final = b"t\0\0\0\0"
_WAYS_TO_READ_BINARIES: Final = frozenset(("str", "bytes"))


class ExpiredError(Exception):
    """The deadline of a request passed before it began."""


class NotServedYetError(Exception):
    """Something that the protocol has a place for and this server does not do yet."""


class MainLane:
    """Runs requests.

    Attributes:
        namespaces: what requests run in.
        running: the id of the running request as the bytes of its term, or None.
        ran: the snippet or target that ran last, or None; whoever measures sets its `quick`.
    """

    __slots__ = (
        "_channel",
        "_max_bytes",
        "_max_depth",
        "_output",
        "_settings",
        "_snippets",
        "_stdio",
        "_streams",
        "_targets",
        "namespaces",
        "ran",
        "running",
    )

    def __init__(
        self,
        stdio: Stdio,
        channel: Channel,
        settings: Settings,
        output: Output,
        streams: Streams,
    ) -> None:
        self.namespaces = Namespaces()
        self.running: bytes | None = None
        self.ran: Snippet | Target | None = None
        self._channel = channel
        self._output = output
        self._snippets = Snippets(settings.code_cache_entries)
        self._stdio = stdio
        self._streams = streams
        self._targets = Targets()
        self.limit(settings)

    def limit(self, settings: Settings) -> None:
        """Hold later requests to other settings; `init` brings them."""
        self._settings = settings
        self._max_bytes = settings.max_frame_bytes
        self._max_depth = settings.max_depth

    def answer(
        self, frame: Frame, kind: str, id_term: bytes, at: int, arrived: float | None
    ) -> None:
        """Read the body of an eval or a call, run it, and hand its reply to the channel.

        Args:
            frame: the whole message.
            kind: "eval" or "call".
            id_term: the id as the bytes of its term.
            at: where the body begins: right behind the id.
            arrived: when the frame was read, if that is longer ago than just now.
        """
        output = self._output
        streams = self._streams
        max_depth = self._max_depth
        code: Any = None
        values: Any = None
        kwargs: Any = None
        value: Any = None
        step = "options"
        self.ran = None
        self.running = id_term
        output.open = True
        # -- user code is entered: what is decoded, run, encoded and dropped below may be theirs --
        try:
            binary_as = "str"
            if frame[at : at + 5] == _EMPTY_MAP:
                at += 5
            else:
                values, at = read_term(frame, at, max_depth=max_depth)
                binary_as = _heed_options(values, arrived)
            step = "code" if kind == "eval" else "target"
            code, at = read_term(frame, at, max_depth=max_depth)
            if kind == "eval":
                step = "globals"
                values, at = read_term(frame, at, binary_as=binary_as, max_depth=max_depth)
                if at != len(frame):
                    raise _trailing(frame, at, kind)
                if type(values) is not dict:
                    raise ProtocolError(f"globals are a map, not {_named(values)}")
                step = "run"
                entry = self._snippets.get(code) or self._compile(code)
                if entry.kind is not PLAIN:
                    _refuse(entry)
                values = self.namespaces.fresh(entry, values)
                if self._channel.held and not entry.quick:
                    self._channel.write_out()
                self.ran = entry
                value = entry.run(values)
            else:
                step = "args"
                values, at = read_term(frame, at, binary_as=binary_as, max_depth=max_depth)
                step = "kwargs"
                kwargs, at = read_term(frame, at, binary_as=binary_as, max_depth=max_depth)
                if at != len(frame):
                    raise _trailing(frame, at, kind)
                if type(values) is not list or type(kwargs) is not dict:
                    raise ProtocolError("the arguments of a call are a list, the keywords a map")
                if type(code) is not str:
                    raise TargetError(
                        f'a target is a binary, "module:function", not {_named(code)}'
                    )
                step = "run"
                target = self._targets.get(code)
                if self._channel.held and not target.quick:
                    self._channel.write_out()
                self.ran = target
                value = target.find()(*values, **_keywords(kwargs))
            step = "result"
            parts: list[Part] = encode_parts(
                value, head=OK_HEAD + id_term, max_depth=max_depth, max_bytes=self._max_bytes
            )
        except BaseException as error:
            if self._stdio.forked:
                leave_child(error)
            parts = self._failed(error, step, id_term)
        code = values = kwargs = value = None
        if output.parts:
            output.hand_on(now=False)
        output.open = False
        self.running = None
        # -- user code is left -------------------------------------------------------------------
        if self._stdio.forked:
            leave_child(None)
        if sys.stdout is not streams.stdout or sys.stderr is not streams.stderr:
            streams.install()
        self._channel.hold(parts)

    def _compile(self, code: Any) -> Snippet:
        if type(code) is str:
            return self._snippets.compile(code, code)
        if (
            type(code) is not tuple
            or len(code) != 4
            or code[0] != "code"
            or type(code[1]) is not str
            or type(code[2]) is not str
            or type(code[3]) is not int
            or code[3] < 1
        ):
            raise ProtocolError(
                f"code is a binary or {{code, Source, File, Line}}, not {_named(code)}"
            )
        _tag, text, file, line = code
        return self._snippets.compile(code, text, file, line)

    def _failed(self, error: BaseException, step: str, id_term: bytes) -> list[Part]:
        settings = self._settings
        if isinstance(error, ProtocolError):
            description = failure.describe_value_error("protocol", error)
        elif isinstance(error, ExpiredError):
            description = failure.describe("timeout", "", str(error), begun=False)
        elif isinstance(error, NotServedYetError):
            description = failure.describe("protocol", "", str(error))
        elif isinstance(error, DecodeError) and step not in ("run", "result"):
            kind = "protocol" if step in ("options", "code", "target") else "decode"
            description = failure.describe_value_error(kind, error.at(step))
        elif isinstance(error, (NamespaceError, TargetError)):
            description = failure.describe_value_error("decode", error)
        elif isinstance(error, EncodeError) and step == "result":
            description = failure.describe_value_error("encode", self._about_size(error))
        else:
            description = failure.describe_exception(error, settings)
        return [messages.error(id_term, description)]

    def _about_size(self, error: EncodeError) -> EtfError:
        if str(self._max_bytes) in error.reason:
            error.remedy = "Return less at once, or start the server with a larger max_frame_bytes"
        return error.at("result")


def _heed_options(options: Any, arrived: float | None) -> str:
    """Check the options of a request; give its `binary_as`.

    Raises:
        ProtocolError: one is of the wrong type. An unknown one is from a later client, and ignored.
        ExpiredError: the deadline has passed.
    """
    if type(options) is not dict:
        raise ProtocolError(f"options are a map, not {_named(options)}")
    deadline_ms = options.get("deadline_ms")
    if deadline_ms is not None:
        if type(deadline_ms) is not int:
            raise ProtocolError(f"deadline_ms is an integer, not {_named(deadline_ms)}")
        waited_ms = 0.0 if arrived is None else (monotonic() - arrived) * 1000
        if deadline_ms <= waited_ms:
            raise ExpiredError(
                f"the deadline passed before the request began: it had {deadline_ms} ms left and "
                f"waited {waited_ms:.0f} ms in the queue"
            )
    binary_as = options.get("binary_as")
    if binary_as is None:
        return "str"
    if binary_as not in _WAYS_TO_READ_BINARIES:
        raise ProtocolError(f"binary_as is str or bytes, not {_named(binary_as)}")
    return str(binary_as)


def _keywords(kwargs: dict[Any, Any]) -> dict[str, Any]:
    if not kwargs:
        return kwargs
    for key in kwargs:
        if not isinstance(key, str):
            raise NamespaceError(
                f"{_named(key)} cannot be the name of a keyword argument: keys are atoms or strings"
            )
    return {str(key): value for key, value in kwargs.items()}


def _refuse(snippet: Snippet) -> NoReturn:
    word = "yield" if "generator" in snippet.kind else "await"
    raise NotServedYetError(
        f"top-level `{word}` (line {snippet.special_line} of {snippet.source.file}) is not "
        f"supported by this server yet"
    )


def _trailing(frame: Frame, at: int, kind: str) -> ProtocolError:
    return ProtocolError(f"{len(frame) - at} bytes stand behind the {kind}")


def _named(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def leave_child(error: BaseException | None) -> NoReturn:
    """End a forked child whose code has come to its end, as Python ends a script."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
        try:
            failure.print_to_stderr(error)
        except BaseException:  # noqa: S110  the child ends whatever happens
            pass
    os._exit(status & 0xFF)
