"""How the C extension is built; everything else stands in pyproject.toml.

Optional: where there is no compiler the install succeeds without it, and erlang-py does the work.
"""

import sysconfig

from setuptools import Extension, setup

# One binary for CPython 3.11 and all later ones. Free-threaded builds have no stable ABI (yet).
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "port_server.etf.native",
            ["port_server/etf/native.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if STABLE_ABI else [],
            py_limited_api=STABLE_ABI,
            extra_compile_args=["-O3", "-g0", "-fno-plt", "-fvisibility=hidden"],
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
