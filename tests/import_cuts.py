# ruff: noqa: T201  a program that prints
"""Cancel a request at a random moment of its first import, and check that the package works then.

Usage: PYTHONPATH=. python tests/import_cuts.py CUTS PACKAGE[=CHECK] ...

Runs in the Python that has the packages (and pytest). CHECK is an expression that uses the package;
by default its name. Each cut has a server of its own. Prints a line for each package; exits with 1
where an import was broken.
"""

import random
import sys
import time

from port_server.etf import Atom
from tests.port_client import Client

# Beyond this an import that was let go on has not ended.
PATIENCE_S = 120


def duration_s(package):
    """Give how long the import takes in a server, from the request to the reply."""
    with Client() as client:
        began = time.monotonic()
        reply = client.reply(client.send_eval(f"import {package}"), PATIENCE_S)
        assert reply[0] == "ok", reply
        return time.monotonic() - began


def cut(package, check, after_s):
    """Cancel the import after that time; give how it ended, and what a later use says."""
    with Client() as client:
        request = client.send_eval(f"import {package}")
        time.sleep(after_s)
        client.tell(Atom("cancel"), request)
        first = client.reply(request, PATIENCE_S)
        locked = client.reply(client.send_eval("import _imp; _imp.lock_held()"), PATIENCE_S)
        then = client.reply(
            client.send_eval(f"import {package}; ({check}) is not None"), PATIENCE_S
        )
        return first[0], locked[2] is False and then[0] == "ok", then


def main():
    """Cut as often as was asked, spread over the packages."""
    cuts = int(sys.argv[1])
    packages = [argument.partition("=")[::2] for argument in sys.argv[2:]]
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    print(f"seed {seed}")
    broken = 0
    for package, check in packages:
        usual_s = duration_s(package)
        outcomes = []
        for _ in range(cuts // len(packages)):
            after_s = dice.random() * usual_s
            first, well, then = cut(package, check or package, after_s)
            outcomes.append((first, well))
            if not well:
                message = then[2].get("message") if then[0] == "error" else then
                print(f"  {package} cut after {after_s * 1000:.0f} ms: {message!r:.300}")
        bad = sum(not well for _, well in outcomes)
        ended = sum(first == "error" for first, _ in outcomes)
        broken += bad
        print(
            f"{package}: {len(outcomes)} cuts of {usual_s * 1000:.0f} ms, "
            f"{ended} cancelled, {bad} broken",
            flush=True,
        )
    return broken > 0


if __name__ == "__main__":
    sys.exit(main())
