# The ways in. Recipes stay one line each: what they do stands in scripts/.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo iex fast test lint dialyzer nightly test-env cross wheel package test-trixie test-sid test-fresh soak faults-table bench bench-guard bench-codec fuzz clean distclean setup

in_env := sh scripts/with-env.sh

help: ## this page
	@echo 'PyPort: Python for Elixir and Erlang, over a port.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo
	@echo 'Each target sets up what it needs first: uv, .venv, Elixir. As root on Debian it installs them, else it'
	@echo 'says what to install. One test:  make test PYTEST_ARGS="-k ping" MIX_TEST_ARGS="test/py_port_test.exs:12"'

demo: setup ## a tour: Elixir evaluates Python, and what came back
	@cd elixir_client && MIX_ENV=dev sh ../scripts/with-env.sh mix run examples/demo.exs

iex: setup ## an Elixir shell with PyPort in it
	@cd elixir_client && MIX_ENV=dev sh ../scripts/with-env.sh iex -S mix

fast: setup ## format, lint, and the tests that need no waiting, for the middle of the work (under a minute)
	@$(in_env) sh scripts/fast.sh

test: setup ## pytest, then ExUnit
	@$(in_env) sh scripts/test.sh

lint: setup ## ruff, mypy, clang-format, shellcheck, mix format, warnings of the Elixir compiler
	@$(in_env) sh scripts/lint.sh

nightly: ## everything that .ci/run has, and soak, bench-guard, fuzz and the tests that measure in many rounds (an hour)
	@bash .ci/run nightly

test-env: setup ## uv, Mix projects and releases for real, on packages of PyPI's (a few minutes)
	@$(in_env) python -m pytest tests/env -m env $(PYTEST_ARGS)

cross: setup ## the C for macOS, musl and aarch64, compiled without a warning by zig (it cannot be run here)
	@$(in_env) sh scripts/cross.sh

wheel: setup ## the port server for this platform, into elixir_client/priv/wheels
	@$(in_env) sh scripts/wheel.sh

package: setup ## the Hex package in build/package; with Hex installed also its archive and its documentation
	@$(in_env) sh scripts/package.sh

dialyzer: setup ## the typespecs of the Elixir client, by Erlang's dialyzer
	@$(in_env) sh scripts/dialyzer.sh

test-trixie: ## make lint test inside Debian 13 (as root; builds its root directory once)
	@sh scripts/debian.sh trixie

test-sid: ## make lint test inside Debian unstable, with its newer Python (as root; builds its root directory once)
	@sh scripts/debian.sh sid

test-fresh: ## clone, make demo and make test in an empty Debian 12 (as root)
	@sh scripts/debian.sh fresh

soak: setup ## good and bad requests, and servers killed at random, for SOAK_SECONDS (180)
	@$(in_env) sh scripts/soak.sh

faults-table: setup ## try every fault, and write what was measured into docs/reliability.md
	@$(in_env) sh scripts/faults_table.sh

bench: setup ## what PyPort costs against bare ports, as ratios (some minutes; arguments in BENCH_ARGS)
	@$(in_env) sh scripts/bench.sh $(BENCH_ARGS)

bench-guard: setup ## whether a promise of speed is broken twice over (a minute)
	@$(in_env) python benchmarks/bench.py --guard

bench-codec: setup ## the codec against msgspec, pickle, marshal, orjson and erlang-py, as ratios
	@$(in_env) sh scripts/bench_codec.sh

fuzz: setup ## hostile input and conversations for the C under ASan and UBSan, and a coverage-guided run (17 minutes)
	@$(in_env) sh scripts/fuzz.sh

clean: ## remove what was built in this clone
	@sh scripts/clean.sh

distclean: clean ## the same, and the private uv and the Debian roots kept outside of it
	@sh scripts/clean.sh --cache

setup:
	@sh scripts/setup.sh
