defmodule PyPort.Server.RequestTableTest do
  # Each caller with a request open at a server that ends gets an error, in whatever way it ends, once, and soon.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Servers}

  alias PyPort.{Connection, Error}

  @moduletag capture_log: true

  # `:infinity`, so that nothing but the news ends it.
  defp spawn_evals(server, count, code) do
    for _ <- 1..count do
      Task.async(fn ->
        outcome = PyPort.eval(code, %{}, server: server, timeout: :infinity)
        {outcome, Process.info(self(), :message_queue_len)}
      end)
    end
  end

  defp open?(server, count),
    do: eventually(fn -> match?([%{pending: ^count}], PyPort.status(server)) end)

  defp heir(server), do: :sys.get_state(server).heir

  test "all callers of a server that is killed get an error, once" do
    server = start_server()
    owner = Process.whereis(server)
    heir = heir(server)
    tasks = spawn_evals(server, 100, "import time; time.sleep(60)")
    assert open?(server, 100)
    Process.exit(owner, :kill)

    for {outcome, mailbox} <- Task.await_many(tasks) do
      assert {:error, %Error{kind: :exited, message: message}} = outcome
      assert message =~ "killed"
      assert mailbox == {:message_queue_len, 0}
    end

    assert eventually(fn -> not Process.alive?(heir) end)
  end

  test "all callers of a server that is stopped get an error" do
    server = start_server(shutdown_grace: 0)
    heir = heir(server)
    tasks = spawn_evals(server, 10, "import time; time.sleep(60)")
    assert open?(server, 10)
    GenServer.stop(server)
    for {outcome, _mailbox} <- Task.await_many(tasks), do: assert({:error, %Error{}} = outcome)
    assert eventually(fn -> not Process.alive?(heir) end)
  end

  test "the heir of a server without requests ends with it" do
    server = start_server()
    heir = heir(server)
    GenServer.stop(server)
    assert eventually(fn -> not Process.alive?(heir) end)
  end

  test "an heir that is killed is replaced, and the next one tells" do
    server = start_server()
    owner = Process.whereis(server)
    heir = heir(server)
    [task] = spawn_evals(server, 1, "import time; time.sleep(60)")
    assert open?(server, 1)
    Process.exit(heir, :kill)
    assert eventually(fn -> heir(server) != heir end)
    Process.exit(owner, :kill)
    assert {{:error, %Error{kind: :exited}}, {:message_queue_len, 0}} = Task.await(task)
  end

  test "a caller finds out that server and heir were killed at once" do
    server = start_server()
    owner = Process.whereis(server)
    heir = heir(server)
    [task] = spawn_evals(server, 1, "import time; time.sleep(60)")
    assert open?(server, 1)
    :erlang.suspend_process(owner)
    Process.exit(heir, :kill)
    Process.exit(owner, :kill)
    assert {{:error, %Error{kind: :exited}}, {:message_queue_len, 0}} = Task.await(task)
  end

  test "each of many callers whose server is killed has one outcome" do
    for round <- 1..5 do
      server = start_server()
      owner = Process.whereis(server)
      connection = :sys.get_state(server).connection
      callers = for _ <- 1..8, do: Task.async(fn -> ask_on(server, 0) end)
      assert eventually(fn -> Connection.requests(connection) > 100 * round end)
      Process.exit(owner, :kill)

      for {answers, error, mailbox} <- Task.await_many(callers) do
        assert answers >= 0
        assert %Error{kind: kind} = error
        assert kind in [:exited, :unavailable]
        assert mailbox == {:message_queue_len, 0}
      end
    end
  end

  defp ask_on(server, answers) do
    case PyPort.eval("1", %{}, server: server, timeout: :infinity) do
      {:ok, 1} -> ask_on(server, answers + 1)
      {:error, error} -> {answers, error, Process.info(self(), :message_queue_len)}
    end
  end

  test "a request sets no monitor on its server" do
    server = start_server()
    owner = Process.whereis(server)
    before = Process.info(owner, :monitored_by)
    spawn_evals(server, 1, "import time; time.sleep(60)")
    assert open?(server, 1)
    assert Process.info(owner, :monitored_by) == before
    # Here is where one would be seen.
    Process.monitor(owner)
    assert Process.info(owner, :monitored_by) != before
  end
end
