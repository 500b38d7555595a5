"""Computes in Python, for ever."""


def spin():
    while True:
        pass


spin()
