# The faults that ExUnit tries: `mix test ../tests/faults` in elixir_client, and as a part of `make test`.
ExUnit.start(capture_log: true, assert_receive_timeout: 5_000)
