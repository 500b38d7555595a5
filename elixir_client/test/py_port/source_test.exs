defmodule PyPort.SourceTest do
  # What the source itself has to be, for the versions of Elixir and OTP that are not at hand here.
  use ExUnit.Case, async: true

  # From OTP 28 on a compiled pattern is a reference, which no Elixir can put from an attribute into a function.
  test "no module attribute holds a regular expression: it would not compile on OTP 28" do
    found =
      for path <- Path.wildcard("{lib,test}/**/*.{ex,exs}"),
          {name, line} <- path |> File.read!() |> Code.string_to_quoted!() |> attributes_with_patterns(),
          do: "#{path}:#{line} @#{name}"

    assert found == []
  end

  defp attributes_with_patterns(ast) do
    {_ast, found} =
      Macro.prewalk(ast, [], fn
        {:@, meta, [{name, _, [value]}]} = node, found ->
          {node, if(pattern?(value), do: [{name, meta[:line]} | found], else: found)}

        node, found ->
          {node, found}
      end)

    found
  end

  # As it stands, or in lists, tuples and maps; what is only worked with is gone by then.
  defp pattern?({:sigil_r, _meta, _text}), do: true
  defp pattern?({kind, _meta, elements}) when kind in [:{}, :%{}], do: pattern?(elements)
  defp pattern?({one, other}), do: pattern?(one) or pattern?(other)
  defp pattern?(elements) when is_list(elements), do: Enum.any?(elements, &pattern?/1)
  defp pattern?(_other), do: false
end
