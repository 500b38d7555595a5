defmodule PyPort.Server.HandleTest do
  # The intake of a server: what gets in, and that nothing slips in while it closes.
  use ExUnit.Case, async: true

  alias PyPort.Server.Handle

  defp handle do
    struct!(
      %Handle{
        owner: self(),
        port: nil,
        table: :ets.new(:requests, [:public, write_concurrency: true]),
        calls: nil,
        counter: :atomics.new(2, signed: false),
        os_pid: 1,
        start_time: 0,
        dir: ""
      },
      max_pending: 1_000
    )
  end

  test "an intake with a request in it does not close, and goes on taking them" do
    handle = handle()
    assert Handle.insert(handle, {"1", nil, self(), nil})
    refute Handle.close_intake(handle)
    assert Handle.insert(handle, {"2", nil, self(), nil})
    assert Handle.pending(handle) == 2
  end

  test "a closed intake takes nothing in, and keeps nothing" do
    handle = handle()
    assert Handle.close_intake(handle)
    refute Handle.insert(handle, {"1", nil, self(), nil})
    assert Handle.pending(handle) == 0
  end

  test "a server that is about to stop takes nothing in, whatever it still has" do
    handle = handle()
    assert Handle.insert(handle, {"1", nil, self(), nil})
    assert Handle.refuse(handle) == :ok
    refute Handle.insert(handle, {"2", nil, self(), nil})
    assert Handle.pending(handle) == 1
  end

  test "the table of a server that has ended takes nothing in" do
    handle = handle()
    :ets.delete(handle.table)
    refute Handle.insert(handle, {"1", nil, self(), nil})
  end

  test "of a request and a closing that meet, one wins, a thousand times" do
    for round <- 1..1_000 do
      handle = handle()
      inserting = Task.async(fn -> Handle.insert(handle, {"#{round}", nil, self(), nil}) end)
      closed? = Handle.close_intake(handle)
      inserted? = Task.await(inserting)
      # Both may lose, and ask again; both must never win.
      refute closed? and inserted?
      if inserted?, do: assert(Handle.pending(handle) == 1)
      :ets.delete(handle.table)
    end
  end
end
