defmodule PyPort.Server.OwnershipTableTest do
  use ExUnit.Case, async: true

  alias PyPort.Server.OwnershipTable

  # The table is pure: any distinct terms will do for pids.
  @reader :reader
  @owner :owner
  @other :other
  @key {:reply, "1"}

  test "a reader that dies before it has said whose the objects are loses none: the frame is given for release" do
    {table, [{:monitor, @reader}]} = OwnershipTable.claim(OwnershipTable.new(), @key, @reader, "frame")
    assert {table, [{:release_in, "frame"}]} = OwnershipTable.ended(table, @reader)
    assert OwnershipTable.count(table) == 0
  end

  test "objects that were taken over go with their owner, and with no other process" do
    {table, _} = OwnershipTable.claim(OwnershipTable.new(), @key, @reader, "frame")

    assert {table, [{:demonitor, @reader}, {:monitor, @owner}]} =
             OwnershipTable.take_over(table, @key, [1, 2], @owner, nil)

    assert {table, []} = OwnershipTable.ended(table, @reader)
    assert {table, [{:release, [1, 2]}]} = OwnershipTable.ended(table, @owner)
    assert OwnershipTable.count(table) == 0
  end

  test "an owner is monitored once, from its first object to its last" do
    {table, _} = taken_over([1, 2], @owner)
    assert {table, []} = OwnershipTable.forget(table, [1])
    assert {table, [{:demonitor, @owner}]} = OwnershipTable.forget(table, [2])
    assert table == OwnershipTable.new()
  end

  test "of an owner of many objects it is told how many they are, until there are few" do
    table = OwnershipTable.new(%{max_objects: 1_000, max_objects_per_owner: 120})
    {table, _} = OwnershipTable.open_session(table, "a", @owner)
    {table, _} = OwnershipTable.claim(table, @key, @reader, "frame")
    {table, effects} = OwnershipTable.take_over(table, @key, Enum.to_list(1..8), @owner, nil)
    # Many are 12; from half of them on.
    assert owns(effects) == [6, 7, 8]
    assert OwnershipTable.owned(table, @owner) == 8
    {table, effects} = OwnershipTable.forget(table, [1, 2, 3, 4])
    assert Enum.sort(owns(effects)) == [5, 6, 7]
    {table, _} = OwnershipTable.claim(table, @key, @reader, "frame")
    {table, _} = OwnershipTable.take_over(table, @key, Enum.to_list(11..20), @owner, nil)
    assert {:ok, table, effects} = OwnershipTable.transfer(table, Enum.to_list(11..20), @other)
    assert 10 in owns(effects, @other)
    assert {_table, effects} = OwnershipTable.ended(table, @other)
    assert owns(effects, @other) == [0]
  end

  defp owns(effects, whose \\ @owner), do: for({:owns, ^whose, count} <- effects, do: count)

  test "an object goes to its heir before it is released" do
    {table, _} = taken_over([1], @owner, @other)
    assert {table, [{:monitor, @other}]} = OwnershipTable.ended(table, @owner)
    assert {table, [{:release, [1]}]} = OwnershipTable.ended(table, @other)
    assert table == OwnershipTable.new()
  end

  test "frames of one request are taken_over in the order in which they came" do
    {table, _} = OwnershipTable.claim(OwnershipTable.new(), @key, @reader, "first")
    {table, _} = OwnershipTable.claim(table, @key, @reader, "second")
    {table, _} = OwnershipTable.take_over(table, @key, [1], @owner, nil)
    {_table, effects} = OwnershipTable.ended(table, @reader)
    assert effects == [{:release_in, "second"}]
  end

  test "a frame that its reader could not read is given for release" do
    {table, _} = OwnershipTable.claim(OwnershipTable.new(), @key, @reader, "frame")

    assert {table, [{:release_in, "frame"}, {:demonitor, @reader}]} = OwnershipTable.disclaim(table, @key)
    assert table == OwnershipTable.new()
    assert OwnershipTable.disclaim(table, @key) == {table, []}
  end

  test "what is taken_over without a claim is gone already" do
    assert OwnershipTable.take_over(OwnershipTable.new(), @key, [1], @owner, nil) ==
             {OwnershipTable.new(), []}
  end

  test "an object is given to another owner, an unknown one is named" do
    {table, _} = taken_over([1], @owner)
    assert {:ok, table, effects} = OwnershipTable.transfer(table, [1], @other)
    assert effects == [{:demonitor, @owner}, {:monitor, @other}]
    assert {_table, [{:release, [1]}]} = OwnershipTable.ended(table, @other)
    assert OwnershipTable.transfer(table, [1, 7], @owner) == {:error, [7]}
  end

  test "a scope that ends releases what is still its own" do
    {table, _} = taken_over([1, 2], @owner)
    {:ok, table, _} = OwnershipTable.transfer(table, [2], @other)
    assert {table, [{:release, [1]}, {:demonitor, @owner}]} = OwnershipTable.release(table, [1, 2], @owner)
    assert OwnershipTable.count(table) == 1
  end

  test "sessions are closed with their opener, unless they were closed before" do
    {table, [{:monitor, @owner}]} = OwnershipTable.open_session(OwnershipTable.new(), "a", @owner)
    {table, []} = OwnershipTable.open_session(table, "b", @owner)
    {table, []} = OwnershipTable.close_session(table, "a")
    assert {table, [{:close_session, "b"}]} = OwnershipTable.ended(table, @owner)
    assert table == OwnershipTable.new()
  end

  defp taken_over(ids, owner, heir \\ nil) do
    {table, _} = OwnershipTable.claim(OwnershipTable.new(), @key, @reader, "frame")
    OwnershipTable.take_over(table, @key, ids, owner, heir)
  end
end
