#!/bin/sh
# Measures PyPort against bare ports, with an installed wheel and with numpy, pandas and pyarrow. The arguments are those of
# benchmarks/bench.py. Writes .cache/bench/result.json.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

bench=$project/.cache/bench
cd "$project"
say "Installing a wheel, with numpy, pandas and pyarrow, in .cache/bench/venv"
# Its own environment: an editable install starts slower, and .venv is other people's.
UV_PROJECT_ENVIRONMENT="$bench/venv" uv sync --quiet --locked --no-editable --compile-bytecode \
    --no-default-groups --group bench --group examples --group tables --reinstall-package port-server
export PYPORT_PYTHON="$bench/venv/bin/python"
python benchmarks/bench.py --json "$bench/result.json" "$@"
case " $* " in *" --only "*) exit 0 ;; esac
say "preload (with the numpy and pandas of .venv)"
cd elixir_client
PYPORT_PYTHON="$project/.venv/bin/python" MIX_ENV=prod mix run ../benchmarks/beam/preload.exs
