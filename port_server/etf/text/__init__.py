"""Terms as Erlang or Elixir text, read and written; for the command line only.

`verbatim` turns bytes into plain terms and back. `reader` reads Erlang text, with the grammar in
`assembly` and binary syntax in `bits`. `erlang` and `elixir` write text.
"""
