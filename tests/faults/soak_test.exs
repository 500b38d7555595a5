defmodule PyPort.Faults.SoakTest do
  # All of it together, for a few seconds; `make soak` takes minutes.
  use ExUnit.Case, async: true

  import PyPort.Test.Beam

  @moduletag timeout: 180_000

  test "good and bad requests, and servers killed at random: one outcome each, and nothing grows or is left" do
    report = ask(start(), "Logger.configure(level: :none); PyPort.Test.Soak.run(20)", 150_000)
    assert report.requests > 100
    assert report.effects > 0
  end
end
