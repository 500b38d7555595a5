"""How the C extensions are built; everything else stands in pyproject.toml.

Optional: where there is no compiler the install succeeds without them. Then erlang-py does the work
of the codec, the general path that of the plain request, and the kernel that of the watch, as far
as it can.
"""

import sysconfig

from setuptools import Extension, setup

# One binary for CPython 3.11 and all later ones. Free-threaded builds have no stable ABI (yet).
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


def extension(name: str, source: str) -> Extension:
    """Describe one that is a single file."""
    return Extension(
        name,
        [source],
        depends=["port_server/etf/native.h"],
        define_macros=[("Py_LIMITED_API", "0x030b0000")] if STABLE_ABI else [],
        py_limited_api=STABLE_ABI,
        extra_compile_args=["-O3", "-g0", "-fno-plt", "-fvisibility=hidden", "-pthread"],
        optional=True,
    )


setup(
    ext_modules=[
        extension("port_server.etf.native", "port_server/etf/native.c"),
        extension("port_server.server._plain", "port_server/server/plain.c"),
        extension("port_server.server._watch", "port_server/server/watch.c"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
