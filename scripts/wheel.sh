#!/bin/sh
# Builds the wheel of the port server for this platform into elixir_client/priv/wheels, where the client looks for one
# when it installs the server into an environment. One binary serves CPython 3.11 and every later one. The name of its
# directory is the client's: the source that it was built from, and the platform.
# An argument names another directory than that.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

wheels=${1:-$project/elixir_client/priv/wheels}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
trap 'exit 130' INT TERM

say "Building the wheel for this platform"
cd "$project"
# From a copy: what an earlier build has left in build/ would be packed, too.
mkdir "$out/source"
cp -R pyproject.toml setup.py README.md LICENSE port_server "$out/source/"
find "$out/source" \( -name '*.so' -o -name _stub -o -name __pycache__ \) -prune -exec rm -rf {} +
quietly uv build --wheel --python "$VIRTUAL_ENV/bin/python" --out-dir "$out" "$out/source" ||
    die "uv build failed; what it said stands above"
wheel=$(find "$out" -maxdepth 1 -name '*.whl')
# An optional extension succeeds without a compiler; a wheel without its binary is of no use to anybody.
python - "$wheel" <<'CHECK' || die "the wheel has no binary in it: install gcc and Python's headers"
import sys, zipfile
sys.exit(not any(name.endswith(".so") for name in zipfile.ZipFile(sys.argv[1]).namelist()))
CHECK
directory=$wheels/$(cd elixir_client && mix run --no-start -e 'IO.puts(PyPort.Env.Package.directory())' | tail -n 1)
rm -rf "$wheels"
mkdir -p "$directory"
mv "$wheel" "$directory/"
say "$directory/$(basename "$wheel")"
