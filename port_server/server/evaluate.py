"""One request, from the bytes of its body to those of its reply, in whatever thread it runs.

User code is run in here and nowhere else: decoding, running, encoding, dropping and describing a
failure may all be its doing. What becomes the reply, and how, stands in `replies`. Locks, the baton
and whose turn it is are for the lanes. What has no value at once, because it is to be awaited or
iterated, is handed to `take_over`.
"""

from __future__ import annotations

import gc
from _thread import allocate_lock
from sys import getrefcount

from port_server.etf import Struct, read_term
from port_server.protocol.messages import ProtocolError
from port_server.runtime.garbage import Garbage
from port_server.runtime.namespace import (
    NamespaceError,
    Namespaces,
    exact_key,
)
from port_server.runtime.objects import MODULE as OBJECT_MODULE
from port_server.runtime.objects import Exports, Objects
from port_server.runtime.snippet import ASYNC_GENERATOR, GENERATOR, PLAIN, Snippet, Snippets
from port_server.runtime.targets import ObjectTarget, TargetError, Targets

from .jobs import Job, named
from .replies import DEFAULT_MAX_DEPTH, NotStreamedError, Replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any, Final

    from port_server.protocol.framing import Frame
    from port_server.runtime.targets import Target
    from port_server.settings import Settings

    from .channel import Channel, Part
    from .stdio import Stdio


def _references_of_a_local() -> int:
    local: dict[str, Any] = {}
    return getrefcount(local)


# How many there are of something that only a local variable refers to; differs between versions.
_ALONE: Final = _references_of_a_local()
# Lines before a snippet are blank lines to the compiler, and no file has more.
_MOST_LINES: Final = 10_000_000
_BINARY_EXT: Final = b"m"
_MOST_LEARNED: Final = 4096
# What most requests give: none of these is to be awaited.
_PLAIN_TYPES: Final = frozenset(
    (int, str, float, bool, type(None), list, dict, tuple, bytes, set, frozenset)
)


class Evaluator(Replies):
    """Evaluates requests.

    Attributes:
        exports: the codec's hook for values that stay here; the main thread's own.
        garbage: frees what requests leave behind in cycles.
        namespaces: what requests run in.
        objects: what the other side has handles of.
        ran: the snippet or target that ran last, or None; whoever measures tells it.
        snippets: the code that was compiled.
        take_over: called with a job and what is to be awaited or iterated for its value.
    """

    __slots__ = (
        "_awaited",
        "_channel",
        "_compiling",
        "_read",
        "_targets",
        "exports",
        "garbage",
        "namespaces",
        "objects",
        "ran",
        "snippets",
        "take_over",
    )

    take_over: Callable[[Job, Any], None]

    def __init__(self, stdio: Stdio, channel: Channel, settings: Settings) -> None:
        super().__init__(stdio)
        self.garbage = Garbage()
        self.namespaces = Namespaces()
        self.objects = Objects(settings)
        self.objects.install()
        self.exports = Exports(self.objects)
        self.ran: Snippet | Target | ObjectTarget | None = None
        self._awaited: set[Any] = set()
        self._channel = channel
        self._compiling = allocate_lock()
        self.snippets = Snippets(settings.code_cache_entries)
        self._targets = Targets()
        self.limit(settings)

    def limit(self, settings: Settings) -> None:
        """Hold later requests to other settings; `init` brings them."""
        super().limit(settings)
        self.objects.limit = settings.max_objects
        self._read = read_term
        depth = settings.max_depth
        # Else not passed on: an argument costs as much as a small value.
        if depth != DEFAULT_MAX_DEPTH:
            self._read = lambda *where, **how: read_term(*where, **how, max_depth=depth)

    def evaluate(
        self,
        frame: Frame,
        kind: str,
        id_term: bytes,
        at: int,
        job: Job | None,
        exports: Exports,
    ) -> list[Part] | None:
        """Read the body of an eval or a call, run it, and give the frame of its reply, in parts.

        Args:
            frame: the whole message.
            kind: "eval" or "call".
            id_term: the id as the bytes of its term.
            at: where its code or target begins.
            job: its options, if they are not the usual ones.
            exports: the thread's own.

        Returns:
            The reply, or None if it was handed to `take_over`.
        """
        read = self._read
        code: Any = None
        values: Any = None
        kwargs: Any = None
        value: Any = None
        step = "code"
        parts: list[Part] | None = None
        try:
            if kind == "eval":
                code, at = read(frame, at)
                step = "globals"
                if job is None:
                    values, at = read(frame, at)
                else:
                    values, at = read(frame, at, binary_as=job.binary_as)
                if at != len(frame) or type(values) is not dict:
                    raise no_eval(frame, at, values)
                step = "run"
                # Only text is looked up as it came: what else it may be is not always hashable.
                entry = (self.snippets.get(code) if type(code) is str else None) or self.compile(
                    code
                )
                if job is None or job.session is None:
                    values = self.namespaces.fresh(entry, values)
                else:
                    values = self.namespaces.of_session(job.session, entry, values)
                if job is not None and job.returns == "globals":
                    job.namespace, job.names = values, entry.names
                if entry.kind is not PLAIN:
                    check_yield(entry, job)
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
                binary_as = "str" if job is None else job.binary_as
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
                if job is not None and job.session is not None:
                    self.namespaces.of_session(job.session, None, {})
                if self._channel.held and target.suspect:
                    self._channel.write_out()
                self.ran = target
                value = target.find()(*values, **_keywords(kwargs))
            step = "result"
            if type(value) not in _PLAIN_TYPES and hasattr(type(value), "__await__"):
                self._learn(code)
                job = job or Job(frame, kind, id_term, at)
                self.take_over(job, value)
            elif job is not None and job.stream:
                self.take_over(job, value)
            else:
                parts = self.reply(id_term, value, job, exports)
        except BaseException as error:
            # Else somebody goes on with it: a signal has come just behind that.
            if job is None or not job.elsewhere:
                parts = self.failed(error, step, id_term, exports, job)
        # Dropped here, because dropping may run a __del__, whose prints are the request's as well.
        # Functions of the namespace refer to it: a cycle, and with it all the data of the request,
        # that would otherwise wait for the collector to come by.
        try:
            cyclic = getrefcount(values) > _ALONE and type(values) is dict
            code = values = kwargs = value = None
            if job is not None and parts is not None:
                job.namespace = None
            # A session's namespace stays, and so does that of what goes on elsewhere.
            if cyclic and gc.isenabled() and parts is not None and (job is None or not job.session):
                self.garbage.collect()
        except BaseException:  # noqa: S110  raised by a signal; the reply is there already
            pass
        return parts

    def context_of(self, job: Job) -> Context:
        """Give the context to evaluate a request in: the context variables that its code has."""
        if job.context is None:
            job.context = self.namespaces.context_of(job.session)
        return job.context

    def answer_unusual(
        self, frame: Frame, id_term: bytes, code: Any, value: Any
    ) -> list[Part] | None:
        """Answer a plain eval with a value that is none of the usual types.

        Returns:
            The reply, or None if the value is to be awaited: it was handed to `take_over`.
        """
        if not hasattr(type(value), "__await__"):
            return self.reply(id_term, value, None, self.exports)
        self._learn(code)
        job = Job(frame, "eval", id_term, len(frame))
        try:
            self.take_over(job, value)
        except BaseException:
            if not job.elsewhere:  # else it is a signal that came just behind that
                raise
        return None

    def is_async(self, frame: Frame, kind: str, at: int) -> bool:
        """Tell whether a request is known to need the async lane, by its code alone.

        For the control thread: runs no user code, so globals and objects are not looked at.
        """
        try:
            if kind == "call":
                if frame[at : at + 1] != _BINARY_EXT:
                    return False
                return read_term(frame, at)[0] in self._awaited
            code = read_term(frame, at, plain_structs=True)[0]
            entry = (self.snippets.get(code) if type(code) is str else None) or self.compile(code)
        except Exception:
            return False  # main will find it, too, and answer it
        return entry.kind not in {PLAIN, GENERATOR} or code in self._awaited

    def _learn(self, code: Any) -> None:
        """Note that this code gives something to await."""
        if type(code) in {str, tuple} and len(self._awaited) < _MOST_LEARNED:
            self._awaited.add(code)

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

    def compile(self, code: Any) -> Snippet:
        with self._compiling:
            if type(code) is str:
                return self.snippets.compile(code, code)
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
            return self.snippets.get(code) or self.snippets.compile(code, text, file, line)


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


def check_yield(snippet: Snippet, job: Job | None) -> None:
    if snippet.kind in {GENERATOR, ASYNC_GENERATOR} and not (job is not None and job.stream):
        raise NotStreamedError(
            f"top-level `yield` (line {snippet.special_line} of {snippet.source.file}) gives a "
            f"stream of values: use PyPort.stream/3 for it"
        )


def no_eval(frame: Frame, at: int, values: Any) -> ProtocolError:
    if at != len(frame):
        return _trailing(frame, at, "eval")
    return ProtocolError(f"globals are a map, not {named(values)}")


def _trailing(frame: Frame, at: int, kind: str) -> ProtocolError:
    return ProtocolError(f"{len(frame) - at} bytes stand behind the {kind}")
