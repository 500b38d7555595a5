#!/bin/sh
# Checks the typespecs of the Elixir client with dialyzer. The first run analyses Erlang and Elixir themselves, which takes
# a few minutes. The result is kept outside of the clone, by their versions; later runs take seconds.
set -eu
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

if ! have dialyzer; then
    can_install || die "dialyzer is missing: install the package erlang-dialyzer"
    say "Installing dialyzer from Debian's packages"
    apt_install erlang-dialyzer || die "apt-get could not install erlang-dialyzer; what it said stands above"
fi

# Elixir's modules name a module of Elixir's own as what can read them.
ERL_LIBS=$(elixir -e 'IO.write(Path.dirname(:code.lib_dir(:elixir)))')${ERL_LIBS:+:$ERL_LIBS}
export ERL_LIBS
versions=$(elixir -e 'IO.write("#{:erlang.system_info(:version)}-#{System.version()}")')
known=$cache/dialyzer/$versions.plt

if [ ! -f "$known" ]; then
    say "Reading Erlang and Elixir themselves into $known (once, a few minutes)"
    mkdir -p "$cache/dialyzer"
    quietly dialyzer --build_plt --output_plt "$known.$$" --apps erts kernel stdlib compiler elixir logger mix ||
        # It ends with 2 where it has something to say about what it reads.
        [ -f "$known.$$" ] || die "dialyzer could not read them; what it said stands above"
    mv "$known.$$" "$known"
fi

cd "$project/elixir_client"
MIX_ENV=dev mix compile --warnings-as-errors
say "dialyzer"
# A protocol is read as mix has consolidated it: the other form names implementations that do not exist.
compiled=_build/dev/lib/py_port
protocols=$(cd "$compiled/consolidated" && printf '%s\n' Elixir.PyPort.*.beam)
for protocol in $protocols; do
    set -- "$@" "$compiled/consolidated/$protocol"
done
for module in "$compiled"/ebin/*.beam; do
    case "$protocols" in
    *"${module##*/}"*) ;;
    *) set -- "$@" "$module" ;;
    esac
done
dialyzer --plt "$known" --no_check_plt --quiet -Wunknown "$@"
say "No warnings"
