#!/bin/sh
# Runs both test suites, pytest and ExUnit, to their end, and fails if either did.
# Arguments for one of them come in PYTEST_ARGS and MIX_TEST_ARGS.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# A failing first suite must not hide what the second has to say.
failed=

log=$(mktemp)
trap 'rm -f "$log" "$log.status"' EXIT

# Runs a suite, and up to five red tests of it once more by themselves: many measure time, and a crowded machine makes them
# red. A test that is red twice is red; the output names each test that was red once.
#   twice NAME OPTION COMMAND...  With OPTION the command runs the tests that failed.
twice() {
    name=$1 option=$2
    shift 2
    { "$@" </dev/null 2>&1 && echo 0 >"$log.status" || echo 1 >"$log.status"; } | tee "$log"
    [ "$(cat "$log.status")" = 1 ] || return 0
    # "2 failed, 7 passed" of pytest, "9 tests, 2 failures" of ExUnit
    count=$(grep -aoE '[0-9]+ (failed|failures?|errors?)' "$log" | tail -n 1 | grep -oE '^[0-9]+' || true)
    if [ "${count:-99}" -ge 1 ] && [ "${count:-99}" -le 5 ]; then
        say "$name: what was red, once more ($count)"
        "$@" "$option" </dev/null && return 0
    fi
    failed="$failed $name"
}

say "pytest"
cd "$project"
# shellcheck disable=SC2086  # several words are meant
twice pytest --last-failed python -m pytest ${PYTEST_ARGS:-}

say "ExUnit (mix test)"
cd "$project/elixir_client"
export MIX_ENV=test
# shellcheck disable=SC2086  # several words are meant
twice ExUnit --failed mix test ${MIX_TEST_ARGS:-}

# The main features once more, on a Python that runs eight requests at once.
export PYPORT_TEST_THREADS=8
if [ -z "${PYTEST_ARGS:-}" ]; then
    say "pytest, with threads"
    cd "$project/tests/server"
    twice pytest-with-threads --last-failed python -m pytest -m "not main_thread" test_calls.py test_streams.py \
        test_contexts.py test_globals.py
fi
if [ -z "${MIX_TEST_ARGS:-}" ]; then
    say "ExUnit, with threads"
    cd "$project/elixir_client"
    features="callbacks callbacks/into_the_beam stream session object output server/async_delivery/logging request/globals request/timeout"
    # shellcheck disable=SC2046,SC2086  # several words are meant
    twice ExUnit-with-threads --failed mix test --exclude main_thread:true $(printf "test/py_port/%s_test.exs " $features)
fi

[ -z "$failed" ] || die "failed:$failed"
say "All tests passed"
