#!/bin/sh
# Runs every fault, and writes what the cases have measured into docs/reliability.md.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

PYPORT_FAULTS=$(mktemp)
export PYPORT_FAULTS
trap 'rm -f "$PYPORT_FAULTS"' EXIT

cd "$project"
python -m pytest -q tests/faults tests/integration/test_pipes.py </dev/null
(cd elixir_client && MIX_ENV="test" mix test ../tests/faults </dev/null)
python scripts/faults_table.py "$PYPORT_FAULTS" docs/reliability.md
