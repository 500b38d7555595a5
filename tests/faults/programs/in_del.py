"""Loops where exceptions are swallowed."""


class Clingy:
    def __del__(self):
        while True:
            pass


clingy = Clingy()
del clingy
