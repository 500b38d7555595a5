# The functions of fast.c.

from collections.abc import Callable
from types import CodeType
from typing import Any

from port_server.protocol.requests import Options

class Plain:
    def __init__(
        self,
        *,
        native: Any,
        evals: dict[Any, Any],
        calls: dict[Any, Any],
        base: dict[str, Any],
        names: dict[Any, Any],
        export: Callable[[Any], Any],
        collect: Callable[[], None],
        max_frame_bytes: int,
        max_depth: int,
    ) -> None: ...
    def evaluate(
        self,
        frame: Any,
        at: int,
        is_call: bool,
        id_term: bytes,
        as_bytes: bool,
        namespace: dict[str, Any] | None,
        /,
    ) -> bytes | list[Any] | tuple[Any, ...] | None: ...
    def frame(self, head: bytes, value: Any, /) -> bytes | list[Any]: ...

class Segment:
    def __init__(
        self, memory: Any, size: int, released: Any, slot: int, generation: int, /
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def receive(
    fd: int, limit: int, kept: dict[bytes, Options], /
) -> tuple[bytes, bool, bytes, Options, int] | tuple[bytes, bytes, int] | bytes | bytearray: ...
def write(fd: int, data: bytes, writers: list[int], /) -> bool: ...
def guarded(stack: list[Any], request: Any, function: Callable[..., Any], /, *args: Any) -> Any: ...
def strike(
    ident: int,
    stack: list[Any],
    request: Any,
    codes: list[CodeType],
    exception: type[BaseException],
    /,
) -> bool: ...
