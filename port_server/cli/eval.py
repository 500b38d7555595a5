"""`eval`: runs user code in this process, with the runtime of the server.

The value goes through the codec before it is shown, so that the printed term is the one that the
BEAM would get.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from port_server.cli import FAILED, MISUSED, OK
from port_server.cli.output import write_all
from port_server.etf import Atom, EncodeError, Struct, decode, encode
from port_server.etf.text.elixir import format_elixir
from port_server.etf.text.erlang import format_erlang
from port_server.etf.text.reader import TextError, parse
from port_server.etf.text.verbatim import read, write
from port_server.runtime import objects
from port_server.runtime import snippet as snippets
from port_server.runtime.failure import describe_exception
from port_server.runtime.namespace import Namespaces
from port_server.runtime.snippet import Snippet, compile_snippet
from port_server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


def as_term(value: object, *, erlang: bool) -> str:
    """The text of the term that `value` becomes.

    Raises:
        EncodeError: it becomes none.
    """
    term = read(encode(value, default=_as_object))
    return format_erlang(term) if erlang else format_elixir(term)


def _as_object(value: object) -> object:
    """A handle, as for any value without a term of its own."""
    type_name, text = objects.describe(value)
    return Struct(objects.MODULE, {Atom("type"): type_name, Atom("repr"): text})


def run_eval(code: str, settings: list[str], *, erlang: bool = False) -> int:
    """Evaluate once; the value goes to stdout, a failure's traceback to stderr."""
    try:
        values = dict(_global(setting) for setting in settings)
    except ValueError as error:
        sys.stderr.write(f"port-server eval: {error}\n")
        return MISUSED
    file = "<eval>"
    if code == "-":
        try:
            # As Python reads a file: a byte order mark is no part of the code.
            code, file = sys.stdin.buffer.read().decode("utf-8-sig"), "<stdin>"
        except UnicodeDecodeError as error:
            sys.stderr.write(
                f"port-server eval: the code on standard input is not UTF-8: {error}\n"
            )
            return FAILED
    try:
        snippet = compile_snippet(code, file)
        namespace = Namespaces().fresh(snippet, values)
        for value in values_of(snippet, namespace):
            print_text(as_term(value, erlang=erlang))
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        report(error)
        return FAILED
    return OK


def _global(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--global takes NAME=TERM, such as rows='[1, 2]'; found {setting!r}")
    try:
        return name, decode(write(parse(text)))
    except TextError as error:
        raise ValueError(f"--global {name}: {error} (in {text!r})") from None
    except ValueError as error:
        raise ValueError(f"--global {name}: {error}") from None


def values_of(snippet: Snippet, namespace: dict[str, Any]) -> Iterator[Any]:
    """The value of the code; all values, one by one, if it yields."""
    if snippet.kind == snippets.GENERATOR:
        yield from snippet.run(namespace)
        return
    if snippet.kind == snippets.PLAIN:
        yield snippet.run(namespace)
        return
    import asyncio  # noqa: PLC0415 - 50 ms that plain code need not wait for

    with asyncio.Runner() as runner:
        if snippet.kind == snippets.COROUTINE:
            yield runner.run(snippet.run(namespace))
            return
        items = aiter(snippet.run(namespace))
        while True:
            try:
                item = runner.run(_next(items))
            except StopAsyncIteration:
                return
            yield item


async def _next(items: Any) -> Any:
    return await anext(items)


def print_text(text: str) -> None:
    # The code may have printed, replaced sys.stdout or closed it: its prints come first.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception:  # noqa: S110 - a stdout of the code's own; the value is shown all the same
        pass
    write_all(1, text.encode() + b"\n")


def report(error: BaseException) -> None:
    if isinstance(error, EncodeError):
        text = f"port-server: the value cannot become a term: {error}\n"
    else:
        text = str(describe_exception(error, Settings())["traceback"])
    with contextlib.suppress(Exception):  # see _print
        sys.stdout.flush()
    write_all(2, text.encode(errors="backslashreplace"))
