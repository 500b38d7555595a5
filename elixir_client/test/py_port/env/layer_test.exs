defmodule PyPort.Env.LayerTest do
  # Environments stand alone: servers, pools and requests use them, and they use none of these.
  use ExUnit.Case, async: true

  @lib Path.expand("../../../lib/py_port", __DIR__)

  defp references(path) do
    {_quoted, found} =
      path
      |> File.read!()
      |> Code.string_to_quoted!()
      |> Macro.prewalk([], fn
        {:__aliases__, _, [:PyPort, part | _]} = alias, found ->
          {alias, [part | found]}

        {{:., _, [{:__aliases__, _, [:PyPort]}, :{}]}, _, parts} = several, found ->
          {several, for({:__aliases__, _, [part | _]} <- parts, do: part) ++ found}

        other, found ->
          {other, found}
      end)

    Enum.uniq(found)
  end

  test "the modules of env/ and PyPort.Release name no other module of PyPort" do
    paths = [
      Path.join(@lib, "env.ex"),
      Path.join(@lib, "release.ex") | Path.wildcard(Path.join(@lib, "env/*.ex"))
    ]

    assert length(paths) > 10
    assert for(path <- paths, part <- references(path), part not in [:Env, :Release], do: {path, part}) == []
    # That others are found.
    assert :Env in references(Path.join(@lib, "server/launch.ex"))
  end
end
