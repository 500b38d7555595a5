defmodule PyPort.SymmetryTest do
  # A value that leaves comes back equal and of the same type, in both directions and at every place.
  use ExUnit.Case, async: true

  import PyPort.Test.Servers

  defmodule Some do
    defstruct [:value]
  end

  setup_all do
    %{server: start_server()}
  end

  # One or more of each row of docs/types.md.
  defp values do
    [nil, true, :a, Enum, :nan, :infinity, :neg_infinity, 0, -1, 2 ** 31, -(2 ** 63), 2 ** 64, -(2 ** 200)] ++
      [
        0.0,
        -0.0,
        1.5,
        5.0e-324,
        "",
        "é",
        "nan",
        <<5::3>>,
        [],
        [1, :nan],
        'abc',
        [1 | 2],
        {},
        {1, {:infinity}}
      ] ++
      [%{}, %{a: :nan}, %{"a" => 1}, %{1.5 => :neg_infinity}, %{infinity: 1, nan: 2}, %{{:nan, 1} => 2}] ++
      [
        self(),
        make_ref(),
        &Enum.map/2,
        MapSet.new([1, :nan, {:infinity}]),
        MapSet.new(),
        1..3,
        9..1//-2,
        3..2//1
      ] ++
      [~D[2024-02-29], ~T[01:02:03], ~T[01:02:03.000004], ~N[2024-01-01 00:00:00], ~U[2024-01-01 00:00:00Z]] ++
      [struct(Duration, day: -1, second: -2, microsecond: {-3, 6}), struct(Duration, month: 3, hour: 1)] ++
      [%Some{value: :infinity}, PyPort.bytes(<<255>>)]
  end

  defp places do
    [
      top: & &1,
      list: &[1, &1],
      tuple: &{&1, "x"},
      map: &%{"k" => &1, 2 => [&1]},
      struct: &%Some{value: &1},
      key: &%{{&1, 1} => 2},
      set: &MapSet.new([{&1}])
    ]
  end

  test "from Elixir to Python and back", %{server: server} do
    for {place, put} <- places(), value <- values(), not (place == :top and is_function(value)) do
      there = put.(value)
      back = PyPort.eval!("value", %{value: there}, server: server)
      assert back === plain(there), "#{place}: #{inspect(there)} came back as #{inspect(back)}"
    end
  end

  # Elixir has one type for text and bytes.
  defp plain(%PyPort.Bytes{data: data}), do: data
  defp plain(%MapSet{} = set), do: set |> Enum.map(&plain/1) |> MapSet.new()
  defp plain(%Some{value: value}), do: %Some{value: plain(value)}
  defp plain(%_{} = struct), do: struct
  defp plain(%{} = map), do: Map.new(map, fn {key, value} -> {plain(key), plain(value)} end)

  defp plain(tuple) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> Enum.map(&plain/1) |> List.to_tuple()

  defp plain([head | tail]), do: [plain(head) | plain(tail)]
  defp plain(other), do: other

  @python ~S"""
          None True 1 -2**200 1.5 -0.0 nan inf -inf 'é' '' [] [nan] (1,(inf,)) {'a':nan} {1,'a'} {inf} set()
          range(3) date(2024,2,29) time(1,2,3) time(1,2,3,4) datetime(2024,1,1,tzinfo=UTC) datetime(2024,1,1)
          timedelta(1,2,3) timedelta(microseconds=-1) timedelta()
          Atom('a') BitString(b'\xa0',3) ImproperList([1],2) Struct('Elixir.Some',{Atom('a'):inf})
          """
          |> String.split()

  @names """
  from datetime import date, time, datetime, timedelta, UTC
  from math import nan, inf
  from port_server import Atom, BitString, ImproperList, Struct
  """

  test "from Python to Elixir and back", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)
    PyPort.eval!(@names, %{}, session: session)

    for code <- @python, place <- ["_", "[1, _]", "(_, 'x')", "{'k': [_]}"] do
      code = String.replace(place, "_", code)
      value = PyPort.eval!(code, %{}, session: session)
      check = "there = #{code}\nrepr(there) == repr(back) and type(there) is type(back), repr(back)"
      {same, shown} = PyPort.eval!(check, %{back: value}, session: session)
      assert same, "#{code} came back as #{shown}"
    end
  end
end
