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

  # From Elixir 1.20 on such a variable needs a `^`, which Elixir 1.14 does not read.
  test "no size in a bitstring is a variable from outside of it" do
    found =
      for path <- Path.wildcard("{lib,test}/**/*.{ex,exs}"),
          {name, line} <- path |> File.read!() |> Code.string_to_quoted!() |> outer_sizes(),
          do: "#{path}:#{line} size(#{name})"

    assert found == []
  end

  test "a variable from outside is found" do
    for code <- ["<<_::binary-size(n), rest::binary>> = x", "for <<a::size(n) <- x>>, do: a"],
        do: assert([{:n, 1}] = code |> Code.string_to_quoted!() |> outer_sizes())

    assert [] ==
             "<<n, a::binary-size(n), b::binary-size(4)>> = x" |> Code.string_to_quoted!() |> outer_sizes()
  end

  defp outer_sizes(ast) do
    {_ast, found} =
      Macro.prewalk(ast, [], fn
        {:<<>>, meta, segments} = node, found ->
          bound =
            for segment <- segments, {name, _, context} when is_atom(context) <- [value(segment)], do: name

          {node, for(name <- sizes(segments), name not in bound, do: {name, meta[:line]}) ++ found}

        node, found ->
          {node, found}
      end)

    found
  end

  defp value({:<-, _, [segment, _from]}), do: value(segment)
  defp value({:"::", _, [value, _type]}), do: value
  defp value(value), do: value

  defp sizes(segments) do
    {_segments, names} =
      Macro.prewalk(segments, [], fn
        {:size, _, [{name, _, context}]} = node, names when is_atom(context) -> {node, [name | names]}
        node, names -> {node, names}
      end)

    names
  end
end
