"""Python for Elixir and Erlang, over a port: what code that runs inside a server may import."""

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
    register,
)
from .runtime.beam import Callback, Cancelled, ElixirError, call, send

__all__ = [
    "Atom",
    "BitString",
    "Callback",
    "Cancelled",
    "DecodeError",
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
    "register",
    "send",
]
