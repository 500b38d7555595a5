"""The same through C code, and with the limit out of the way."""

import sys

sys.setrecursionlimit(2**31 - 1)


def down(n):
    return list(map(down, [n + 1]))


down(0)
