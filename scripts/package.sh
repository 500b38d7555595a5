#!/bin/sh
# Lays out the Hex package in build/package: the client with files in place of the links of this repository. Where Hex is
# installed, it is packed there and its documentation is built. With an argument, it is laid out in that new directory,
# and that is all.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

out=${1:-$project/build/package}
[ -n "${1:-}" ] || rm -rf "$out"
mkdir -p "$(dirname "$out")"
mkdir "$out"
cd "$project/elixir_client"
cp -RL mix.exs .formatter.exs README.md CHANGELOG.md LICENSE lib examples priv docs notebooks "$out/"
# The package lists its files by their endings; a wheel is of one platform.
find "$out" \( -name '*.so' -o -name _stub -o -name __pycache__ -o -name wheels \) -prune -exec rm -rf {} +
[ -z "${1:-}" ] || exit 0

say "The package is laid out in $out"
cd "$out"
if ! runs mix help hex.build; then
    warn "Hex is not installed (mix local.hex), so there is no archive and no documentation"
    exit 0
fi
unset HEX_OFFLINE
mix hex.build
export MIX_ENV="docs"
mix deps.get
mix docs
