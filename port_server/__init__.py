"""Python for Elixir and Erlang, over a port."""
