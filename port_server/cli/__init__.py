"""The command line: finds the command, and gives its exit status.

`serve` is recognised before argparse or another slow module is imported, because a BEAM waits for
it. The options of the commands are in `parser`; each command has a module of its own, which is
imported when the command runs: `encode` needs no runtime, `eval` no subprocess module.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OK = 0
FAILED = 1
MISUSED = 2  # what argparse exits with, too
INTERRUPTED = 128 + 2  # as a shell reports SIGINT
PIPE_CLOSED = 128 + 13  # as a shell reports SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["serve"]:
        return _serve()
    try:
        from port_server.cli.parser import dispatch  # noqa: PLC0415 - see the top of the file

        return dispatch(given)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ImportError, AttributeError) as error:
        from port_server.runtime import shadows  # noqa: PLC0415 - see the top of the file

        shadows.explain(error)
        raise
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does: this is no error. The interpreter
        # flushes stdout once more at its end, so stdout must lead to /dev/null.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        return PIPE_CLOSED


def _serve() -> int:
    from port_server.cli.serve import run_serve  # noqa: PLC0415 - see the top of the file

    return run_serve()
