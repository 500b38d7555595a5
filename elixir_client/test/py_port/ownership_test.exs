defmodule PyPort.Server.OwnershipTest do
  use ExUnit.Case, async: true

  alias PyPort.Server.Ownership

  # The table is pure: any distinct terms will do for pids.
  @reader :reader
  @owner :owner
  @other :other
  @key {:reply, "1"}

  test "a reader that dies before it has said whose the objects are loses none: the frame is given for release" do
    {table, [{:monitor, @reader}]} = Ownership.claim(Ownership.new(), @key, @reader, "frame")
    assert {table, [{:release_in, "frame"}]} = Ownership.ended(table, @reader)
    assert Ownership.count(table) == 0
  end

  test "objects that were adopted go with their owner, and with nobody else" do
    {table, _} = Ownership.claim(Ownership.new(), @key, @reader, "frame")

    assert {table, [{:demonitor, @reader}, {:monitor, @owner}]} =
             Ownership.adopt(table, @key, [1, 2], @owner, nil)

    assert {table, []} = Ownership.ended(table, @reader)
    assert {table, [{:release, [1, 2]}]} = Ownership.ended(table, @owner)
    assert Ownership.count(table) == 0
  end

  test "an owner is monitored once, from its first object to its last" do
    {table, _} = adopted([1, 2], @owner)
    assert {table, []} = Ownership.forget(table, [1])
    assert {table, [{:demonitor, @owner}]} = Ownership.forget(table, [2])
    assert table == Ownership.new()
  end

  test "of an owner of many objects it is told how many they are, until there are few" do
    table = Ownership.new(%{max_objects: 1_000, max_objects_per_owner: 120})
    {table, _} = Ownership.open_session(table, "a", @owner)
    {table, _} = Ownership.claim(table, @key, @reader, "frame")
    {table, effects} = Ownership.adopt(table, @key, Enum.to_list(1..8), @owner, nil)
    # Many are 12; from half of them on.
    assert owns(effects) == [6, 7, 8]
    assert Ownership.owned(table, @owner) == 8
    {table, effects} = Ownership.forget(table, [1, 2, 3, 4])
    assert Enum.sort(owns(effects)) == [5, 6, 7]
    {table, _} = Ownership.claim(table, @key, @reader, "frame")
    {table, _} = Ownership.adopt(table, @key, Enum.to_list(11..20), @owner, nil)
    assert {:ok, table, effects} = Ownership.transfer(table, Enum.to_list(11..20), @other)
    assert 10 in owns(effects, @other)
    assert {_table, effects} = Ownership.ended(table, @other)
    assert owns(effects, @other) == [0]
  end

  defp owns(effects, whose \\ @owner), do: for({:owns, ^whose, count} <- effects, do: count)

  test "an object goes to its heir before it is released" do
    {table, _} = adopted([1], @owner, @other)
    assert {table, [{:monitor, @other}]} = Ownership.ended(table, @owner)
    assert {table, [{:release, [1]}]} = Ownership.ended(table, @other)
    assert table == Ownership.new()
  end

  test "frames of one request are adopted in the order in which they came" do
    {table, _} = Ownership.claim(Ownership.new(), @key, @reader, "first")
    {table, _} = Ownership.claim(table, @key, @reader, "second")
    {table, _} = Ownership.adopt(table, @key, [1], @owner, nil)
    {_table, effects} = Ownership.ended(table, @reader)
    assert effects == [{:release_in, "second"}]
  end

  test "a frame that its reader could not read is given for release" do
    {table, _} = Ownership.claim(Ownership.new(), @key, @reader, "frame")

    assert {table, [{:release_in, "frame"}, {:demonitor, @reader}]} = Ownership.disclaim(table, @key)
    assert table == Ownership.new()
    assert Ownership.disclaim(table, @key) == {table, []}
  end

  test "what is adopted without a claim is gone already" do
    assert Ownership.adopt(Ownership.new(), @key, [1], @owner, nil) == {Ownership.new(), []}
  end

  test "an object is given to another owner, an unknown one is named" do
    {table, _} = adopted([1], @owner)
    assert {:ok, table, effects} = Ownership.transfer(table, [1], @other)
    assert effects == [{:demonitor, @owner}, {:monitor, @other}]
    assert {_table, [{:release, [1]}]} = Ownership.ended(table, @other)
    assert Ownership.transfer(table, [1, 7], @owner) == {:error, [7]}
  end

  test "a scope that ends releases what is still its own" do
    {table, _} = adopted([1, 2], @owner)
    {:ok, table, _} = Ownership.transfer(table, [2], @other)
    assert {table, [{:release, [1]}, {:demonitor, @owner}]} = Ownership.release(table, [1, 2], @owner)
    assert Ownership.count(table) == 1
  end

  test "sessions are closed with who opened them, and not when they were closed before" do
    {table, [{:monitor, @owner}]} = Ownership.open_session(Ownership.new(), "a", @owner)
    {table, []} = Ownership.open_session(table, "b", @owner)
    {table, []} = Ownership.close_session(table, "a")
    assert {table, [{:close_session, "b"}]} = Ownership.ended(table, @owner)
    assert table == Ownership.new()
  end

  defp adopted(ids, owner, heir \\ nil) do
    {table, _} = Ownership.claim(Ownership.new(), @key, @reader, "frame")
    Ownership.adopt(table, @key, ids, owner, heir)
  end
end
