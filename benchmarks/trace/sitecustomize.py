"""Has a server run the plain.c that leaves marks; Python itself imports this from $PYTHONPATH.

`_plain`, from the same path, is what traced.py has built. It takes the place of the installed one
before anybody asks for that.
"""

import sys

import _plain

sys.modules["port_server.server._plain"] = _plain
