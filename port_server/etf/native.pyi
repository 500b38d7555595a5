# The functions of the C codec (native_module.c); docs/etf.md says what they mean.

from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

def decode(
    buffer: Buffer,
    /,
    *,
    binary_as: str = "str",
    floats_as: str = "list",
    max_depth: int = 512,
    plain_structs: bool = False,
) -> Any: ...
def read_term(
    buffer: Buffer,
    offset: int,
    /,
    *,
    binary_as: str = "str",
    floats_as: str = "list",
    max_depth: int = 512,
    plain_structs: bool = False,
) -> tuple[Any, int]: ...
def encode(
    value: Any,
    /,
    *,
    head: bytes | bytearray | memoryview = b"\x83",
    default: Callable[[Any], Any] | None = None,
    max_depth: int = 512,
    max_bytes: int = ...,
) -> bytes: ...
def encode_parts(
    value: Any,
    /,
    *,
    head: bytes | bytearray | memoryview = b"\x83",
    default: Callable[[Any], Any] | None = None,
    max_depth: int = 512,
    max_bytes: int = ...,
    by_reference_from: int = 65_536,
) -> list[bytes | memoryview]: ...
