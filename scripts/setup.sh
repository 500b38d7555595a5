#!/bin/sh
# Gets this clone ready to run: uv, the Python environment, Elixir, and a C compiler where one comes free.
# Does only what is missing, says each step in one line, and needs Python 3.11+ and a way to PyPI and Debian.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

uv_settings
# uv warns about one that is not the project's.
unset VIRTUAL_ENV

oldest_python=3.11
oldest_elixir=1.14.0
# Dependency groups are locked and synced from here on.
oldest_uv=0.5.0

at_least() { # at_least WANTED FOUND
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

uv_is_good() {
    uv_version=$("$1" --version 2>/dev/null </dev/null) || return 1
    uv_version=${uv_version#uv }
    at_least "$oldest_uv" "${uv_version%% *}"
}

find_uv() {
    if have uv && uv_is_good uv; then
        uv=$(command -v uv)
    elif uv_is_good "$cache/bin/uv"; then
        uv=$cache/bin/uv
    else
        return 1
    fi
}

find_python3() {
    have python3 && return
    can_install || die "Python is missing: install Python $oldest_python or newer (Debian: apt-get install python3)"
    say "Installing Python from Debian's packages"
    apt_install python3 || die "apt-get could not install python3; what it said stands above"
}

install_uv() {
    find_python3
    mkdir -p "$cache/bin"
    rm -rf "$cache/uv"
    if runs python3 -c 'import ensurepip, venv'; then
        uv_with_venv python3
    elif runs python3 -m pip --version; then
        say "Installing uv from PyPI with pip, privately under $cache"
        quietly python3 -m pip install --no-input --upgrade --target "$cache/uv" uv || uv_is_out_of_reach
    elif can_install; then
        say "Installing python3-venv from Debian's packages"
        apt_install python3-venv ca-certificates ||
            die "apt-get could not install python3-venv; what it said stands above"
        uv_with_venv /usr/bin/python3
    else
        die "uv is missing and this Python has no pip: install uv, or as root: apt-get install python3-venv"
    fi
    ln -sf "$cache/uv/bin/uv" "$cache/bin/uv"
    find_uv || die "uv was installed under $cache/uv but does not run here; install uv by hand"
}

uv_with_venv() {
    say "Installing uv from PyPI, privately under $cache"
    quietly "$1" -m venv "$cache/uv" || die "python3 -m venv failed; what it said stands above"
    quietly "$cache/uv/bin/python" -m pip install --no-input uv || uv_is_out_of_reach
}

uv_is_out_of_reach() {
    die "uv could not be fetched from PyPI (what pip said stands above): check the network, or install uv by hand"
}

# The native codec is a luxury: without compiler or headers the build leaves it out and the fallback answers.
native_wanted() { [ -f "$project/setup.py" ]; }

native_possible() {
    { have cc || have gcc; } && runs "$python" -c \
        'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}

install_compiler() {
    if native_possible || ! can_install; then return 0; fi
    # Headers come with every Python except Debian's own.
    case $(readlink -f "$python") in
    /usr/bin/*) headers=python3-dev ;;
    *) headers= ;;
    esac
    say "Installing a C compiler from Debian's packages, for the native codec"
    # shellcheck disable=SC2086  # nothing or one word
    apt_install gcc libc6-dev $headers || warn "no C compiler; the slower codec in Python will do"
}

python_key() {
    echo "${UV_PYTHON:-}"
    if native_wanted; then command -v cc gcc || true; fi
    {
        cd "$project"
        cat pyproject.toml uv.lock
        if native_wanted; then
            # The names are part of the key: a moved source is a changed one, and a built library may get lost.
            find setup.py port_server \( -name setup.py -o -name '*.[ch]' \) -print -exec cat {} +
            find port_server -name '*.so' -print
        fi
    } | cksum
}

sync_python() {
    if [ -x "$project/.venv/bin/python" ] && stamp_is python "$(python_key)"; then return; fi
    find_uv || install_uv
    python=$(cd "$project" && "$uv" python find "${UV_PYTHON:->=$oldest_python}" 2>/dev/null) || {
        find_python3
        python=$("$uv" python find "${UV_PYTHON:->=$oldest_python}" 2>/dev/null) ||
            die "no Python $oldest_python or newer here: install one (Debian 12 and newer: apt-get install python3)"
    }
    if native_wanted; then
        install_compiler
        # When a build fails, the library of an older source must not answer in its place.
        find "$project/port_server" -name '*.so' -exec rm -f {} +
    fi
    say "Building the Python environment in .venv (uv sync --locked)"
    # On a terminal uv shows its progress; in a log only what went wrong is worth a line.
    if [ -t 2 ]; then quiet=; else quiet=--quiet; fi
    # uv keeps what it once built, but here C sources or the compiler may be what changed.
    # shellcheck disable=SC2086  # nothing or one word
    (cd "$project" && "$uv" sync --locked $quiet --reinstall-package port-server) ||
        die "uv sync failed; what it said stands above"
    if native_wanted; then say_codec; fi
    stamp python "$(python_key)"
}

say_codec() {
    codec=$("$project/.venv/bin/python" -c 'from port_server.etf import codec_name; print(codec_name)' 2>&1) ||
        { warn "the codec does not load: $(printf '%s\n' "$codec" | tail -n 1)"; return 0; }
    case $codec in
    native) ;;
    *) if native_possible; then
        warn "the native codec did not build, the slower one in Python answers; see: $uv sync --reinstall-package port-server -v"
    else
        warn "no C compiler or no Python headers: the slower codec in Python answers (Debian: apt-get install gcc libc6-dev python3-dev)"
    fi ;;
    esac
}

# Exit status 0: fine, 3: too old, anything else: none that runs.
elixir_probe() {
    ELIXIR_ERL_OPTIONS='+fnu' elixir -e '
        unless Version.match?(System.version(), ">= '"$oldest_elixir"'"), do: System.halt(3)
    ' >/dev/null 2>&1 </dev/null
}

elixir_key() {
    have elixir || return 0
    command -v elixir erl
    ls -lL "$(command -v elixir)"
}

find_elixir() {
    if have elixir && stamp_is elixir "$(elixir_key)"; then return; fi
    elixir_status=0
    { have elixir && have mix && elixir_probe; } || elixir_status=$?
    if [ "$elixir_status" -ne 0 ] && can_install; then
        say "Installing Elixir from Debian's packages"
        apt_install elixir erlang-dev erlang-eunit ||
            die "apt-get could not install elixir; what it said stands above"
        elixir_status=0
        elixir_probe || elixir_status=$?
    fi
    case $elixir_status in
    0) stamp elixir "$(elixir_key)" ;;
    3) die "this Elixir is too old: install Elixir $oldest_elixir or newer" ;;
    *) die "Elixir is missing: install Elixir $oldest_elixir or newer (Debian, as root: apt-get install elixir erlang-dev erlang-eunit)" ;;
    esac
}

sync_python
find_elixir
