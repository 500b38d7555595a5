defmodule PyPort.ConnectionTest do
  # The intake of a server: what gets in, and that nothing slips in while it closes.
  use ExUnit.Case, async: true

  import PyPort.Test.Processes, only: [eventually: 1]

  alias PyPort.Connection

  defp connection do
    struct!(
      %Connection{
        owner: self(),
        port: nil,
        table: :ets.new(:requests, [:public, write_concurrency: true]),
        calls: nil,
        counter: Connection.counter(),
        os_pid: 1,
        start_time: 0,
        dir: ""
      },
      max_pending: 1_000
    )
  end

  test "an intake with a request in it does not close, and goes on taking them" do
    connection = connection()
    assert Connection.insert(connection, {"1", nil, self(), nil})
    refute Connection.close_intake(connection)
    assert Connection.insert(connection, {"2", nil, self(), nil})
    assert Connection.pending(connection) == 2
  end

  test "a closed intake takes nothing in, and keeps nothing" do
    connection = connection()
    assert Connection.close_intake(connection)
    refute Connection.insert(connection, {"1", nil, self(), nil})
    assert Connection.pending(connection) == 0
  end

  test "a server that is about to stop takes nothing in, whatever it still has" do
    connection = connection()
    assert Connection.insert(connection, {"1", nil, self(), nil})
    assert Connection.refuse(connection) == :ok
    refute Connection.insert(connection, {"2", nil, self(), nil})
    assert Connection.pending(connection) == 1
  end

  test "the table of a server that has ended takes nothing in" do
    connection = connection()
    :ets.delete(connection.table)
    refute Connection.insert(connection, {"1", nil, self(), nil})
  end

  test "of a request and a closing that meet, one wins, a thousand times" do
    for round <- 1..1_000 do
      connection = connection()
      inserting = Task.async(fn -> Connection.insert(connection, {"#{round}", nil, self(), nil}) end)
      closed? = Connection.close_intake(connection)
      inserted? = Task.await(inserting)
      # Both may lose, and ask again; both must never win.
      refute closed? and inserted?
      if inserted?, do: assert(Connection.pending(connection) == 1)
      :ets.delete(connection.table)
    end
  end

  # --- what waits in the port -----------------------------------------------------------------

  # More than a pipe holds.
  @large :binary.copy("x", 1_048_576)

  defp connection(command, max_queued_bytes) do
    never_busy = [busy_limits_port: :disabled, busy_limits_msgq: :disabled]
    options = [{:packet, 4}, :binary, args: ["-c", command]] ++ never_busy
    port = Port.open({:spawn_executable, ~c"/bin/sh"}, options)
    # A VM that ends waits until the bytes in a port have been read, or its program has ended.
    with {:os_pid, os_pid} <- Port.info(port, :os_pid),
         do: on_exit(fn -> System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true) end)

    %{connection() | port: port, max_queued_bytes: max_queued_bytes}
  end

  defp waiting(connection) do
    {:queue_size, bytes} = Port.info(connection.port, :queue_size)
    bytes
  end

  test "with more than max_queued_bytes before it a frame is refused, however small" do
    connection = connection("exec sleep 60", 1_000_000)
    # One of any size passes.
    assert Connection.submit(connection, :binary.copy(@large, 3)) == :ok
    assert {:full, bytes} = Connection.submit(connection, "x")
    assert bytes in 2_900_000..3_200_000
    # Frames that must get through are written all the same, and counted.
    assert Connection.command(connection, @large) == :ok
    assert {:full, more} = Connection.submit(connection, "x")
    # With its header.
    assert (more - bytes) in byte_size(@large)..(byte_size(@large) + 4)
    Port.close(connection.port)
  end

  test "small frames add up" do
    connection = connection("exec sleep 60", 100_000)
    frame = :binary.copy("x", 4_000)
    outcomes = for _ <- 1..300, do: Connection.submit(connection, frame)
    assert {taken, [{:full, _} | _] = refused} = Enum.split_while(outcomes, &(&1 == :ok))
    assert Enum.all?(refused, &match?({:full, _}, &1))
    # The bytes that the pipe holds have been written.
    assert length(taken) * 4_000 < 100_000 + 2 * 1_048_576
    Port.close(connection.port)
  end

  test "of callers that come together no more get in than there is room for" do
    connection = connection("exec sleep 60", 4 * 1_048_576)
    test = self()

    tasks =
      for _ <- 1..64 do
        Task.async(fn ->
          send(test, {:here, self()})
          receive do: (:go -> Connection.submit(connection, @large))
        end)
      end

    for _ <- tasks, do: assert_receive({:here, _})
    for task <- tasks, do: send(task.pid, :go)
    outcomes = Task.await_many(tasks)
    assert Enum.count(outcomes, &(&1 == :ok)) in 4..7
    assert waiting(connection) <= 4 * 1_048_576 + byte_size(@large) + 64
    Port.close(connection.port)
  end

  test "when all has been read there is room again" do
    connection = connection("cat > /dev/null; exit", 1_000_000)

    frame = [:binary.copy(@large, 2), "and a tail"]
    for _ <- 1..5, do: assert(eventually(fn -> Connection.submit(connection, frame) == :ok end))

    Port.close(connection.port)
  end

  test "a port that has died takes a frame like any other, and nothing waits there" do
    connection = connection("exit 0", 1_000_000)
    port = connection.port
    Port.monitor(port)
    assert_receive {:DOWN, _monitor, :port, ^port, _reason}, 5_000
    for _ <- 1..5, do: assert(Connection.submit(connection, @large) == :ok)
    refute_received {:EXIT, _port, :badsig}
  end

  test "a writer need not be the owner of the port" do
    connection = connection("exec cat", 1_000_000)
    port = connection.port
    Task.await(Task.async(fn -> Connection.command(connection, ["one", " frame"]) end))
    assert_receive {^port, {:data, "one frame"}}, 5_000
    Port.close(port)
  end

  test "of the shortest requests more are open at once, but no more than max_pending" do
    connection = %{connection() | max_pending: 1_000}
    assert Connection.pipelined(connection) == 64
    for _ <- 1..1_000, do: Connection.replied(connection)
    assert Connection.pipelined(connection) > 500
    assert Connection.pipelined(%{connection | max_pending: 500}) == 500

    # Longer ones, one after the other.
    for _ <- 1..8 do
      Process.sleep(2)
      Connection.replied(connection)
    end

    assert Connection.pipelined(connection) == 64
  end
end
