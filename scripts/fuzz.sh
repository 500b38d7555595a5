#!/bin/sh
# The C under sanitizers. First the tests of the codec with AddressSanitizer and UBSan (gcc or clang), then
# whole conversations with a server (tests/fuzz/conversations.py), then a coverage-guided run of the codec
# with libFuzzer (clang and its libFuzzer: Debian's clang-14, libclang-rt-14-dev), then its property tests
# and its leak test at length.
#
#     scripts/fuzz.sh [SECONDS of libFuzzer, and as many of conversations; default 300]
#
# Findings are left in build/fuzz/findings; `build/fuzz/harness FILE` replays one of the codec's.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-300}
python=${PYTHON:-$(command -v .venv/bin/python || command -v python3)}
out=$PWD/build/fuzz
rm -rf "$out/port_server"
mkdir -p "$out/corpus" "$out/findings"
cp -r port_server "$out/port_server"
find "$out/port_server" -name '*.so' -delete

config() { "$python" -c "import sysconfig; print(sysconfig.get_config_var('$1') or '')"; }
include=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
native="$out/port_server/etf/native.abi3.so"
flags="-g -O1 -fno-omit-frame-pointer -fPIC -shared -DPy_LIMITED_API=0x030b0000 -I$include"
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined"

# Python keeps small objects in pools of its own and many for ever; both would hide or drown findings.
export PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1

echo "fuzz: the tests under AddressSanitizer and UBSan"
cc=${CC:-gcc}
# shellcheck disable=SC2086
"$cc" $flags $sanitize port_server/etf/native_*.c -o "$native"
sanitizers="$("$cc" -print-file-name=libasan.so) $("$cc" -print-file-name=libubsan.so)"
LD_PRELOAD=$sanitizers \
    PYTHONPATH="$out" ETF_NATIVE_IN="$out" "$python" -P -m pytest -q tests/etf -p no:cacheprovider -m "not beam" \
    -k "not fallback and not leaks and not build and not million and not lying and not not_copied and not speed"

echo "fuzz: $seconds s of conversations with a server"
for name in fast watch; do
    # shellcheck disable=SC2086
    "$cc" $flags $sanitize -pthread "port_server/server/$name.c" -o "$out/port_server/server/_$name.abi3.so"
done
LD_PRELOAD=$sanitizers PYTHONPATH="$out" PYTHONSAFEPATH=1 "$python" tests/fuzz/conversations.py "$seconds"

clang=$(command -v clang || command -v clang-19 || command -v clang-14 || true)
if [ -n "$clang" ]; then
    echo "fuzz: $seconds s of libFuzzer"
    # shellcheck disable=SC2086
    "$clang" $flags $sanitize -fsanitize=fuzzer-no-link port_server/etf/native_*.c -o "$native"
    library=$(config LIBDIR)
    # shellcheck disable=SC2086,SC2046
    "$clang" -g -O1 -I"$include" tests/fuzz/harness.c -o "$out/harness" -rdynamic \
        -fsanitize=fuzzer,address,undefined -L"$library" -Wl,-rpath,"$library" \
        -lpython"$(config LDVERSION)" $(config LIBS)
    # The seeds are written by the ordinary build: a sanitized module needs the harness around it.
    PYTHONPATH=tests/fuzz PYTHONMALLOC=default "$python" tests/fuzz/check.py seeds "$out/corpus"
    PYTHONHOME=$("$python" -c "import sys; print(sys.base_prefix)") \
        PYTHONPATH="$out:$PWD/tests/fuzz:$site" PYTHONDONTWRITEBYTECODE=1 \
        "$out/harness" "$out/corpus" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 \
        -max_len=4096 -artifact_prefix="$out/findings/" -print_final_stats=1
else
    echo "fuzz: no clang on the PATH, so no libFuzzer run (Debian: clang-14, libclang-rt-14-dev)" >&2
fi

echo "fuzz: the property tests and the leak test at length"
unset PYTHONMALLOC ASAN_OPTIONS
ETF_LONG=1 "$python" -m pytest -q tests/etf/test_properties.py tests/etf/test_hostile.py
