"""External Term Format <-> Python values: bytes in, values out; no I/O, no clock, no thread.

Usable alone. The C extension does the work where it could be built, erlang-py where not;
`codec_name` says which ("native" or "erlang-py"), and the environment variable
PORT_SERVER_CODEC=erlang-py asks for the second.
"""

from __future__ import annotations

import os

from .errors import DecodeError, EncodeError, EtfError
from .structs import decoder, encoder, register, set_decimals, set_templates
from .terms import (
    Atom,
    BitString,
    FrozenList,
    FrozenMap,
    Fun,
    ImproperList,
    LocalTerm,
    Pid,
    Port,
    Reference,
    Struct,
)

codec_name = "erlang-py"
if os.environ.get("PORT_SERVER_CODEC") != "erlang-py":
    try:
        from .native import decode, encode, encode_parts, read_term

        codec_name = "native"
    except ImportError:  # no compiler at install time, or another Python's binary
        pass
if codec_name == "erlang-py":
    try:
        from .fallback import decode, encode, encode_parts, read_term
    except ModuleNotFoundError as error:
        if error.name != "erlang":
            raise
        raise ImportError(
            "port_server needs its C codec, which was not built for this Python, or else the "
            "package erlang-py: install port-server, or erlang-py, into this environment with pip "
            "or uv"
        ) from None

__all__ = [
    "Atom",
    "BitString",
    "DecodeError",
    "EncodeError",
    "EtfError",
    "FrozenList",
    "FrozenMap",
    "Fun",
    "ImproperList",
    "LocalTerm",
    "Pid",
    "Port",
    "Reference",
    "Struct",
    "codec_name",
    "decode",
    "decoder",
    "encode",
    "encode_parts",
    "encoder",
    "read_term",
    "register",
    "set_decimals",
    "set_templates",
]
