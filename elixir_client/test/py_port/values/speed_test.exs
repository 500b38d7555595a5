defmodule PyPort.ValuesSpeedTest do
  # To look for functions, handles and structs takes less time than to encode what was looked at.
  use ExUnit.Case

  alias PyPort.Values

  # Measured: 0.3 to 0.6 times.
  for {name, values} <- [
        integers: quote(do: for(n <- 1..50_000, do: n * 7919)),
        floats: quote(do: for(n <- 1..50_000, do: n / 7)),
        texts: quote(do: for(n <- 1..50_000, do: "item #{n}")),
        maps: quote(do: for(n <- 1..5_000, do: %{"id" => n, "name" => "user #{n}", "score" => n / 7})),
        rows: quote(do: for(n <- 1..5_000, do: [n, "user #{n}", n / 7, nil])),
        mixed: quote(do: for(n <- 1..50_000, do: elem({n, "user #{n}", n / 7, nil}, rem(n, 4))))
      ] do
    test "in #{name}" do
      values = unquote(values)
      assert {^values, %{funs: [], objects: []}} = Values.scan(values, Values.none())

      assert fastest(fn -> Values.scan(values, Values.none()) end) <
               0.9 * fastest(fn -> :erlang.term_to_iovec(values) end)
    end
  end

  defp fastest(fun) do
    1..20 |> Enum.map(fn _ -> fun |> :timer.tc() |> elem(0) end) |> Enum.min()
  end
end
