#!/bin/sh
# Formats, lints, and runs the tests that need no waiting; pytest runs beside all the rest. `make test` has the others.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

failed=
cd "$project"
say "Formatting"
ruff format --quiet .
(cd elixir_client && mix format)

said=$(mktemp)
trap 'rm -f "$said"' EXIT
# Most tests of these files start a Python process of their own.
python -m pytest -q -m "not slow and not beam" tests/benchmarks tests/etf tests/house tests/layering tests/protocol \
    tests/runtime tests/server --ignore=tests/server/test_asyncio_executor.py --ignore=tests/server/test_threads.py \
    --ignore=tests/server/test_reader.py --ignore=tests/server/test_calls.py --ignore=tests/server/test_streams.py \
    >"$said" 2>&1 </dev/null &
pytest=$!
sh scripts/lint.sh --quick || failed=" lint"

say "pytest and ExUnit"
cd elixir_client
# Modules that are not async measure, or change what all share.
MIX_ENV="test" mix test --exclude slow --exclude waits --exclude async:false test </dev/null || failed="$failed ExUnit"
wait "$pytest" || failed="$failed pytest"
cat "$said"

[ -z "$failed" ] || die "failed:$failed"
say "All of the fast checks passed"
