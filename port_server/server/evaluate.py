"""One request, from the bytes of its body to those of its reply, in whatever thread it runs.

User code runs only in here: decoding, running, encoding, dropping and describing a failure may all
call it. The executors are responsible for locks and order. A request whose value is to be awaited
or iterated has no reply yet: its executor goes on with `request.rest`.
"""

from __future__ import annotations

import gc
import sys
from _thread import allocate_lock
from sys import getrefcount
from time import monotonic

from port_server.etf import Struct, codec_name, read_term
from port_server.protocol.messages import ProtocolError
from port_server.protocol.requests import named
from port_server.runtime.garbage import Garbage
from port_server.runtime.namespace import NamespaceError, Namespaces, exact_key
from port_server.runtime.objects import MODULE as OBJECT_MODULE
from port_server.runtime.objects import Exports, Objects
from port_server.runtime.snippet import ASYNC_GENERATOR, GENERATOR, PLAIN, Snippets
from port_server.runtime.targets import ObjectTarget, TargetError, Targets

from .replies import NotStreamedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from port_server.protocol.framing import Frame
    from port_server.protocol.requests import Request
    from port_server.runtime.snippet import Snippet
    from port_server.settings import Settings

    from .port import Part
    from .replies import Replies, Reply

try:
    from port_server.etf import native

    from . import _fast
except ImportError:
    _fast = None  # type: ignore[assignment]


def _references_of_a_local() -> int:
    local: dict[str, Any] = {}
    return getrefcount(local)


# Reference count of an object that only a local variable refers to; differs between versions.
_ALONE: Final = _references_of_a_local()
_BINARY_EXT: Final = b"m"
_MOST_LEARNED: Final = 4096
# Lines before a snippet are blank lines to the compiler, and no file has more.
_MOST_LINES: Final = 10_000_000


class Code:
    """The compiled code of all threads, and the namespaces it runs in."""

    def __init__(self, objects: Objects, settings: Settings) -> None:
        self._awaited: set[Any] = set()
        self._compiling = allocate_lock()
        self.garbage = Garbage()
        self.namespaces = Namespaces()
        self.objects = objects
        objects.install()
        self.snippets = Snippets(settings.code_cache_entries)
        self.targets = Targets()

    def compile(self, code: Any) -> Snippet:
        """Give the snippet for the code of an eval.

        Raises:
            ProtocolError: it is no code.
            SyntaxError: and what else compile() raises.
        """
        # Only text is looked up without a check: other terms are not always hashable.
        found = self.snippets.get(code) if type(code) is str else None
        if found is not None:
            return found
        with self._compiling:
            if type(code) is str:
                return self.snippets.compile(code, code)
            match code:
                case tuple(("code", str(text), str(file), int(line))) if 1 <= line <= _MOST_LINES:
                    return self.snippets.get(code) or self.snippets.compile(code, text, file, line)
            raise ProtocolError(
                f"code is a binary or {{code, Source, File, Line}}, not {named(code)}"
            )

    def is_async(self, request: Request) -> bool:
        """Tell whether a request is known to need the event loop, by its code alone.

        For threads that run no user code, so globals and objects are not looked at.
        """
        frame, at = request.frame, request.at
        try:
            if request.is_call:
                if frame[at : at + 1] != _BINARY_EXT:
                    return False
                return read_term(frame, at)[0] in self._awaited
            code = read_term(frame, at, plain_structs=True)[0]
            snippet = self.compile(code)
        except Exception:
            return False  # the executor meets the same failure, and answers it
        return snippet.kind not in {PLAIN, GENERATOR} or code in self._awaited

    def learn(self, request: Request) -> None:
        """Note that the code of this request gives something to await."""
        code = read_term(request.frame, request.at, plain_structs=True)[0]
        if type(code) in {str, tuple} and len(self._awaited) < _MOST_LEARNED:
            self._awaited.add(code)


class Evaluator:
    """Evaluates the requests of one thread; `for_thread` makes another for another thread."""

    def __init__(self, code: Code, replies: Replies, settings: Settings) -> None:
        self._settings = settings
        self.code = code
        self.exports = Exports(code.objects, (settings.arrays, settings.tables))
        self.replies = replies
        self._plain: Any = None
        if _fast is not None and codec_name == "native":
            self._plain = _fast.Plain(
                native=native,
                evals=code.snippets.parts,
                calls=code.targets.finders,
                base=code.namespaces.base,
                names=code.namespaces.names,
                export=self.exports.export,
                collect=code.garbage.collect,
                max_frame_bytes=settings.max_frame_bytes,
                max_depth=settings.max_depth,
            )

    def frame(self, head: bytes, value: Any) -> Reply:
        """Write a message that begins with `head`, then `value`, then the ids of its objects."""
        exports, plain = self.exports, self._plain
        frame = (
            self.replies.encode(value, exports, head) if plain is None else plain.frame(head, value)
        )
        return self.replies.with_objects(frame, exports) if exports.ids else frame

    def failed(self, error: BaseException, request: Request) -> list[Part]:
        return self.replies.failed(error, request, self.exports)

    def interrupted(self, error: BaseException, request: Request) -> list[Part]:
        """Write the reply for an exception of a signal during the description of a failure."""
        # The code of that failure took too long to describe it: it must not run again.
        error.__context__ = None
        request.step = "run"
        return self.failed(error, request)

    def for_thread(self) -> Evaluator:
        return Evaluator(self.code, self.replies, self._settings)

    def evaluate(self, request: Request) -> Reply | None:
        """Run a request; give its reply, None if `rest` is to be awaited or iterated for it."""
        options = request.options
        value: Any = None
        found: Any = None
        reply: Reply | None = None
        try:
            if request.arrived:  # else it was read just now
                request.check_deadline(monotonic())
            if self._plain is not None and options.usual:
                namespace = None
                if options.session is not None:
                    session = request.session or self.code.namespaces.session(options.session)
                    namespace = session.namespace
                found = self._plain.evaluate(
                    request.frame,
                    request.at,
                    request.is_call,
                    request.id_term,
                    options.as_bytes,
                    namespace,
                )
            if type(found) is bytes and not self.exports.ids:
                return found  # as most requests end
            if type(found) is not tuple and found is not None:
                request.step = "result"
                return self.replies.with_objects(found, self.exports)
            if found is not None and len(found) == 3:
                request.step, value, request.namespace = found
                reply = self.failed(value, request)
            else:
                if found is None:
                    value = self._run(request)
                else:
                    value, request.namespace = found
                request.step = "result"
                reply = self._reply(request, value)
        except BaseException as error:
            if request.rest is None:  # else the signal came later, and its executor goes on
                reply = self.failed(error, request)
        if reply is not None:
            # Dropped here, because dropping may run a __del__, whose prints are the request's.
            value = found = None
            self._drop(request)
        return reply

    def _run(self, request: Request) -> Any:
        """Read the body of any request, run it, give its value. C does this for plain requests."""
        if request.options.returns == "globals" and (request.is_call or request.options.stream):
            raise ProtocolError("return => globals is for an eval that is no stream")
        if request.is_call:
            return self._call(request)
        frame, options, code = request.frame, request.options, self.code
        source, at = self._read(frame, request.at)
        request.step = "globals"
        values, at = self._read(frame, at, binary_as=options.binary_as)
        if at != len(frame):
            raise _trailing(frame, at, "eval")
        if type(values) is not dict:
            raise ProtocolError(f"globals are a map, not {named(values)}")
        request.step = "run"
        snippet = code.compile(source)
        namespaces = code.namespaces
        if options.session is None:
            namespace = namespaces.fresh(snippet, values)
        else:
            namespace = namespaces.of_session(options.session, snippet, values)
        request.namespace, request.snippet = namespace, snippet
        if snippet.kind in {GENERATOR, ASYNC_GENERATOR} and not options.stream:
            raise NotStreamedError(
                f"top-level `yield` (line {snippet.special_line} of {snippet.source.file}) gives a "
                f"stream of values: use PyPort.stream/3 for it"
            )
        return snippet.run(namespace)

    def _call(self, request: Request) -> Any:
        frame, options = request.frame, request.options
        request.step = "target"
        if frame[request.at : request.at + 1] == _BINARY_EXT:
            name, at = self._read(frame, request.at)
            find = self.code.targets.finder(name)
        else:
            target, at = self._read_object_target(frame, request.at)
            find = target.find
            del target  # the object lives no longer than the call
        request.step = "args"
        args, at = self._read(frame, at, binary_as=options.binary_as)
        request.step = "kwargs"
        given, at = self._read(frame, at, binary_as=options.binary_as)
        if at != len(frame):
            raise _trailing(frame, at, "call")
        if type(args) is not list or type(given) is not dict:
            raise ProtocolError("the arguments of a call are a list, the keywords a map")
        request.step = "run"
        keywords = _keywords(given)
        if options.session is not None:
            self.code.namespaces.session(options.session)
        function = find()
        if options.typed:
            from port_server.runtime import typed  # noqa: PLC0415  imports inspect and typing

            request.step = "args"
            args, keywords = typed.bind(function, args, keywords)
            request.step = "run"
        return function(*args, **keywords)

    def _reply(self, request: Request, value: Any) -> Reply | None:
        """Give the reply that carries a value; None if it is to be awaited or iterated first."""
        if hasattr(type(value), "__await__"):
            self.code.learn(request)
            request.rest = value
        elif request.options.stream:
            request.rest = value
        elif _is_future(value):
            request.rest = _result_of(value)
        else:
            return self.replies.value(request, value, self.exports)
        return None

    def _drop(self, request: Request) -> None:
        """Drop the namespace and the values that the code of a request has left."""
        try:
            namespace, request.namespace = request.namespace, None
            # Functions of the namespace refer to it. Without this, the cycle and all its data would
            # stay until the collector runs. A session's namespace stays.
            cyclic = (
                namespace is not None
                and request.options.session is None
                and getrefcount(namespace) > _ALONE
                and gc.isenabled()
            )
            namespace = None
            if cyclic:
                self.code.garbage.collect()
        except BaseException:  # noqa: S110  raised by a signal; the reply is there already
            pass

    def _read(self, frame: Frame, at: int, *, binary_as: str = "str") -> tuple[Any, int]:
        return read_term(frame, at, binary_as=binary_as, max_depth=self._settings.max_depth)

    def _read_object_target(self, frame: Frame, at: int) -> tuple[ObjectTarget, int]:
        """Read a handle, or `{Handle, Name}`."""
        name = None
        # Read as a plain struct, because the object of a handle may be a dict or a tuple itself.
        target, end = read_term(frame, at, plain_structs=True, max_depth=self._settings.max_depth)
        if type(target) is tuple and len(target) == 2:
            target, name = target
        if type(target) is not Struct or target.module != OBJECT_MODULE:
            raise TargetError(
                'a target is a binary like "math:sqrt", an object or {object, "attribute"}, not '
                f"{named(target)}"
            )
        return ObjectTarget(self.code.objects.find(target), name), end


def _is_future(value: Any) -> bool:
    """Tell whether it is a future of `concurrent.futures`, as `executor.submit` gives."""
    # Another thread may be importing it just now.
    kind = getattr(sys.modules.get("concurrent.futures"), "Future", None)
    return kind is not None and isinstance(value, kind)


async def _result_of(future: Any) -> Any:
    import asyncio  # noqa: PLC0415  the loop that awaits this has it

    return await asyncio.wrap_future(future)


def _keywords(given: dict[Any, Any]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for key, value in given.items():
        name = exact_key(key, given)
        if name is None:
            raise NamespaceError(
                f"{named(key)} cannot be the name of a keyword argument: keys are atoms or strings"
            )
        keywords[name] = value
    return keywords


def _trailing(frame: Frame, at: int, kind: str) -> ProtocolError:
    return ProtocolError(f"{len(frame) - at} bytes stand behind the {kind}")
