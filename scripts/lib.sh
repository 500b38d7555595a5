# shellcheck shell=sh
# Functions that the scripts of this directory share: paths, messages, apt.
# Sourced, never run; it does not change the machine by itself.

# CDPATH would make `cd` print where it went.
unset CDPATH
project=$(cd "$(dirname "$0")/.." && pwd)

# Containers and cron jobs may have no HOME, which pip, uv and the BEAM all want.
if [ -z "${HOME:-}" ]; then
    HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
    export HOME
fi

# Outside the clone, so that it outlives it: a private uv, the Debian roots.
# shellcheck disable=SC2034  # used by those who source this
cache=${PYPORT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pyport}

# Inside the clone, because it records the steps done for this clone.
stamps=$project/.cache/stamps

say() { printf '==> %s\n' "$*"; }

warn() { printf '==> note: %s\n' "$*" >&2; }

die() {
    printf '==> %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# A pyenv or asdf shim is on the PATH even if no version is chosen for it: only a run of it shows that.
runs() { "$@" >/dev/null 2>&1 </dev/null; }

# How uv behaves in this project, wherever it is called from.
uv_settings() {
    export UV_PROJECT_ENVIRONMENT="$project/.venv"
    # PyPort uses the Python of the user, so uv must not download one.
    export UV_PYTHON_DOWNLOADS=never
    # uv trusts a list of its own; behind a proxy that inspects TLS only the system's knows the proxy.
    # Two names, because uv has renamed it.
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-1}"
    fi
}

# Keeps the output of a chatty command for the day it fails.
quietly() {
    quietly_log=$(mktemp)
    if "$@" >"$quietly_log" 2>&1 </dev/null; then
        rm -f "$quietly_log"
    else
        quietly_status=$?
        tail -n 25 "$quietly_log" >&2
        rm -f "$quietly_log"
        return "$quietly_status"
    fi
}

can_install() { [ "$(id -u)" -eq 0 ] && have apt-get && [ -e /etc/debian_version ]; }

# Installs Debian packages; only to be called where can_install holds.
apt_lists_are_fresh=
apt_install() {
    # A stale index names versions that the mirror no longer has, and an empty one names nothing.
    if [ -z "$apt_lists_are_fresh" ]; then
        quietly apt-get -o DPkg::Lock::Timeout=300 update ||
            warn "apt-get update failed; trying with the package lists that are here"
        apt_lists_are_fresh=yes
    fi
    DEBIAN_FRONTEND=noninteractive quietly apt-get -o DPkg::Lock::Timeout=300 \
        install --yes --no-install-recommends "$@"
}

# A step that was done is remembered by what it depended on: `stamp_is NAME KEY`, `stamp NAME KEY`.
stamp_is() { [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]; }

stamp() {
    mkdir -p "$stamps"
    printf '%s\n' "$2" >"$stamps/$1.$$"
    mv "$stamps/$1.$$" "$stamps/$1"
}
