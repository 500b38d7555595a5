#!/bin/sh
# Formats, lints, and runs the tests that need no waiting, both suites side by side. `make test` has the others.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

failed=
cd "$project"
say "Formatting"
ruff format --quiet .
(cd elixir_client && mix format)
sh scripts/lint.sh --quick || failed=" lint"

say "pytest and ExUnit"
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# Sleeps stand in the folders that are left out.
python -m pytest -q -m "not slow and not beam" --ignore=tests/integration --ignore=tests/faults --ignore=tests/documents \
    >"$said" 2>&1 </dev/null &
pytest=$!
cd elixir_client
MIX_ENV="test" mix test --exclude slow --only fast </dev/null || failed="$failed ExUnit"
wait "$pytest" || failed="$failed pytest"
cat "$said"

[ -z "$failed" ] || die "failed:$failed"
say "All of the fast checks passed"
