defmodule PyPort.GuideTest do
  # docs/guide.md, block after block: what it claims must hold.
  use ExUnit.Case, async: false

  import ExUnit.{CaptureIO, CaptureLog}

  @guide Path.expand("../../docs/guide.md", __DIR__)
  @external_resource @guide

  @tag timeout: 120_000
  test "every block of the guide runs, and what it claims holds" do
    blocks =
      ~r/^```elixir\n(.*?)^```$/ms |> Regex.scan(File.read!(@guide), capture: :all_but_first, return: :index)

    assert length(blocks) > 10
    text = File.read!(@guide)

    capture_log(fn ->
      capture_io(fn ->
        Enum.reduce(blocks, {[], __ENV__}, fn [{at, size}], {bindings, env} ->
          line = text |> binary_part(0, at) |> String.split("\n") |> length()
          # An error of a block names its place in the guide.
          code = text |> binary_part(at, size) |> Code.string_to_quoted!(file: @guide, line: line)

          {_value, bindings, env} =
            Code.eval_quoted_with_env(code, bindings, %{env | file: @guide, line: line})

          {bindings, env}
        end)
      end)

      # Its records are to be captured, too.
      Enum.each(PyPort.Pool.servers(PyPort.Default), &PyPort.Test.Servers.mail_read?/1)
    end)
  end
end
