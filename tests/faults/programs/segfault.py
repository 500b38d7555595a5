"""Reads the address 0."""

import ctypes


def crash():
    ctypes.string_at(0)


crash()
