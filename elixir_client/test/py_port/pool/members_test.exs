defmodule PyPort.Pool.MembersTest do
  # Which server of a pool a request goes to, with tables of requests and no Python.
  use ExUnit.Case, async: true

  alias PyPort.Connection
  alias PyPort.Pool.Members

  defp members(loads) do
    connections = for load <- loads, do: connection(load)

    %Members{
      pool: self(),
      manager: self(),
      turn: :atomics.new(1, signed: false),
      connections: List.to_tuple(connections)
    }
  end

  defp connection(load) do
    table = :ets.new(:requests, [:public])
    if load == :ended, do: :ets.delete(table), else: for(n <- 1..load//1, do: :ets.insert(table, {n}))

    struct!(
      %Connection{
        owner: self(),
        port: nil,
        table: table,
        calls: nil,
        counter: :atomics.new(6, signed: true),
        os_pid: 1,
        start_time: 0,
        dir: ""
      },
      max_pending: 1_000
    )
  end

  defp at(members, connection),
    do: members.connections |> Tuple.to_list() |> Enum.find_index(&(&1.table == connection.table))

  defp picks(members, times), do: for(_ <- 1..times, do: at(members, Members.pick(members)))

  test "the least loaded of all up to eight is taken, wherever it stands" do
    for size <- 2..8, least <- 0..(size - 1) do
      members = 9 |> List.duplicate(size) |> List.replace_at(least, 3) |> members()
      assert picks(members, size) |> Enum.uniq() == [least]
    end
  end

  test "those that are equal are taken in turn" do
    assert members([0, 0, 0]) |> picks(6) |> Enum.frequencies() == %{0 => 2, 1 => 2, 2 => 2}
    assert members([7, 7]) |> picks(6) |> Enum.frequencies() == %{0 => 3, 1 => 3}
  end

  test "of more than eight the better of two is taken: the most loaded never, all others now and then" do
    members = 1 |> List.duplicate(12) |> List.replace_at(5, 2) |> members()
    frequencies = members |> picks(3_000) |> Enum.frequencies()
    refute Map.has_key?(frequencies, 5)
    assert map_size(frequencies) == 11
    # Evenly: 273 each on the average.
    assert Enum.all?(frequencies, fn {_index, count} -> count in 150..400 end)
  end

  test "a server that has ended is passed over, whatever the size" do
    assert members([:ended, 5, :ended]) |> picks(6) |> Enum.uniq() == [1]

    assert :ended |> List.duplicate(12) |> List.replace_at(7, 5) |> members() |> picks(50) |> Enum.uniq() == [
             7
           ]
  end

  test "a pool without servers gives none" do
    assert Members.pick(members([])) == nil
    assert Members.pick(members([:ended, :ended])) == nil
  end
end
