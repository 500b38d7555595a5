"""The main lane: one request after another, from its bytes to those of its reply.

`MainLane.answer` is the one place where user code is entered and left. What comes later goes
around it: the baton is let go before and taken after, the window for cancellation is open inside.
"""

from __future__ import annotations

import gc
import os
import sys
from sys import getrefcount

from port_server.etf import DecodeError, EncodeError, Struct, encode_parts, read_term
from port_server.protocol import messages
from port_server.protocol.messages import OK_HEAD, ProtocolError
from port_server.runtime import failure
from port_server.runtime.namespace import NamespaceError, Namespaces, SessionError, exact_key
from port_server.runtime.objects import MODULE as OBJECT_MODULE
from port_server.runtime.objects import Exports, Objects
from port_server.runtime.snippet import PLAIN, Snippet, Snippets
from port_server.runtime.targets import ObjectTarget, TargetError, Targets

from .options import ExpiredError, checked, named, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from port_server.etf import EtfError
    from port_server.protocol.framing import Frame
    from port_server.runtime.output import Output
    from port_server.runtime.streams import Streams
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
_BINARY_EXT: Final = b"m"
_NEVER: Final = float("inf")
DEFAULT_MAX_DEPTH: Final = 512  # the codec's


class NotServedYetError(Exception):
    """Something that the protocol has a place for and this server does not do yet."""


class MainLane:
    """Runs requests.

    Attributes:
        namespaces: what requests run in.
        objects: what the other side has handles of.
        output: what requests print.
        running: the id of the request that is being answered as the bytes of its term, or None;
            who hands its reply on resets it.
        ran: the snippet or target that ran last, or None; whoever measures tells it.
    """

    __slots__ = (
        "_channel",
        "_dropped",
        "_encode",
        "_export",
        "_exports",
        "_max_bytes",
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
        "objects",
        "output",
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
        self.objects = Objects(settings)
        self.objects.install()
        self._dropped = self.objects.dropped
        self._exports = Exports(self.objects)
        self._export = self._exports.export
        self.running: bytes | None = None
        self.ran: Snippet | Target | None = None
        self._channel = channel
        self.output = output
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
        self.objects.limit = settings.max_objects
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
        output = self.output
        read = self._read
        code: Any = None
        values: Any = None
        kwargs: Any = None
        value: Any = None
        options: dict[Any, Any] | None = None  # those that change more than how to read the rest
        step = "options"
        window = self._window
        self.ran = None
        self.running = id_term
        outer = output.running
        output.running = id_term
        window.open = True
        # -- user code is entered: what is decoded, run, encoded and dropped below may be theirs --
        try:
            # Terms are prefix-free: where the bytes of the last options stand, those options do.
            end = at + self._usual_size
            if frame[at:end] == self._usual_options and waited_ms < self._usual_deadline_ms:
                at = end
                binary_as = "str"
            else:
                binary_as, at, options = self._heed_options(frame, at, waited_ms)
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
                    raise ProtocolError(f"globals are a map, not {named(values)}")
                step = "run"
                # Only text is looked up as it came: what else it may be is not always hashable.
                entry = (self._snippets.get(code) if type(code) is str else None) or self._compile(
                    code
                )
                if entry.kind is not PLAIN:
                    _refuse(entry)
                if options is None:
                    values = self.namespaces.fresh(entry, values)
                else:
                    values = self._namespace(options, entry, values)
                if self._channel.held and entry.suspect:
                    self._channel.write_out()
                self.ran = entry
                value = entry.run(values)
            else:
                step = "target"
                if frame[at : at + 1] == _BINARY_EXT:
                    code, at = read(frame, at)
                else:
                    code, at = self._read_object_target(frame, at)
                step = "args"
                values, at = read(frame, at, binary_as=binary_as)
                step = "kwargs"
                kwargs, at = read(frame, at, binary_as=binary_as)
                if at != len(frame):
                    raise _trailing(frame, at, kind)
                if type(values) is not list or type(kwargs) is not dict:
                    raise ProtocolError("the arguments of a call are a list, the keywords a map")
                step = "run"
                target = self._targets.get(code) if type(code) is str else code
                if options is not None:
                    self._namespace(options, None, {})
                if self._channel.held and target.suspect:
                    self._channel.write_out()
                self.ran = target
                value = target.find()(*values, **_keywords(kwargs))
            step = "result"
            if options is not None and word(options.get("return")) == "object":
                value = self._export(value)
            parts: list[Part] = self._encode(
                value, head=OK_HEAD + id_term, default=self._export, max_bytes=self._max_bytes
            )
            if self._exports.ids:
                parts = messages.with_objects(parts, self._exports.take())
        except BaseException as error:
            if self._stdio.forked:
                leave_child(error)
            if self._exports.ids:
                self._exports.undo()
            parts = self._failed(error, step, id_term)
        # Dropped here, because dropping may run a __del__, whose prints are the request's as well.
        # Functions of the namespace refer to it: a cycle, and with it all the data of the request,
        # that would otherwise wait for the collector to come by.
        cyclic = getrefcount(values) > _ALONE and type(values) is dict
        code = values = kwargs = value = None
        if cyclic and gc.isenabled() and options is None:  # a session's namespace stays
            gc.collect(1)
        window.open = False
        if output.requests:
            output.end(id_term)
        output.running = outer
        if self._dropped:  # released while this ran
            self.objects.drop()
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

    def _heed_options(
        self, frame: Frame, at: int, waited_ms: float
    ) -> tuple[str, int, dict[Any, Any] | None]:
        """Read and check the options of a request.

        Gives its `binary_as`, where its code begins, and all options if there is one among them
        that is heeded later (`session`, `return`), else None.

        Raises:
            DecodeError, ProtocolError, ExpiredError: see `options`.
        """
        options, end = self._read(frame, at, binary_as="bytes")
        binary_as, special = checked(options, waited_ms)
        if not special and binary_as == "str":
            # A client sends the same options again and again.
            self._usual_options = bytes(frame[at:end])
            self._usual_size = end - at
            deadline_ms = options.get("deadline_ms")
            self._usual_deadline_ms = _NEVER if deadline_ms is None else deadline_ms
        return binary_as, end, options if special else None

    def _namespace(
        self, options: dict[Any, Any], snippet: Snippet | None, values: dict[Any, Any]
    ) -> dict[str, Any]:
        session = options.get("session")
        if session is not None:
            return self.namespaces.of_session(session, snippet, values)
        return self.namespaces.fresh(snippet, values) if snippet is not None else values

    def _read_object_target(self, frame: Frame, at: int) -> tuple[ObjectTarget, int]:
        """Read a handle, or `{Handle, Name}`."""
        name = None
        # As it is written, because what a handle stands for may be a dict or a tuple itself.
        target, end = self._read(frame, at, plain_structs=True)
        if type(target) is tuple and len(target) == 2:
            target, name = target
        if type(target) is not Struct or target.module != OBJECT_MODULE:
            raise TargetError(
                'a target is a binary like "math:sqrt", an object or {object, "attribute"}, not '
                f"{named(target)}"
            )
        return ObjectTarget(self.objects.find(target), name), end

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
                f"code is a binary or {{code, Source, File, Line}}, not {named(code)}"
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
        elif isinstance(error, SessionError):
            description = failure.describe("unavailable", "", str(error), begun=False)
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
    keywords: dict[str, Any] = {}
    for key, value in kwargs.items():
        name = exact_key(key, kwargs)
        if name is None:
            raise NamespaceError(
                f"{named(key)} cannot be the name of a keyword argument: keys are atoms or strings"
            )
        keywords[name] = value
    return keywords


def _refuse(snippet: Snippet) -> NoReturn:
    word = "yield" if "generator" in snippet.kind else "await"
    raise NotServedYetError(
        f"top-level `{word}` (line {snippet.special_line} of {snippet.source.file}) is not "
        f"supported by this server yet"
    )


def _trailing(frame: Frame, at: int, kind: str) -> ProtocolError:
    return ProtocolError(f"{len(frame) - at} bytes stand behind the {kind}")


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
