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
      queue: PyPort.Pool.Queue.new(),
      connections: List.to_tuple(connections)
    }
  end

  # None of its servers has replied lately.
  defp slow(members) do
    for connection <- Tuple.to_list(members.connections),
        do:
          :atomics.put(
            connection.counter,
            6,
            System.monotonic_time() - System.convert_time_unit(1, :millisecond, :native)
          )

    members
  end

  defp connection(load) do
    table = :ets.new(:requests, [:public])
    if load == :ended, do: :ets.delete(table), else: for(n <- 1..load//1, do: :ets.insert(table, {n}))

    connection = %Connection{
      owner: self(),
      port: nil,
      table: table,
      calls: nil,
      counter: Connection.counter(),
      os_pid: 1,
      start_time: 0,
      dir: "",
      max_pending: 1_000
    }

    Connection.replied(connection)
    connection
  end

  defp at(members, connection),
    do: members.connections |> Tuple.to_list() |> Enum.find_index(&(&1.table == connection.table))

  defp picks(members, times), do: for(_ <- 1..times, do: at(members, Members.pick(members)))

  test "one that has nothing to do is taken, wherever it stands" do
    for size <- [1, 2, 8, 12], free <- 0..(size - 1) do
      members = 9 |> List.duplicate(size) |> List.replace_at(free, 0) |> members() |> slow()
      assert picks(members, size) |> Enum.uniq() == [free]
    end
  end

  test "of busy ones the least loaded is taken, as long as it is quick" do
    for size <- 1..8, least <- 0..(size - 1) do
      members = 9 |> List.duplicate(size) |> List.replace_at(least, 3) |> members()
      for connection <- Tuple.to_list(members.connections), do: Connection.replied(connection)
      assert picks(members, size) |> Enum.uniq() == [least]
      assert members |> slow() |> Members.pick() == nil
      assert members |> Members.any() |> then(&at(members, &1)) == least
    end
  end

  test "one takes no more than some, however quick it is" do
    members = members([64, 65])
    for connection <- Tuple.to_list(members.connections), do: Connection.replied(connection)
    assert Members.pick(members) == nil
  end

  test "threads are places for requests" do
    members = slow(%{members([2, 1, 4]) | width: 3})
    assert picks(members, 3) |> Enum.uniq() == [1]
    assert Members.pick(slow(%{members([3, 4]) | width: 3})) == nil
  end

  test "those that are equal are taken in turn" do
    assert members([0, 0, 0]) |> picks(6) |> Enum.frequencies() == %{0 => 2, 1 => 2, 2 => 2}
    assert slow(%{members([1, 1]) | width: 2}) |> picks(6) |> Enum.frequencies() == %{0 => 3, 1 => 3}
  end

  test "a server that has ended is passed over, whatever the size" do
    assert members([:ended, 0, :ended]) |> picks(6) |> Enum.uniq() == [1]
    members = :ended |> List.duplicate(12) |> List.replace_at(7, 5) |> members()
    assert picks(%{members | width: 6}, 50) |> Enum.uniq() == [7]
  end

  test "a pool without servers gives none" do
    assert Members.pick(members([])) == nil
    assert Members.pick(members([:ended, :ended])) == nil
  end
end
