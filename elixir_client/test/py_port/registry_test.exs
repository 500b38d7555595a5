defmodule PyPort.RegistryTest do
  # The registry keeps no row and no term of servers and pools that have ended. Not beside other tests, whose servers come
  # and go.
  use ExUnit.Case, async: false

  import PyPort.Test.Processes

  alias PyPort.{Pool, Registry, Server}

  @moduletag capture_log: true

  # Rows of the table, but for what servers of other tests still say, and terms.
  defp kept do
    rows = for row <- :ets.tab2list(Registry), do: elem(row, 0)
    terms = for {{Registry, pid}, _value} <- :persistent_term.get(), do: {:term, pid}
    MapSet.new(rows ++ terms)
  end

  defp nothing_kept?(before) do
    # Of the servers that were there before something may be said for the first time.
    eventually(
      fn ->
        kept()
        |> MapSet.difference(before)
        |> Enum.reject(&match?({_pid, said} when said in [:heartbeat, :health], &1)) == []
      end,
      500
    )
  end

  defp run(fun) do
    before = kept()
    fun.()
    assert nothing_kept?(before), "kept: #{inspect(MapSet.difference(kept(), before))}"
  end

  defp unlinked({:ok, pid}) do
    Process.unlink(pid)
    pid
  end

  test "of named servers that were stopped" do
    run(fn ->
      for n <- 1..3 do
        server = unlinked(Server.start_link(name: {:global, {__MODULE__, n}}))
        assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
        GenServer.stop(server)
      end
    end)
  end

  test "of pools that were stopped, or killed with all they had" do
    run(fn ->
      for ending <- [&Supervisor.stop/1, &Process.exit(&1, :kill)] do
        pool = unlinked(Pool.start_link(size: 2))
        assert PyPort.eval("1", %{}, server: pool) == {:ok, 1}
        ending.(pool)
        assert eventually(fn -> not Process.alive?(pool) end)
      end
    end)
  end

  test "of a pool whose manager is killed until its supervisor gives up" do
    run(fn ->
      Process.flag(:trap_exit, true)
      pool = unlinked(Pool.start_link(size: 1))

      assert eventually(fn ->
               with {:ok, %{manager: manager}} <- Registry.fetch(pool), do: Process.exit(manager, :kill)
               not Process.alive?(pool)
             end)
    end)
  end

  test "of a pool that its supervisor starts again" do
    run(fn ->
      {:ok, supervisor} =
        Supervisor.start_link([{Pool, size: 1, name: RegistryTestPool}],
          strategy: :one_for_one,
          max_restarts: 10
        )

      for _ <- 1..3 do
        pool = Process.whereis(RegistryTestPool)
        Process.exit(pool, :kill)
        assert eventually(fn -> Process.whereis(RegistryTestPool) not in [nil, pool] end)
      end

      Supervisor.stop(supervisor)
    end)
  end

  test "how often a server was started is remembered until it is stopped, or not started again for a while" do
    {:ok, supervisor} = Supervisor.start_link([{Server, name: RegistryTestServer}], strategy: :one_for_one)
    assert PyPort.eval("1", %{}, server: RegistryTestServer) == {:ok, 1}
    Process.exit(Process.whereis(RegistryTestServer), :kill)
    assert eventually(fn -> Registry.restarts(RegistryTestServer) == 1 end)
    assert eventually(fn -> PyPort.eval("1", %{}, server: RegistryTestServer) == {:ok, 1} end)
    # The reaper does this some time after a kill.
    send(PyPort.Reaper, {:forget_starts, RegistryTestServer})
    :sys.get_state(PyPort.Reaper)
    assert Registry.restarts(RegistryTestServer) == 1
    Supervisor.stop(supervisor)
    assert eventually(fn -> :ets.lookup(Registry, {:starts, RegistryTestServer}) == [] end)
  end

  test "nor a directory of a server that is killed while it launches its Python" do
    before = MapSet.new(Path.wildcard(Path.join(System.tmp_dir!(), "py_port-#{System.pid()}-*")))

    # The directory is made some hundred microseconds after the start.
    for n <- 1..200 do
      server = unlinked(Server.start_link(logger: false))
      busy_wait(rem(n * 37, 3_000))
      Process.exit(server, :kill)
    end

    assert eventually(
             fn ->
               now = MapSet.new(Path.wildcard(Path.join(System.tmp_dir!(), "py_port-#{System.pid()}-*")))
               MapSet.subset?(now, before)
             end,
             500
           )
  end

  # Shorter than any timer.
  defp busy_wait(micros) do
    until = System.monotonic_time(:microsecond) + micros
    wait = fn wait -> if System.monotonic_time(:microsecond) < until, do: wait.(wait) end
    wait.(wait)
  end
end
