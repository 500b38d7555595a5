"""The API of the BEAM for user code: callbacks, `call`, `send`, `Elixir`, `ElixirError`.

The server connects a `Link`, which carries the calls. The functions raise in user code, so each
exception says what to do.
"""

from __future__ import annotations

from _weakref import ref

from port_server.etf import Atom, DecodeError, Pid, Struct, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, Protocol, Self

    _Ref = ref["Callback"]

    class Link(Protocol):
        """The part of the server that this module calls."""

        def request_id(self) -> bytes | None:
            """Give the id, as a term, of the request that the code which asks belongs to."""

        def invoke(self, id_term: bytes | None, function: Any, args: list[Any]) -> Any:
            """Call into the BEAM; in async code give an awaitable.

            Raises ElixirError, or RequestEndedError where that request has ended.
            """

        def send(self, to: Any, term: Any) -> None:
            """Send a message to a process: a pid, or names as binaries."""

        def progress(self, done: Any, total: Any, more: dict[str, Any]) -> None:
            """Send how far the running request is."""


if not TYPE_CHECKING:
    _Ref = ref

CALLBACK_MODULE: Final = "Elixir.PyPort.Callback"

_link: Link | None = None


class Cancelled(KeyboardInterrupt):
    """The request that runs was cancelled.

    A KeyboardInterrupt, because code that catches `Exception` lets it through, and asyncio does not
    swallow it.
    """

    __module__ = "port_server"  # user code imports it from there


class Ended(Cancelled):
    """The request that runs is ended because the server leaves, without a cancel."""


class ElixirError(Exception):
    """A failed call into the BEAM.

    Attributes:
        kind: "error", "exit", "throw", "refused" (not allowed) or "noproc" (no such process).
        type: the exception's module, "ArgumentError", or "" for a failure without one.
        message: its message.
        stacktrace: as Elixir formats it.
    """

    __module__ = "port_server"

    def __init__(self, kind: str, type: str, message: str, stacktrace: str = "") -> None:
        super().__init__(kind, type, message, stacktrace)
        self.kind = kind
        self.type = type
        self.message = message
        self.stacktrace = stacktrace
        if stacktrace:
            # Notes are part of what Python prints, and so of the traceback that goes back.
            self.add_note("Elixir stacktrace:\n" + stacktrace.rstrip("\n"))

    def __str__(self) -> str:
        head = self.type or self.kind
        return f"** ({head}) {self.message}"


class RequestEndedError(Exception):
    """The request that a call is made for has ended."""


class Callback:
    """An Elixir function: call it like any other.

    In plain code and in threads the call gives the result; in async code it gives an awaitable.
    Keyword arguments are its last argument, a map. It works as long as it is held. Wherever it is
    sent back to Elixir, it is the function itself again.
    """

    __slots__ = ("__name__", "__weakref__", "arity", "index")

    def __init__(self, index: int, arity: int, name: str) -> None:
        self.index = index
        self.arity = arity
        self.__name__ = name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Call the function.

        Raises:
            ElixirError: it failed.
            TypeError: the number of arguments is wrong.
        """
        given = [*args, keywords] if keywords else list(args)
        if len(given) != self.arity:
            raise TypeError(f"{self!r} takes {self.arity} arguments, not {len(given)}")
        link = _connected()
        try:
            return link.invoke(link.request_id(), self.index, given)
        except RequestEndedError:
            return link.invoke(None, self.index, given)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a function of Elixir works in the Python that it was given to only")

    def __repr__(self) -> str:
        return f"<Elixir function {self.__name__}/{self.arity}>"

    @property
    def fields(self) -> Struct:
        """The struct that stands for it on the wire."""
        return Struct(CALLBACK_MODULE, {Atom("index"): self.index, Atom("arity"): self.arity})


class _Held(_Ref):
    """A weak reference to a callback, which knows its number."""

    __slots__ = ("index",)
    index: int


# The callbacks that are held, by their numbers, and the numbers of those that were dropped since
# the last heartbeat and since the one before it.
_held: dict[int, _Held] = {}
_dropped: list[int] = []
_dropped_before: list[int] = []


def _drop(gone: _Held) -> None:
    held = _held.pop(gone.index, None)
    if held is gone:
        _dropped.append(gone.index)
    elif held is not None:  # another thread has read the function anew: that one is put back
        _held.setdefault(gone.index, held)


def take_dropped_callbacks() -> list[int]:
    """Give the numbers of callbacks that nothing has held since the last time. In one thread.

    A frame may be read a second time, so a callback that is gone may come back at once.
    """
    global _dropped, _dropped_before
    before, _dropped_before, _dropped = _dropped_before, _dropped, []
    return [index for index in before if index not in _held]


def call(module: str, function: str, args: list[Any] | tuple[Any, ...] = ()) -> Any:
    """Call `module.function(*args)` in the BEAM; the server must have been told to allow it.

    In async code this gives an awaitable.

    Args:
        module: "Enum", "MyApp.Repo", or for an Erlang module ":lists".
        function: its name.
        args: its arguments.

    Raises:
        ElixirError: it failed, or is not allowed (kind "refused").
        RuntimeError: this is not a server, or one that cannot wait here.
    """
    if not isinstance(module, str) or not isinstance(function, str):
        raise TypeError('call("Enum", "sum", [[1, 2]]): a module, a function, a list of arguments')
    if not isinstance(args, (list, tuple)):
        raise TypeError(f"the arguments of a call are a list, not {type(args).__name__}")
    link = _connected()
    name = (full_name(module).encode(), function.encode())
    id_term = link.request_id()
    return link.invoke(id_term, name, list(args))


def send(to: Any, term: Any) -> None:
    """Send `term` to a process, like `Kernel.send/2`: a dead process is no error.

    Objects in it belong to the process that gets them.

    Args:
        to: a pid, a registered name ("my_server", "MyApp.Worker", an Atom), or (name, node).
        term: any value.

    Raises:
        EncodeError: `term` cannot be written.
        RuntimeError: this is not a server.
        TypeError: `to` is none of these.
    """
    match to:
        case Pid():
            pass
        case str(name):
            to = _registered(name)
        case (str(name), str(node)):
            to = (_registered(name), node.encode())
        case _:
            raise TypeError(
                f"send(to, term): `to` is a pid, a name or (name, node), not {type(to).__name__}"
            )
    _connected().send(to, term)


def progress(done: Any, total: Any = None, **more: Any) -> None:
    """Tell the caller of this request how far it is: its `on_progress:` gets these as a map.

    At most one report in 50 ms is sent, and the one where `done` is `total`. Does nothing where no
    request runs.

    Raises:
        EncodeError: a value cannot be written.
        RuntimeError: this is not a server.
    """
    _connected().progress(done, total, more)


def _registered(name: str) -> bytes:
    return (name if isinstance(name, Atom) else full_name(name)).encode()


class ElixirModule:
    """A module of Elixir: its attributes are its functions, and the modules below it.

    `Elixir.Enum.frequencies(xs)` is `call("Enum", "frequencies", [xs])`. Keyword arguments are a
    keyword list, which is the last argument. `getattr(Elixir.Enum, "empty?")` gives a function with
    a name that is none in Python.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self._name}.{name}"
        if name[:1].isupper():
            return ElixirModule(path)

        def function(*args: Any, **keywords: Any) -> Any:
            last = [[(Atom(key), value) for key, value in keywords.items()]] if keywords else []
            return call(self._name, name, [*args, *last])

        function.__name__ = name
        function.__qualname__ = path
        return function

    def __repr__(self) -> str:
        return f"<Elixir module {self._name.removeprefix('Elixir.')}>"


Elixir: Final = ElixirModule("Elixir")


def full_name(module: str) -> str:
    """Give a module's name as the BEAM has it: `Enum` is `Elixir.Enum`, `:lists` is `lists`."""
    if module.startswith(":"):
        return module[1:]
    if module.startswith("Elixir.") or not module[:1].isupper():
        return str(module)
    return "Elixir." + module


def connect(link: Link) -> None:
    """Let user code reach the BEAM through `link`, and let callbacks be read."""
    global _link  # noqa: PLW0603  one process, one port
    _link = link
    register(CALLBACK_MODULE, _callback_from)


def error_of(description: Any) -> ElixirError:
    """Make the exception for an error map from the other side, also for a malformed map."""
    fields = description if isinstance(description, dict) else {}
    texts = [fields.get(Atom(key)) for key in ("kind", "type", "message", "stacktrace")]
    kind, type_name, message, stacktrace = (
        text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text or "")
        for text in texts
    )
    return ElixirError(
        kind or "error", type_name.removeprefix("Elixir."), message or repr(description), stacktrace
    )


def _callback_from(fields: dict[Any, Any]) -> Callback:
    index, arity, name = fields.get("index"), fields.get("arity"), fields.get("name", "fn")
    if type(index) is not int or type(arity) is not int or arity < 0:
        raise DecodeError("a PyPort.Callback has an index and an arity, both integers")
    known = _held.get(index)
    callback = None if known is None else known()
    if callback is None:
        callback = Callback(index, arity, name.decode() if isinstance(name, bytes) else str(name))
        held = _Held(callback, _drop)
        held.index = index
        _held[index] = held
    return callback


def _connected() -> Link:
    if _link is None:
        raise RuntimeError(
            "there is no BEAM to reach: this code does not run in a server that Elixir started"
        )
    return _link
