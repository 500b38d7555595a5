# test_1_15 holds ~PY, which Elixir 1.14 cannot parse, not even to format it.
modern = if Version.match?(System.version(), ">= 1.15.0"), do: ["test_1_15/**/*.exs"], else: []

[
  inputs:
    ["*.exs", ".formatter.exs", ".credo.exs", "{config,lib,test,examples}/**/*.{ex,exs}"] ++
      ["../tests/faults/*.exs", "../benchmarks/beam/*.exs"] ++ modern,
  line_length: 110
]
