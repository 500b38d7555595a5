#!/bin/sh
# Removes what the other scripts and the tools they run have built; with --cache, what they keep outside the clone.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

if [ "${1:-}" = --cache ]; then
    say "Removing uv and the Debian roots from $cache"
    # By name, because PYPORT_CACHE may name a place that is shared; and nothing that is mounted there.
    rm -rf --one-file-system "${cache:?}/uv" "${cache:?}/bin" "$cache/debian"
    rmdir "$cache" 2>/dev/null || true
    exit
fi

say "Removing build products"
cd "$project"
rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis ./*.egg-info
rm -rf elixir_client/_build elixir_client/cover elixir_client/tmp elixir_client/priv/wheels elixir_client/erl_crash.dump
find port_server tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
find port_server \( -name '*.so' -o -name _stub \) -type f -exec rm -f {} +
