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
        counter: :atomics.new(5, signed: false),
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

  defp waiting(handle) do
    {:queue_size, bytes} = Port.info(handle.port, :queue_size)
    bytes
  end

  test "with more than max_queued_bytes before it a frame is refused, however small" do
    handle = handle("exec sleep 60", 1_000_000)
    # One of any size passes.
    assert Handle.submit(handle, :binary.copy(@large, 3)) == :ok
    assert {:full, bytes} = Handle.submit(handle, "x")
    assert bytes in 2_900_000..3_200_000
    # Frames that must get through are written all the same, and counted.
    assert Handle.command(handle, @large) == :ok
    assert {:full, more} = Handle.submit(handle, "x")
    # With its header.
    assert (more - bytes) in byte_size(@large)..(byte_size(@large) + 4)
    Port.close(handle.port)
  end

  test "small frames add up" do
    handle = handle("exec sleep 60", 100_000)
    frame = :binary.copy("x", 4_000)
    outcomes = for _ <- 1..300, do: Handle.submit(handle, frame)
    assert {taken, [{:full, _} | _] = refused} = Enum.split_while(outcomes, &(&1 == :ok))
    assert Enum.all?(refused, &match?({:full, _}, &1))
    # The bytes that the pipe holds have been written.
    assert length(taken) * 4_000 < 100_000 + 2 * 1_048_576
    Port.close(handle.port)
  end

  test "of callers that come together no more get in than there is room for" do
    handle = handle("exec sleep 60", 4 * 1_048_576)
    test = self()

    tasks =
      for _ <- 1..64 do
        Task.async(fn ->
          send(test, {:here, self()})
          receive do: (:go -> Handle.submit(handle, @large))
        end)
      end

    for _ <- tasks, do: assert_receive({:here, _})
    for task <- tasks, do: send(task.pid, :go)
    outcomes = Task.await_many(tasks)
    assert Enum.count(outcomes, &(&1 == :ok)) in 4..7
    assert waiting(handle) <= 4 * 1_048_576 + byte_size(@large) + 64
    Port.close(handle.port)
  end

  test "when all has been read there is room again" do
    handle = handle("cat > /dev/null; exit", 1_000_000)

    for _ <- 1..5,
        do:
          assert(eventually(fn -> Handle.submit(handle, [:binary.copy(@large, 2), "and a tail"]) == :ok end))

    Port.close(handle.port)
  end

  test "a port that has died takes a frame like any other, and nothing waits there" do
    handle = handle("exit 0", 1_000_000)
    port = handle.port
    Port.monitor(port)
    assert_receive {:DOWN, _monitor, :port, ^port, _reason}, 5_000
    for _ <- 1..5, do: assert(Handle.submit(handle, @large) == :ok)
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
