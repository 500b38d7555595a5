"""Imports a module that takes longer than its caller has time."""

import sys
import types


class Finder:
    """Finds one module, which takes two thirds of a second."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "slow_to_import":
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, Finder)
        return None

    @staticmethod
    def create_module(spec):
        return types.ModuleType(spec.name)

    @staticmethod
    def exec_module(module):
        import time

        end = time.monotonic() + 0.66
        while time.monotonic() < end:
            pass
        module.value = 7


sys.meta_path.append(Finder)
import slow_to_import  # noqa: E402
