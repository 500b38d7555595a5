#!/bin/sh
# The codec against msgspec, pickle, marshal, orjson, erlang-py and erlpack, on the Python of the
# environment. Arguments go to benchmarks/codec/bench.py: --check, --only NAME, --rounds N.
set -eu
cd "$(dirname "$0")/.."
uv sync --quiet --group bench
exec uv run --no-sync python benchmarks/codec/bench.py "$@"
