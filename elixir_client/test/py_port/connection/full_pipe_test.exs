defmodule PyPort.Connection.FullPipeTest do
  # Hundreds of MiB of requests for a Python that does not read them. Not beside other tests, which look at the VM's memory.
  use ExUnit.Case, async: false

  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.{Error, Server}

  @moduletag capture_log: true

  # More than all pipes hold, and what is allowed to wait besides.
  @bytes 8 * 1_048_576

  defp fill(server, count, timeout) do
    data = PyPort.bytes(:binary.copy(<<0>>, @bytes))

    for _ <- 1..count, do: spawn_eval(server, "len(x)", globals: %{x: data}, timeout: timeout)
  end

  test "with 200 MiB queued to a stopped Python no call takes longer than its time and its graces" do
    server = start_server(max_queued_bytes: 1_073_741_824, shm_threshold: :infinity, heartbeat_interval: 200)
    os_pid = Server.os_pid(server)
    signal(os_pid, "STOP")

    for {outcome, ms} <- server |> fill(25, 400) |> Task.await_many(20_000) do
      assert {:error, %Error{kind: kind, begun: begun}} = outcome
      assert kind in [:timeout, :killed]

      # Proved by the page that the killed process leaves, unless a busy machine is late with the news of its death.
      assert begun in [false, nil]
      assert ms < 400 + 1_000 + 1_000 + 500
    end

    # Nobody ran, and it took no requests: it is ended for those that waited.
    assert eventually(fn -> not alive?(os_pid) end, 1_000)
  end

  test "with 200 MiB queued to a Python that computes in C, neither" do
    server = start_server(max_queued_bytes: 1_073_741_824, shm_threshold: :infinity)
    blocker = begin_eval(server, "sum(range(150_000_000)) > 0", timeout: :infinity)

    for {outcome, ms} <- server |> fill(25, 300) |> Task.await_many(20_000) do
      assert {:error, %Error{kind: :timeout, begun: nil}} = outcome
      assert ms < 300 + 1_000 + 1_000 + 500
    end

    assert {{:ok, true}, _} = Task.await(blocker, 60_000)
    assert {{:ok, 2}, _} = timed_eval(server, "1 + 1", timeout: 30_000)
    assert nothing_left?(server)
  end

  test "beyond max_queued_bytes a request is refused at once" do
    server = start_server(max_queued_bytes: 2 * @bytes, shm_threshold: :infinity)
    os_pid = Server.os_pid(server)
    signal(os_pid, "STOP")
    tasks = fill(server, 8, 3_000)
    port = :sys.get_state(server).connection.port
    assert eventually(fn -> elem(Port.info(port, :queue_size), 1) > 2 * @bytes end)
    assert {{:error, %Error{kind: :overloaded, begun: false}}, _ms} = timed_eval(server, "1", timeout: 100)
    assert {{:error, %Error{kind: :overloaded}}, ms} = timed_eval(server, "1")
    assert ms < 100
    signal(os_pid, "CONT")
    outcomes = for {outcome, _ms} <- Task.await_many(tasks, 30_000), do: outcome
    assert {:ok, @bytes} in outcomes
    assert Enum.all?(outcomes, &(&1 == {:ok, @bytes} or match?({:error, %Error{kind: :overloaded}}, &1)))
  end
end
