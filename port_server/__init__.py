"""Python for Elixir and Erlang, over a port: the names that code inside a server may import.

The terms that Python has no type for:

    from port_server import Atom, BitString, Fun, ImproperList, Pid, Port, Reference, Struct

`Atom("ok")` goes to Elixir as `:ok`; it is a str, equal to "ok". The others come from Elixir and
are kept and sent back as they are; `Struct` is a dict with the name of its module.

Structs as types of one's own, both ways:

    from port_server import register
    register("MyApp.Money", Money)      # a dataclass, or a model of attrs, pydantic, msgspec

or each way by itself:

    @decoder("MyApp.Money")
    def money(fields): return Money(**fields)

    @encoder(Money)
    def fields(money): return {"amount": money.amount}

Calls into the BEAM, from code that runs in a server that Elixir started:

    from port_server import Elixir, ElixirError, call, progress, send
    call("Enum", "sum", [[1, 2, 3]])    # if `allow:` of the server names it; awaitable in async
    Elixir.Enum.sum([1, 2, 3])          # the same
    progress(3, 10)                     # for the option `on_progress:` of the request
    send(pid, {"progress": 0.5})        # like Kernel.send/2; also to a name, or (name, node)

A call that fails raises `ElixirError`. An Elixir function among the globals of a request is a
`Callback`; a request that is cancelled gets `Cancelled`, a KeyboardInterrupt.
"""

from __future__ import annotations

from .etf import (
    Atom,
    BitString,
    DecodeError,
    EncodeError,
    EtfError,
    Fun,
    ImproperList,
    Pid,
    Port,
    Reference,
    Struct,
    decoder,
    encoder,
    register,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .runtime.api import Callback, Cancelled, Elixir, ElixirError, call, progress, send

__all__ = [
    "Atom",
    "BitString",
    "Callback",
    "Cancelled",
    "DecodeError",
    "Elixir",
    "ElixirError",
    "EncodeError",
    "EtfError",
    "Fun",
    "ImproperList",
    "Pid",
    "Port",
    "Reference",
    "Struct",
    "call",
    "decoder",
    "encoder",
    "progress",
    "register",
    "send",
]

_OF_THE_BEAM = frozenset(
    ("Callback", "Cancelled", "Elixir", "ElixirError", "call", "progress", "send")
)


def __getattr__(name: str) -> object:
    # Not imported above: users of the codec alone (`port_server.etf`) do not need the server.
    if name not in _OF_THE_BEAM:
        raise AttributeError(f"module 'port_server' has no attribute {name!r}")
    from .runtime import api  # noqa: PLC0415

    value = getattr(api, name)
    globals()[name] = value
    return value
