#!/bin/sh
# Runs both test suites, pytest and ExUnit, to their end, and fails if either did.
# Arguments for one of them come in PYTEST_ARGS and MIX_TEST_ARGS.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# A failing first suite must not hide what the second has to say.
failed=

say "pytest"
cd "$project"
# shellcheck disable=SC2086  # several words are meant
python -m pytest ${PYTEST_ARGS:-} </dev/null || failed="$failed pytest"

say "ExUnit (mix test)"
cd "$project/elixir_client"
# shellcheck disable=SC2086  # several words are meant
MIX_ENV="test" mix test ${MIX_TEST_ARGS:-} </dev/null || failed="$failed ExUnit"

[ -z "$failed" ] || die "failed:$failed"
say "All tests passed"
