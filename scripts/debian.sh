#!/bin/sh
# Runs the project inside a Debian other than the machine's own; as root, with debootstrap.
#
#   debian.sh trixie    make lint test in Debian 13 (newer Python, Elixir and OTP), on a copy of this working tree
#   debian.sh sid       the same in Debian unstable, which has the newest Python, Elixir and OTP
#   debian.sh fresh     git clone, make demo, make test in a Debian 12 that has Python, make and git only
#
# PYPORT_CACHE says where the roots are kept, PYPORT_DEBIAN_MIRROR where packages come from.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

kept=$cache/debian
case ${1:-} in
trixie | sid)
    suite=$1
    packages=elixir,erlang-dev,erlang-eunit,python3,python3-venv,python3-dev,python3-pip,gcc,libc6-dev,make,git,ca-certificates
    ;;
fresh)
    suite=bookworm
    # Only these: the run shows that they are enough.
    packages=python3,make,git
    ;;
*) die "usage: debian.sh trixie | sid | fresh" ;;
esac
purpose=$1
root=$kept/$purpose

check_machine() {
    [ "$(id -u)" -eq 0 ] || die "this needs root (for chroot and mount): sudo make test-$purpose"
    if ! have debootstrap; then
        can_install || die "debootstrap is missing: install the package debootstrap"
        say "Installing debootstrap from Debian's packages"
        apt_install debootstrap || die "apt-get could not install debootstrap; what it said stands above"
    fi
    runs unshare --mount true ||
        die "this machine lets not even root mount anything (a container without CAP_SYS_ADMIN?)"
}

# Two runs at once would pull the root from under each other.
take_turns() {
    mkdir -p "$kept"
    exec 9>"$root.lock"
    flock --nonblock 9 || {
        say "Waiting for another make test-$purpose to end"
        flock 9
    }
}

build_root() {
    recipe="$suite $packages"
    if [ -f "$root/.recipe" ] && [ "$(cat "$root/.recipe")" = "$recipe" ]; then return; fi
    say "Building a Debian $suite root in $root (once, a few minutes)"
    rm -rf --one-file-system "$root" "$root.part"
    # In a mount namespace of its own, so that what debootstrap mounts goes away with it, however it ends.
    # shellcheck disable=SC2086  # nothing or one word
    quietly unshare --mount debootstrap --variant=minbase --include="$packages" \
        "$suite" "$root.part" ${PYPORT_DEBIAN_MIRROR:-} 9>&- ||
        die "debootstrap failed; what it said stands above"
    rm -f "$root.part"/var/cache/apt/archives/*.deb
    printf '%s\n' "$recipe" >"$root.part/.recipe"
    # Only a whole root ever has this name.
    mv "$root.part" "$root"
}

copy_working_tree() {
    say "Copying the working tree"
    rm -rf --one-file-system "$root/root/pyport"
    mkdir "$root/root/pyport"
    # .venv and _build stay here: they hold paths and binaries of this machine.
    # shellcheck disable=SC2016  # the inner shell's business
    git -C "$project" ls-files -z --cached --others --exclude-standard |
        (cd "$project" && xargs -0 sh -c \
            'for f; do if [ -e "$f" ] || [ -L "$f" ]; then printf "%s\0" "$f"; fi; done' sh) |
        tar --directory="$project" --null --no-recursion --files-from=- --create --file=- |
        tar --extract --no-same-owner --directory="$root/root/pyport"
}

bundle_commits() {
    [ -z "$(git -C "$project" status --porcelain)" ] ||
        warn "uncommitted changes here are not part of the clone"
    git -C "$project" bundle create --quiet "$root/root/pyport.bundle" HEAD
}

# Packages and PyPI must be reachable inside as they are outside; nothing else of the machine is.
lend_network() {
    for file in resolv.conf hosts; do
        if [ -e "/etc/$file" ]; then cat "/etc/$file" >"$root/etc/$file"; fi
    done
    ca=${SSL_CERT_FILE:-${PIP_CERT:-${REQUESTS_CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}}}
    # Beside the place of Debian's own bundle, which installing ca-certificates writes anew.
    if [ -f "$ca" ]; then cat "$ca" >"$root/etc/host-ca.pem"; fi
}

enter() { # enter COMMAND: as sh -c COMMAND inside the root, with an environment of its own
    set -- chroot "$root" /bin/sh -c "$1"
    set -- HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    if [ -f "$root/etc/host-ca.pem" ]; then
        for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO; do
            set -- "$name=/etc/host-ca.pem" "$@"
        done
    fi
    # Of PIP_* and UV_* only what cannot name a path of this machine.
    for name in TERM CI PYTEST_ARGS MIX_TEST_ARGS \
        http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY \
        PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT PIP_RETRIES \
        UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_INSECURE_HOST \
        UV_HTTP_TIMEOUT UV_NATIVE_TLS UV_SYSTEM_CERTS; do
        eval "value=\${$name-}"
        # shellcheck disable=SC2154  # the eval above
        if [ -n "$value" ]; then set -- "$name=$value" "$@"; fi
    done
    rm -rf --one-file-system "$root/tmp"
    mkdir -m 1777 "$root/tmp"
    # Mounts and processes live in namespaces that end with their first process: nothing stays behind, neither
    # after a failure nor after Ctrl-C. That process is a shell to the end, because it buries orphans; make as
    # process 1 would leave them as zombies, and the tests look for survivors.
    # shellcheck disable=SC2016  # the inner shell's business
    unshare --mount --pid --fork --kill-child /bin/sh -uc '
        trap "exit 130" INT TERM
        root=$1
        shift
        mount -t proc proc "$root/proc" &&
            mount --bind /dev "$root/dev" &&
            mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts" &&
            mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm" &&
            env -i "$@"
        exit "$?"
    ' sh "$root" "$@" 9>&-
}

check_machine
take_turns
build_root
case $purpose in
trixie | sid)
    lend_network
    copy_working_tree
    say "make lint test inside Debian $suite"
    # Keep going: a complaint of lint must not hide what the tests say.
    enter 'cd /root/pyport && make --no-print-directory --keep-going lint test' ||
        die "make lint test failed inside Debian $suite"
    ;;
fresh)
    # The root that is kept stays as debootstrap made it; every run spoils a copy.
    trap 'rm -rf --one-file-system "$kept/fresh.run"' EXIT
    trap 'exit 130' INT TERM
    say "Copying the Debian $suite root"
    rm -rf --one-file-system "$kept/fresh.run"
    cp -a "$root" "$kept/fresh.run"
    root=$kept/fresh.run
    lend_network
    bundle_commits
    # shellcheck disable=SC2016  # the inner shell's business
    enter 'cd /root && set -e
        git -c advice.detachedHead=false clone --quiet pyport.bundle pyport && cd pyport
        for target in demo demo test; do
            echo "==> make $target inside an empty Debian"
            began=$(date +%s)
            make --no-print-directory "$target"
            echo "==> make $target took $(($(date +%s) - began)) s"
        done' || die "failed inside an empty Debian $suite"
    ;;
esac
