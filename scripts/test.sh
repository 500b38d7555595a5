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

# The main features once more, on a Python that runs eight requests at once.
export PYPORT_TEST_THREADS=8
if [ -z "${PYTEST_ARGS:-}" ]; then
    say "pytest, with threads"
    cd "$project/tests/server"
    python -m pytest -m "not main_thread" test_calls.py test_streams.py test_contexts.py test_globals.py </dev/null ||
        failed="$failed pytest-with-threads"
fi
if [ -z "${MIX_TEST_ARGS:-}" ]; then
    say "ExUnit, with threads"
    cd "$project/elixir_client"
    features="callbacks callbacks/into_the_beam stream session object output server/async_delivery/logging request/globals request/timeout"
    # shellcheck disable=SC2046,SC2086  # several words are meant
    MIX_ENV="test" mix test --exclude main_thread:true $(printf "test/py_port/%s_test.exs " $features) </dev/null ||
        failed="$failed ExUnit-with-threads"
fi

[ -z "$failed" ] || die "failed:$failed"
say "All tests passed"
