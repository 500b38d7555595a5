"""Computes in C, for hours, and lets nobody else at the interpreter."""


def heavy():
    return sum(range(10**12))


heavy()
