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

__all__ = [
    "Atom",
    "BitString",
    "DecodeError",
    "EncodeError",
    "EtfError",
    "Fun",
    "ImproperList",
    "Pid",
    "Port",
    "Reference",
    "Struct",
    "register",
]
