#!/bin/sh
# Runs a command in the project's environment: its Python first on the PATH, UTF-8, no downloads.
# Expects scripts/setup.sh to have run; installs nothing.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

uv_settings
export VIRTUAL_ENV="$project/.venv"
# A private uv stands last, so that the uv of the machine is preferred.
export PATH="$VIRTUAL_ENV/bin:$PATH:$cache/bin"
# The Python that PyPort starts by default.
export PYPORT_PYTHON="$VIRTUAL_ENV/bin/python"

# Elixir warns, and garbles what it prints, under a locale that is not UTF-8; minimal systems have none at all.
case $(locale charmap 2>/dev/null) in
UTF-8) ;;
*) export LC_ALL=C.UTF-8 LANG=C.UTF-8 ;;
esac
export ELIXIR_ERL_OPTIONS="${ELIXIR_ERL_OPTIONS:-} +fnu"
# There is nothing to fetch; should Mix ever think so, it must fail instead of asking.
export HEX_OFFLINE=1

exec "$@"
