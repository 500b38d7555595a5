# For `mix credo`, where Credo is installed. It comes from Hex, so `make lint` does without it.
%{
  configs: [
    %{
      name: "default",
      files: %{included: ~w(lib/ test/ examples/ mix.exs), excluded: []},
      checks: %{
        extra: [
          # The formatter wraps code at 110; messages, tables and regular expressions may be longer.
          {Credo.Check.Readability.MaxLineLength,
           max_length: 140, ignore_strings: true, ignore_heredocs: true},
          # A case over the messages of the wire is read best in one place.
          {Credo.Check.Refactor.CyclomaticComplexity, max_complexity: 15},
          {Credo.Check.Refactor.Nesting, max_nesting: 3}
        ],
        disabled: [
          # A module that is named once needs no alias.
          {Credo.Check.Design.AliasUsage, []},
          # Modules without a page have a comment and `@moduledoc false`; tests have a comment.
          {Credo.Check.Readability.ModuleDoc, []},
          # `with` with one clause and an else says which value is the usual one.
          {Credo.Check.Readability.WithSingleClause, []}
        ]
      }
    }
  ]
}
