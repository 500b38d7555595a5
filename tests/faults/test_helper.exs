# The faults that ExUnit tries: `mix test ../tests/faults` in elixir_client, and as a part of `make test`.
# Tests that measure in many rounds are asked for, by `make nightly` or `mix test --include nightly`.
nightly = if System.get_env("PYPORT_NIGHTLY", "") == "", do: [:nightly], else: []
ExUnit.start(capture_log: true, assert_receive_timeout: 5_000, exclude: nightly)
