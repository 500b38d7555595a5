defmodule PyPort.DocumentsTest do
  # README.md, docs/ and notebooks/, block after block: what they claim must hold. The Python and shell blocks are
  # run by tests/documents/.
  use ExUnit.Case, async: false

  import ExUnit.{CaptureIO, CaptureLog}
  import PyPort.Test.Markdown

  @root Path.expand("../..", __DIR__)
  @documents ["README.md", "docs/*.md", "notebooks/*.livemd"]
             |> Enum.flat_map(&Path.wildcard(Path.join(@root, &1)))
             |> Enum.filter(&(blocks(&1, ["elixir", "erlang"]) != []))

  test "the guide is among them, and long" do
    assert length(blocks(Path.join(@root, "docs/guide.md"), ["elixir"])) > 10
  end

  for path <- @documents, blocks(path, ["elixir"]) != [] do
    @tag timeout: 120_000
    test "every Elixir block of #{Path.relative_to(path, @root)} runs, and what it claims holds" do
      path = unquote(path)

      capture_log(fn ->
        capture_io(fn -> path |> blocks(["elixir"]) |> run(path) end)
        # Its records are to be captured, too.
        Enum.each(PyPort.Pool.servers(PyPort.Default), &PyPort.Test.Servers.delivered?/1)
      end)
    end
  end

  for path <- @documents, blocks(path, ["erlang"]) != [] do
    test "every Erlang block of #{Path.relative_to(path, @root)} runs, and what it claims holds" do
      put_server_on_path()

      unquote(path)
      |> blocks(["erlang"])
      |> Enum.reduce(:erl_eval.new_bindings(), fn {"erlang", line, code}, bindings ->
        {:ok, tokens, _end} = :erl_scan.string(String.to_charlist(code), line)

        # One sentence after the other, as in a shell.
        for sentence <- sentences(tokens), reduce: bindings do
          bindings ->
            {:ok, expressions} = :erl_parse.parse_exprs(sentence)
            {:value, _value, bindings} = :erl_eval.exprs(expressions, bindings)
            bindings
        end
      end)
    end
  end

  defp sentences(tokens) do
    case Enum.split_while(tokens, &(elem(&1, 0) != :dot)) do
      {[], []} -> []
      {sentence, [dot | rest]} -> [sentence ++ [dot] | sentences(rest)]
    end
  end

  # `port-server` stands beside the Python of the tests.
  defp put_server_on_path do
    path = System.fetch_env!("PATH")
    on_exit(fn -> System.put_env("PATH", path) end)
    python = System.get_env("PYPORT_PYTHON") || System.find_executable("python3")
    System.put_env("PATH", Path.dirname(python) <> ":" <> path)
  end
end
