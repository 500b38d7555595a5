"""The API of the BEAM for user code: callbacks, `call`, `send`, `ElixirError`.

The server connects a `Link`, which carries the calls. The functions raise in user code, so each
exception says what to do.
"""

from __future__ import annotations

from port_server.etf import Atom, DecodeError, Pid, Struct, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    class Link(Protocol):
        """The part of the server that this module calls."""

        def request_id(self) -> bytes | None:
            """Give the id, as a term, of the request that the code which asks belongs to."""

        def invoke(self, id_term: bytes | None, function: Any, args: list[Any]) -> Any:
            """Call into the BEAM; in async code give an awaitable.

            Raises ElixirError, or RequestEndedError where that request has ended.
            """

        def send(self, pid: Pid, term: Any) -> None:
            """Send a message to a process."""


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
    """An Elixir function, given to a request: call it like any other.

    In plain code and in threads the call gives the result; in async code it gives an awaitable.
    It works until its request has ended. As an argument of a call into the BEAM it is the function
    itself again.
    """

    __slots__ = ("__weakref__", "_id_term", "arity", "index")

    def __init__(self, index: int, arity: int, id_term: bytes | None) -> None:
        self.index = index
        self.arity = arity
        self._id_term = id_term

    def __call__(self, *args: Any) -> Any:
        """Call the function.

        Raises:
            ElixirError: it failed.
            RuntimeError: its request has ended.
            TypeError: the number of arguments is wrong.
        """
        if len(args) != self.arity:
            raise TypeError(f"{self!r} takes {self.arity} arguments, not {len(args)}")
        try:
            if self._id_term is None:
                raise RequestEndedError
            return _connected().invoke(self._id_term, self.index, _arguments(args, self._id_term))
        except RequestEndedError:
            raise RuntimeError(
                f"{self!r} can no longer be called: the request that it was given to has ended. "
                f"Pass it to each request that needs it"
            ) from None

    def belongs_to(self, id_term: bytes | None) -> bool:
        """Tell whether it was given to that request."""
        return id_term is not None and self._id_term == id_term

    def __repr__(self) -> str:
        return f"<Elixir function {self.index}/{self.arity}>"


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
    return link.invoke(id_term, name, _arguments(args, id_term))


def _arguments(args: Any, id_term: bytes | None) -> list[Any]:
    """Turn callbacks among the arguments back into functions, if this request was given them."""
    if Callback not in map(type, args):
        return list(args)
    return [
        Struct(CALLBACK_MODULE, {Atom("index"): arg.index, Atom("arity"): arg.arity})
        if type(arg) is Callback and arg.belongs_to(id_term)
        else arg
        for arg in args
    ]


def send(pid: Pid, term: Any) -> None:
    """Send `term` to the process `pid`, like `Kernel.send/2`: a dead process is no error.

    Raises:
        EncodeError: `term` cannot be written.
        RuntimeError: this is not a server.
        TypeError: `pid` is not a pid.
    """
    if not isinstance(pid, Pid):
        raise TypeError(f"send(pid, term): the first is a pid, not {type(pid).__name__}")
    _connected().send(pid, term)


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
    index, arity = fields.get("index"), fields.get("arity")
    if type(index) is not int or type(arity) is not int or arity < 0:
        raise DecodeError("a PyPort.Callback has an index and an arity, both integers")
    return Callback(index, arity, None if _link is None else _link.request_id())


def _connected() -> Link:
    if _link is None:
        raise RuntimeError(
            "there is no BEAM to reach: this code does not run in a server that Elixir started"
        )
    return _link
