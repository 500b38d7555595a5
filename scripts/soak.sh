#!/bin/sh
# Good and bad requests of many callers, with servers killed at random, for SOAK_SECONDS (180 by default).
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

cd "$project/elixir_client"
export MIX_ENV="test"
exec mix run -e "Logger.configure(level: :none); PyPort.Test.Soak.main(${SOAK_SECONDS:-180})"
