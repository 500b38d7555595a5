#!/bin/sh
# Compiles the C for platforms that there is no machine of here, with zig's compiler. The headers of CPython are those of this
# one: with the stable ABI they are the same everywhere.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

cd "$project"
include=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
export ZIG_GLOBAL_CACHE_DIR="$project/.cache/zig" ZIG_LOCAL_CACHE_DIR="$project/.cache/zig"
UV_PROJECT_ENVIRONMENT="$project/.cache/cross" uv sync --quiet --locked --only-group cross
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=
for target in x86_64-macos aarch64-macos x86_64-linux-musl aarch64-linux-gnu aarch64-linux-musl; do
    say "$target"
    for file in port_server/etf/*.c port_server/server/*.c; do
        .cache/cross/bin/python -m ziglang cc -target "$target" -O2 -Wall -Wextra -Werror -Wno-unused-parameter \
            -Wno-missing-field-initializers -DPy_LIMITED_API=0x030b0000 -I"$include" -c "$file" -o "$out" ||
            failed="$failed $target:$file"
    done
done
[ -z "$failed" ] || die "not compiled without warnings:$failed"
say "All compiled"
