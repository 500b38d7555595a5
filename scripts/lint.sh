#!/bin/sh
# Runs every check that needs no running code, all of them to their end, and fails if any did.
# `--quick` compiles only what has changed.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

case ${1:-} in
--quick) force= ;;
*) force=--force ;;
esac
failed=
check() {
    check_name=$1
    shift
    say "$check_name"
    "$@" </dev/null || failed="$failed, $check_name"
}

cd "$project"
check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "clang-format" find port_server elixir_client/c_src benchmarks tests -name '*.[ch]' -exec clang-format --dry-run --Werror {} +
check "shellcheck" shellcheck --external-sources scripts/*.sh .ci/run
# Add tests once they are clean.
check "prose" python scripts/prose.py port_server elixir_client/lib elixir_client/examples elixir_client/priv/package scripts benchmarks \
    README.md CHANGELOG.md docs/*.md notebooks/*.livemd

cd "$project/elixir_client"
check "mix format" mix format --check-formatted
# Forced, because a warning in a file that is compiled already is not repeated.
# shellcheck disable=SC2086  # nothing or one word
check "mix compile (dev)" env MIX_ENV=dev mix compile $force --warnings-as-errors
# shellcheck disable=SC2086  # nothing or one word
check "mix compile (test)" env MIX_ENV=test mix compile $force --warnings-as-errors

[ -z "$failed" ] || die "failed: ${failed#, }"
say "All checks passed"
