"""Thinks that it is a script."""

import sys

sys.exit("that was all")
