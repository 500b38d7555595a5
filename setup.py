"""How the C extensions are built; everything else stands in pyproject.toml.

Optional: where there is no compiler the install succeeds without them. Then erlang-py does the work
of the codec, the general path that of the plain request, and the kernel that of the watch, as far
as it can.
"""

import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

# One binary for CPython 3.11 and all later ones. Free-threaded builds have no stable ABI, and would
# turn the GIL on again for an extension that relies on it: they run the same in Python.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

HEADERS = ["native.h", "native_cache.h", "native_internal.h"]
CODEC = ["native_failure.c", "native_module.c", "native_reader.c", "native_writer.c"]
# Functions begin on cache lines, so that a change in one does not move the loops of the others
# across them: the same loop varies by up to 10 % otherwise.
FLAGS = [*("-O3", "-g0", "-fno-plt", "-fvisibility=hidden", "-pthread"), "-falign-functions=64"]


def extension(name: str, *sources: str) -> Extension:
    """Describe one by its files."""
    return Extension(
        name,
        list(sources),
        depends=[f"port_server/etf/{header}" for header in HEADERS],
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        py_limited_api=True,
        extra_compile_args=FLAGS,
        optional=True,
    )


class Build(build_ext):
    """The extensions, and the program that `preload:` needs, beside `_watch`."""

    def run(self) -> None:
        super().run()
        if not self.extensions:
            return
        target = Path(self.get_ext_fullpath("port_server.server._watch")).with_name("_stub")
        try:
            objects = self.compiler.compile(["port_server/server/stub.c"], self.build_temp)
            self.compiler.link_executable(objects, target.name, output_dir=str(target.parent))
        except (CCompilerError, ExecError, PlatformError) as error:
            self.warn(f"building port_server/server/stub.c failed: {error}")


setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        extension("port_server.etf.native", *(f"port_server/etf/{name}" for name in CODEC)),
        extension("port_server.server._fast", "port_server/server/fast.c"),
        extension("port_server.server._watch", "port_server/server/watch.c"),
    ]
    if STABLE_ABI
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
