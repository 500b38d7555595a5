defmodule PyPort.InteractivePYTest do
  use ExUnit.Case, async: true

  import PyPort.Interactive

  test "~PY evaluates and binds both ways, as ~P does" do
    data = [1, 2, 3]

    assert ~PY"""
           from statistics import mean
           Total = sum(data)
           half = Total / 2
           mean(data)
           """ == 2

    assert half == 3.0
    assert ~PY"Total" == 6
  end
end
