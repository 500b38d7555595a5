defmodule PyPort.Faults.SoakTest do
  # All of it together, for a few seconds, in `make nightly`; `make soak` takes minutes.
  # Alone: it is enough of a load by itself, and what other tests do to the machine is not what it looks for.
  use ExUnit.Case, async: false

  import PyPort.Test.Beam

  @moduletag :nightly
  @moduletag timeout: 180_000

  test "good and bad requests, and servers killed at random: one outcome each, and nothing grows or is left" do
    report = ask(start(), "Logger.configure(level: :none); PyPort.Test.Soak.run(20)", 150_000)
    assert report.requests > 100
    assert report.effects > 0
  end
end
