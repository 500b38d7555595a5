# For `mix credo`, where Credo is installed. It comes from Hex, so `make lint` does without it.
%{
  configs: [
    %{
      name: "default",
      files: %{included: ~w(lib/ test/ examples/ mix.exs), excluded: []},
      checks: %{
        extra: [
          # A case over the messages of the wire is read best in one place.
          {Credo.Check.Refactor.CyclomaticComplexity, max_complexity: 15},
          {Credo.Check.Refactor.Nesting, max_nesting: 3}
        ],
        disabled: [
          # The formatter wraps code; messages, and tables in comments, may be wide.
          {Credo.Check.Readability.MaxLineLength, []},
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
