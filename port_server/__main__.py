"""`python -m port_server`: the same as the command `port-server`; everything else is in `cli`."""

import sys

from port_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
