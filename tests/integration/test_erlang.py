"""The module `py_port` from a plain `erl`, with nothing but directories on its code path."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "elixir_client"

pytestmark = pytest.mark.skipif(shutil.which("erl") is None, reason="there is no Erlang here")

PROGRAM = """
ok = py_port:start(),
{ok, 6} = py_port:eval("sum(xs)", [{xs, [1, 2, 3]}]),
{ok, 3.0} = py_port:call(math, sqrt, [9.0]),
{error, #{kind := python, message := M}} = py_port:eval("1 / 0"),
{ok, 6} = py_port:fold(fun(N, S) -> N + S end, 0, py_port:stream("yield from range(4)", #{}, #{})),
io:format("~ts", [M]),
halt(0).
"""


def test_an_erlang_program_evaluates_python():
    libs = subprocess.run(
        ["elixir", "-e", 'IO.puts(Path.expand("..", :code.lib_dir(:elixir)))'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run(
        ["mix", "compile"], cwd=CLIENT, env={**os.environ, "MIX_ENV": "prod"}, check=True
    )
    erl_libs = f"{CLIENT}/_build/prod/lib:{libs}"
    env = {**os.environ, "ERL_LIBS": erl_libs, "PYPORT_PYTHON": sys.executable}
    done = subprocess.run(
        ["erl", "-noshell", "-eval", PROGRAM.replace("\n", " ")],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("ZeroDivisionError: division by zero")
