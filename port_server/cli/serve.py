"""`serve`: answer requests on standard input and output; the command that a BEAM starts."""

from __future__ import annotations

import os
import sys

from port_server.cli import MISUSED

SERVE = """\
Answer requests in frames on standard input and output, until the input ends.

This is what Elixir and Erlang start; a person pipes into it:"""

SERVE_EXAMPLES = """\
  echo '{eval, <<"1">>, #{}, <<"1 + 1">>, #{}}.' |
    port-server encode | port-server serve | port-server decode

From Elixir, {PyPort.Server, name: Solo} in a supervision tree starts it. From plain Erlang:

  Port = open_port({spawn_executable, os:find_executable("port-server")},
                   [{args, ["serve"]}, {packet, 4}, binary, exit_status]),
  port_command(Port, term_to_binary({eval, <<"1">>, #{}, <<"1 + 1">>, #{}}))."""

SERVE_ON_A_TERMINAL = f"""\
port-server serve talks to a program, not to a person: it reads frames (a four-byte length, then
one External Term Format term) on its standard input, which is a terminal now. By hand:

{SERVE_EXAMPLES}

To try Python here, there are `port-server eval '1 + 1'` and `port-server repl`."""


def run_serve() -> int:
    """Serve the program at the other end of stdin and stdout; tell a person how it is used."""
    if os.isatty(0):
        sys.stderr.write(SERVE_ON_A_TERMINAL + "\n")
        return MISUSED
    from port_server.server.app import serve  # noqa: PLC0415 - not needed on a terminal

    status: int = serve()
    return status
