"""`repl`: a prompt that evaluates as `eval` does, in one namespace."""

from __future__ import annotations

import os
import sys
from typing import Any

from port_server.cli import FAILED, OK
from port_server.cli.eval import as_term, print_text, report, values_of
from port_server.cli.output import write_all
from port_server.runtime.namespace import Namespaces
from port_server.runtime.snippet import compile_snippet

PROMPT, CONTINUATION = "py> ", "... "


def run_repl(*, erlang: bool = False) -> int:
    """Read, evaluate, print, until the input ends."""
    on_terminal = os.isatty(0)
    namespace = Namespaces().fresh(compile_snippet("", "<repl>"), {})
    if on_terminal:
        _prepare_editing(namespace)
        version = sys.version.split()[0]
        banner = f"Python {version}, values as Elixir terms; Ctrl-D or exit() leaves\n"
        write_all(1, banner.encode())
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
        for value in values_of(snippet, namespace):
            if value is not None:
                namespace["_"] = value
                print_text(as_term(value, erlang=erlang))
    except (BrokenPipeError, SystemExit):
        # exit() leaves the prompt, and has closed stdin, too. A server would go on.
        raise
    except BaseException as error:
        report(error)


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
            return code  # the runtime reports the error, or accepts it: `await`, `return`


def _prepare_editing(namespace: dict[str, Any]) -> None:
    try:
        import readline  # noqa: PLC0415 - absent from some Pythons
        import rlcompleter  # noqa: PLC0415
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(namespace).complete)
    readline.parse_and_bind("tab: complete")
