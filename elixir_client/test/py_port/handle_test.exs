defmodule PyPort.Server.HandleTest do
  # The intake of a server: what gets in, and that nothing slips in while it closes.
  use ExUnit.Case, async: true

  import PyPort.Test.Processes, only: [eventually: 1]

  alias PyPort.Server.Handle

  defp handle do
    struct!(
      %Handle{
        owner: self(),
        port: nil,
        table: :ets.new(:requests, [:public, write_concurrency: true]),
        calls: nil,
        counter: :atomics.new(4, signed: false),
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

  # --- what waits in the port -----------------------------------------------------------------

  # More than a pipe holds.
  @large :binary.copy("x", 1_048_576)

  defp handle(command, max_queued_bytes) do
    never_busy = [busy_limits_port: :disabled, busy_limits_msgq: :disabled]
    options = [{:packet, 4}, :binary, args: ["-c", command]] ++ never_busy
    port = Port.open({:spawn_executable, ~c"/bin/sh"}, options)
    %{handle() | port: port, max_queued_bytes: max_queued_bytes}
  end

  test "a large frame that nobody reads is seen by those that come after it, however small" do
    handle = handle("exec sleep 60", 1_000_000)
    assert Handle.queued_bytes(handle, 10, 1) == 0
    Handle.command(handle, @large)
    for _ <- 1..2, do: assert(Handle.queued_bytes(handle, 10, 0) > 900_000)
    Port.close(handle.port)
  end

  test "small frames are seen where enough of them may wait" do
    handle = handle("exec sleep 60", 100_000)
    for _ <- 1..300, do: Handle.command(handle, :binary.copy("x", 4_000))
    assert Handle.queued_bytes(handle, 10, 20) == 0
    assert Handle.queued_bytes(handle, 10, 300) > 1_000_000
    Port.close(handle.port)
  end

  test "when all has been read nobody asks the port any more" do
    handle = handle("cat > /dev/null; exit", 1_000_000)
    Handle.command(handle, [@large, "and a tail"])
    assert eventually(fn -> Handle.queued_bytes(handle, 10, 1) == 0 end)
    assert :atomics.get(handle.counter, 3) == :atomics.get(handle.counter, 4)
    Handle.command(handle, @large)
    assert :atomics.get(handle.counter, 3) != :atomics.get(handle.counter, 4)
    Port.close(handle.port)
  end

  test "a port that has died takes a frame like any other, and nothing waits there" do
    handle = handle("exit 0", 1_000_000)
    port = handle.port
    Port.monitor(port)
    assert_receive {:DOWN, _monitor, :port, ^port, _reason}, 5_000
    assert Handle.command(handle, @large) == :ok
    assert Handle.queued_bytes(handle, 10, 1) == 0
    refute_received {:EXIT, _port, :badsig}
  end

  test "who writes need not be who owns the port" do
    handle = handle("exec cat", 1_000_000)
    port = handle.port
    Task.await(Task.async(fn -> Handle.command(handle, ["one", " frame"]) end))
    assert_receive {^port, {:data, "one frame"}}, 5_000
    Port.close(port)
  end
end
