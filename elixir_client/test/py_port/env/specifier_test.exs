defmodule PyPort.Env.SpecifierTest do
  use ExUnit.Case, async: true

  import PyPort.Env.Specifier

  for {specifier, yes, no} <- [
        {"==3.12.*", ["3.12.0", "3.12.11", "3.12.0rc1"], ["3.11.9", "3.13.0"]},
        {">=3.11", ["3.11.0", "3.13.2", "4.0.0"], ["3.10.14", "3.11.0rc1"]},
        {">=3.11,<3.13", ["3.11.2", "3.12.9"], ["3.13.0", "3.13.0rc1", "3.10.0"]},
        {">=3.11, <3.13", ["3.12.1"], ["3.13.0"]},
        {"~=3.11", ["3.11.0", "3.12.4", "3.99.0"], ["3.10.9", "4.0.0"]},
        {"~=3.11.4", ["3.11.4", "3.11.9"], ["3.11.3", "3.12.0"]},
        {"!=3.12.3,>=3.11", ["3.12.2", "3.12.4"], ["3.12.3"]},
        {"!=3.12.*,>=3.11", ["3.11.1", "3.13.0"], ["3.12.0"]},
        {"==3.12", ["3.12.0"], ["3.12.1"]},
        {">3.11", ["3.11.1", "3.12.0"], ["3.11.0"]},
        {"<=3.12", ["3.12.0", "3.11.8"], ["3.12.1"]},
        {"===3.12.1", ["3.12.1"], ["3.12.2"]},
        {"", ["3.11.0", "2.7.18"], []}
      ] do
    test "requires-python #{inspect(specifier)}" do
      for version <- unquote(yes), do: assert(satisfied?(version, unquote(specifier)), version)
      for version <- unquote(no), do: refute(satisfied?(version, unquote(specifier)), version)
    end
  end

  test "what cannot be read rules nothing out: uv would have refused it" do
    assert satisfied?("3.12.1", "whatever")
    assert satisfied?("unknown", ">=3.11")
  end
end
