"""The main lane: one request after another, from its bytes to those of its reply.

`MainLane.answer` is the one place where user code is entered and left. What comes later goes
around it: the baton is let go before and taken after, the window for cancellation is open inside.
"""

from __future__ import annotations

import gc
import os
import sys
from sys import getrefcount

from port_server.etf import DecodeError, EncodeError, encode_parts, read_term
from port_server.protocol import messages
from port_server.protocol.messages import OK_HEAD, ProtocolError
from port_server.runtime import failure
from port_server.runtime.namespace import NamespaceError, Namespaces, exact_key
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
    from .window import Window


def _references_of_a_local() -> int:
    local: dict[str, Any] = {}
    return getrefcount(local)


# How many there are of something that only a local variable refers to; differs between versions.
_ALONE: Final = _references_of_a_local()
# Lines before a snippet are blank lines to the compiler, and no file has more.
_MOST_LINES: Final = 10_000_000
_EMPTY_MAP: Final = b"t\0\0\0\0"
_NEVER: Final = float("inf")
DEFAULT_MAX_DEPTH: Final = 512  # the codec's


class ExpiredError(Exception):
    """The deadline of a request passed before it began."""


class NotServedYetError(Exception):
    """Something that the protocol has a place for and this server does not do yet."""


class MainLane:
    """Runs requests.

    Attributes:
        namespaces: what requests run in.
        running: the id of the request that is being answered as the bytes of its term, or None;
            who hands its reply on resets it.
        ran: the snippet or target that ran last, or None; whoever measures tells it.
    """

    __slots__ = (
        "_channel",
        "_encode",
        "_max_bytes",
        "_output",
        "_read",
        "_settings",
        "_snippets",
        "_stdio",
        "_streams",
        "_targets",
        "_usual_deadline_ms",
        "_usual_options",
        "_usual_size",
        "_window",
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
        window: Window,
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
        self._window = window
        self._usual_options = _EMPTY_MAP
        self._usual_size = len(_EMPTY_MAP)
        self._usual_deadline_ms: float = _NEVER
        self.limit(settings)

    def limit(self, settings: Settings) -> None:
        """Hold later requests to other settings; `init` brings them."""
        self._settings = settings
        self._max_bytes = settings.max_frame_bytes
        self._read = read_term
        self._encode = encode_parts
        depth = settings.max_depth
        if (
            depth != DEFAULT_MAX_DEPTH
        ):  # else not passed on: an argument costs as much as a small value
            self._read = lambda *where, **how: read_term(*where, **how, max_depth=depth)
            self._encode = lambda value, **how: encode_parts(value, **how, max_depth=depth)

    def answer(
        self, frame: Frame, kind: str, id_term: bytes, at: int, waited_ms: float
    ) -> list[Part]:
        """Read the body of an eval or a call, run it, and give the frame of its reply, in parts.

        Args:
            frame: the whole message.
            kind: "eval" or "call".
            id_term: the id as the bytes of its term.
            at: where the body begins: right behind the id.
            waited_ms: how long ago the frame was read.
        """
        output = self._output
        read = self._read
        code: Any = None
        values: Any = None
        kwargs: Any = None
        value: Any = None
        step = "options"
        window = self._window
        self.ran = None
        self.running = id_term
        output.open = True
        window.open = True
        # -- user code is entered: what is decoded, run, encoded and dropped below may be theirs --
        try:
            # Terms are prefix-free: where the bytes of the last options stand, those options do.
            end = at + self._usual_size
            if frame[at:end] == self._usual_options and waited_ms < self._usual_deadline_ms:
                at = end
                binary_as = "str"
            else:
                binary_as, at = self._heed_options(frame, at, waited_ms)
            if kind == "eval":
                step = "code"
                code, at = read(frame, at)
                step = "globals"
                if binary_as == "str":
                    values, at = read(frame, at)
                else:
                    values, at = read(frame, at, binary_as=binary_as)
                if at != len(frame):
                    raise _trailing(frame, at, kind)
                if type(values) is not dict:
                    raise ProtocolError(f"globals are a map, not {_named(values)}")
                step = "run"
                # Only text is looked up as it came: what else it may be is not always hashable.
                entry = (self._snippets.get(code) if type(code) is str else None) or self._compile(
                    code
                )
                if entry.kind is not PLAIN:
                    _refuse(entry)
                values = self.namespaces.fresh(entry, values)
                if self._channel.held and entry.suspect:
                    self._channel.write_out()
                self.ran = entry
                value = entry.run(values)
            else:
                step = "target"
                code, at = read(frame, at)
                step = "args"
                values, at = read(frame, at, binary_as=binary_as)
                step = "kwargs"
                kwargs, at = read(frame, at, binary_as=binary_as)
                if at != len(frame):
                    raise _trailing(frame, at, kind)
                if type(values) is not list or type(kwargs) is not dict:
                    raise ProtocolError("the arguments of a call are a list, the keywords a map")
                if type(code) is not str:
                    raise TargetError(f"a target is a binary like math:sqrt, not {_named(code)}")
                step = "run"
                target = self._targets.get(code)
                if self._channel.held and target.suspect:
                    self._channel.write_out()
                self.ran = target
                value = target.find()(*values, **_keywords(kwargs))
            step = "result"
            parts: list[Part] = self._encode(
                value, head=OK_HEAD + id_term, max_bytes=self._max_bytes
            )
        except BaseException as error:
            if self._stdio.forked:
                leave_child(error)
            parts = self._failed(error, step, id_term)
        # Dropped here, because dropping may run a __del__, whose prints are the request's as well.
        # Functions of the namespace refer to it: a cycle, and with it all the data of the request,
        # that would otherwise wait for the collector to come by.
        cyclic = getrefcount(values) > _ALONE and type(values) is dict
        code = values = kwargs = value = None
        if cyclic and gc.isenabled():
            gc.collect(1)
        window.open = False
        if output.parts:
            output.hand_on(now=False)
        output.open = False
        # -- user code is left -------------------------------------------------------------------
        if self._stdio.forked:
            leave_child(None)
        streams = self._streams
        try:
            if (
                sys.stdout is not streams.stdout
                or sys.stderr is not streams.stderr
                or sys.stdin is not streams.stdin
            ):
                streams.install()
        except AttributeError:  # `del sys.stdout`
            streams.install()
        return parts

    def _heed_options(self, frame: Frame, at: int, waited_ms: float) -> tuple[str, int]:
        """Read and check the options of a request; give its `binary_as` and where its code begins.

        Raises:
            ProtocolError: one is of the wrong type. An unknown one is from a later client, and
                ignored.
            ExpiredError: the deadline has passed.
        """
        options, end = self._read(frame, at)
        if type(options) is not dict:
            raise ProtocolError(f"options are a map, not {_named(options)}")
        deadline_ms = options.get("deadline_ms")
        if deadline_ms is not None:
            if type(deadline_ms) is not int:
                raise ProtocolError(f"deadline_ms is an integer, not {_named(deadline_ms)}")
            if deadline_ms <= waited_ms:
                raise ExpiredError(
                    f"the deadline passed before the request began: it had {deadline_ms} ms left "
                    f"and waited {waited_ms:.0f} ms in the queue"
                )
        binary_as = options.get("binary_as")
        if binary_as is None or binary_as == "str":
            # A client sends the same options again and again.
            self._usual_options = bytes(frame[at:end])
            self._usual_size = end - at
            self._usual_deadline_ms = _NEVER if deadline_ms is None else deadline_ms
            return "str", end
        if binary_as != "bytes":
            raise ProtocolError(f"binary_as is str or bytes, not {_named(binary_as)}")
        return "bytes", end

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
            or not 1 <= code[3] <= _MOST_LINES
        ):
            raise ProtocolError(
                f"code is a binary or {{code, Source, File, Line}}, not {_named(code)}"
            )
        _tag, text, file, line = code
        return self._snippets.get(code) or self._snippets.compile(code, text, file, line)

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
        elif isinstance(error, TargetError):
            description = failure.describe_value_error("protocol", error)
        elif isinstance(error, NamespaceError):
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


def _keywords(kwargs: dict[Any, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in kwargs.items():
        name = exact_key(key, kwargs)
        if name is None:
            raise NamespaceError(
                f"{_named(key)} cannot be the name of a keyword argument: keys are atoms or strings"
            )
        named[name] = value
    return named


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
        except BaseException:
            os._exit(status)
    os._exit(status & 0xFF)
