"""`eval` and `repl`: people's code in this very process, in the runtime that the server uses.

The value goes through the codec before it is shown, so that what is printed is what would cross.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from port_server.cli import FAILED, MISUSED, OK
from port_server.cli_frames import write_all
from port_server.etf import Atom, EncodeError, Struct, decode, encode
from port_server.etf.elixir_text import format_elixir
from port_server.etf.erlang_text import format_erlang
from port_server.etf.text import TextError, parse
from port_server.etf.verbatim import read, write
from port_server.runtime import objects
from port_server.runtime import snippet as snippets
from port_server.runtime.failure import describe_exception
from port_server.runtime.namespace import Namespaces
from port_server.runtime.snippet import Snippet, compile_snippet
from port_server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT, CONTINUATION = "py> ", "... "


def as_term(value: object, *, erlang: bool) -> str:
    """The text of the term that `value` becomes.

    Raises:
        EncodeError: it becomes none.
    """
    term = read(encode(value, default=_as_object))
    return format_erlang(term) if erlang else format_elixir(term)


def _as_object(value: object) -> object:
    """What has no term of its own stays in Python; the other side gets a handle."""
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
        for value in _values(snippet, namespace):
            _print(as_term(value, erlang=erlang))
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        _report(error)
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


def _values(snippet: Snippet, namespace: dict[str, Any]) -> Iterator[Any]:
    """The value of the code; all of them, one by one, where it yields."""
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


def _print(text: str) -> None:
    # The code may have printed, replaced sys.stdout or closed it: first comes what it printed.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception:  # noqa: S110 - a stdout of the code's own; the value is shown all the same
        pass
    write_all(1, text.encode() + b"\n")


def _report(error: BaseException) -> None:
    if isinstance(error, EncodeError):
        text = f"port-server: the value cannot become a term: {error}\n"
    else:
        text = str(describe_exception(error, Settings())["traceback"])
    with contextlib.suppress(Exception):  # see _print
        sys.stdout.flush()
    write_all(2, text.encode(errors="backslashreplace"))


def run_repl(*, erlang: bool = False) -> int:
    """Read, evaluate, print, until the input ends."""
    on_terminal = os.isatty(0)
    namespace = Namespaces().fresh(compile_snippet("", "<repl>"), {})
    if on_terminal:
        _prepare_editing(namespace)
        version = sys.version.split()[0]
        greeting = f"Python {version}, values as Elixir terms; Ctrl-D or exit() leaves\n"
        write_all(1, greeting.encode())
    count = 0
    while True:
        try:
            code = _read_snippet(on_terminal=on_terminal)
        except KeyboardInterrupt:
            write_all(1, b"\n")
            continue
        except UnicodeDecodeError as error:
            sys.stderr.write(f"port-server repl: the input is not UTF-8: {error}\n")
            return FAILED
        if code is None:
            if on_terminal:
                write_all(1, b"\n")
            return OK
        if not code.strip():
            continue
        count += 1
        _run_one(code, f"<repl {count}>", namespace, erlang=erlang)


def _run_one(code: str, file: str, namespace: dict[str, Any], *, erlang: bool) -> None:
    try:
        snippet = compile_snippet(code, file)
        namespace["__loader__"] = snippet.source
        for value in _values(snippet, namespace):
            if value is not None:
                namespace["_"] = value
                _print(as_term(value, erlang=erlang))
    except (BrokenPipeError, SystemExit):
        # exit() is how a person leaves a prompt; it has closed stdin, too. A server would go on.
        raise
    except BaseException as error:
        _report(error)


def _read_snippet(*, on_terminal: bool) -> str | None:
    """The next piece of code that is whole; None at the end of the input."""
    import codeop  # noqa: PLC0415 - only a REPL needs it

    lines: list[str] = []
    while True:
        prompt = (CONTINUATION if lines else PROMPT) if on_terminal else ""
        try:
            lines.append(input(prompt))
        except EOFError:
            return "\n".join(lines) if lines else None
        code = "\n".join(lines)
        try:
            if codeop.compile_command(code, "<repl>", "single") is not None:
                return code
        except (SyntaxError, ValueError, OverflowError):
            return code  # the runtime says what is wrong, or knows better: `await`, `return`


def _prepare_editing(namespace: dict[str, Any]) -> None:
    try:
        import readline  # noqa: PLC0415 - absent from some Pythons
        import rlcompleter  # noqa: PLC0415
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(namespace).complete)
    readline.parse_and_bind("tab: complete")
