"""The arguments of each command, and its help."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from port_server.cli import MISUSED
from port_server.cli.serve import SERVE, SERVE_EXAMPLES

ABOUT = """\
Python for Elixir and Erlang, over a port.

A BEAM starts `port-server serve` and talks to it in frames: a four-byte length, then one term in
the External Term Format. The other commands are for people: try Python as Elixir will see it, and
look at the conversation from outside."""

EXAMPLES = """\
examples:
  port-server eval 'sum(range(10))'
  port-server repl
  port-server doctor

  # a whole conversation by hand: Erlang terms in, Erlang terms out
  echo '{eval, <<"1">>, #{}, <<"1 + 1">>, #{}}.' |
    port-server encode | port-server serve | port-server decode

environment:
  PORT_SERVER_LOG    warning (the default) or error: what is logged on stderr
  PORT_SERVER_CODEC  erlang-py: leave the native codec aside

`port-server COMMAND --help` has the details of each. Exit status: 0 done, 1 failed, 2 misused."""

EVAL = """\
Evaluate Python as the server does, and print the value as Elixir will see it.

The value is that of the last expression, or of a top-level `return`. The prints of the code go to
standard output first. An error is Python's own traceback on standard error, and exit status 1."""

EVAL_EXAMPLES = """\
examples:
  port-server eval 'sum(range(10))'
  port-server eval --erlang '{"a": [1, 2.5, None]}'
  port-server eval -g 'rows=[[1, 2], [3, 4]]' 'sum(map(sum, rows))'
  port-server eval - < script.py"""

REPL = """\
A Python prompt with one namespace, in the same runtime as the server; values are printed as Elixir
will see them. `_` is the last value; Ctrl-D or exit() leaves."""

REPL_EXAMPLE = """\
example:
  $ port-server repl
  py> import datetime
  py> {"day": datetime.date(2024, 1, 1)}
  %{"day" => ~D[2024-01-01]}"""

ENCODE = """\
Read Erlang terms, each ended by a full stop as in file:consult/1, and write each as a frame as soon
as its full stop has been read. A term with a mistake in it is reported with line and column, and
left out; the others are written, and the exit status is 1.

Terms are atoms, integers (16#ff, $c, 1_000), floats, "strings" (lists of characters), binaries
(<<"text">>, <<"text"/utf8>>, <<1, 2:16, 5:3>>), lists, tuples, maps #{k => v} and % comments."""

ENCODE_EXAMPLES = """\
examples:
  echo '{ping, <<"1">>}.' | port-server encode | xxd
  port-server encode < conversation.terms | port-server serve | port-server decode"""

DECODE = """\
Read frames, and print the term of each on a line of its own, as soon as the frame is complete. A
frame that holds no term is reported on standard error, and reading goes on with the next frame; the
exit status is 1 then."""

DECODE_EXAMPLES = """\
examples:
  echo '{ping, <<"1">>}.' | port-server encode | port-server serve | port-server decode
  echo '{ping, <<"1">>}.' | port-server encode | port-server decode --elixir"""

DOCTOR = """\
Print what is installed here and what it runs on, start a server, measure its answers, and say what
could be better. Exit status 0 if everything works, 1 if not."""

DOCTOR_EXAMPLE = """\
example:
  /path/to/environment/bin/port-server doctor"""


def dispatch(arguments: list[str]) -> int:
    """Run the command that the arguments name; gives the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return MISUSED
    status: int = options.run(options)
    return status


def _serve(_options: argparse.Namespace) -> int:
    from port_server.cli.serve import run_serve  # noqa: PLC0415

    return run_serve()


def _eval(options: argparse.Namespace) -> int:
    from port_server.cli.eval import run_eval  # noqa: PLC0415

    return run_eval(options.code, options.globals, erlang=options.erlang)


def _repl(options: argparse.Namespace) -> int:
    from port_server.cli.repl import run_repl  # noqa: PLC0415

    return run_repl(erlang=options.erlang)


def _encode(_options: argparse.Namespace) -> int:
    from port_server.cli.encode import run_encode  # noqa: PLC0415

    return run_encode()


def _decode(options: argparse.Namespace) -> int:
    from port_server.cli.decode import run_decode  # noqa: PLC0415

    return run_decode(elixir=options.elixir)


def _doctor(_options: argparse.Namespace) -> int:
    from port_server.cli.doctor import run_doctor  # noqa: PLC0415

    return run_doctor()


def _parser() -> argparse.ArgumentParser:
    class Version(argparse.Action):
        """`--version`; the metadata is read (35 ms) only for this option."""

        def __call__(self, parser: argparse.ArgumentParser, *_args: Any, **_options: Any) -> None:
            from importlib.metadata import version  # noqa: PLC0415

            print(f"port-server {version('port-server')}")  # noqa: T201
            parser.exit()

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="port-server", description=ABOUT, epilog=EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, run: Any, brief: str, about: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=brief, description=about, epilog=example, formatter_class=raw
        )
        command.set_defaults(run=run)
        return command

    add("serve", _serve, "answer requests on stdin and stdout", SERVE, SERVE_EXAMPLES)

    command = add(
        "eval", _eval, "evaluate Python, print the value as an Elixir term", EVAL, EVAL_EXAMPLES
    )
    command.add_argument("code", help="Python code; - reads it from standard input")
    command.add_argument(
        *("--global", "-g"),
        dest="globals",
        action="append",
        default=[],
        metavar="NAME=TERM",
        help="a name the code finds, with an Erlang term as its value; may be repeated",
    )
    command.add_argument("--erlang", action="store_true", help="print an Erlang term instead")

    command = add("repl", _repl, "a Python prompt that answers in Elixir terms", REPL, REPL_EXAMPLE)
    command.add_argument("--erlang", action="store_true", help="print Erlang terms instead")

    add("encode", _encode, "Erlang terms on stdin -> frames on stdout", ENCODE, ENCODE_EXAMPLES)

    command = add("decode", _decode, "frames on stdin -> terms on stdout", DECODE, DECODE_EXAMPLES)
    command.add_argument("--elixir", action="store_true", help="print Elixir terms instead")

    add("doctor", _doctor, "check this installation, and say what to do", DOCTOR, DOCTOR_EXAMPLE)
    return parser
