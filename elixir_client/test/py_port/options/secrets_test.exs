defmodule PyPort.Options.SecretsTest do
  # Values of `:env` and `:init_code` are in no crash report, whichever process crashes. Not beside other tests: it looks at
  # all that is logged.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import PyPort.Test.Processes

  alias PyPort.{Pool, Registry, Server}

  @secret "hush-hush-4711"
  @secrets [env: [{"TOKEN", @secret}], init_code: "token = '" <> @secret <> "'"]

  # All of it: what supervisors say of their children, and what Erlang's own formatter makes of it.
  defp logged(fun) do
    Logger.configure(handle_sasl_reports: true)
    test = self()
    id = :"secrets_#{System.unique_integer([:positive])}"
    :ok = :logger.add_handler(id, __MODULE__, %{config: %{to: test}})

    log =
      try do
        capture_log(fun)
      after
        :logger.remove_handler(id)
      end

    log <> everything("")
  end

  def log(event, %{config: %{to: test}}) do
    send(
      test,
      {:event, :io_lib.format("~p", [event]), inspect(event, limit: :infinity, printable_limit: :infinity)}
    )
  end

  defp everything(text) do
    receive do
      {:event, erlang, elixir} -> everything(text <> to_string(erlang) <> elixir)
    after
      0 -> text
    end
  end

  # Killed, told to end, and by an error of its own.
  defp crashes do
    [
      &Process.exit(&1, :kill),
      &Process.exit(&1, :crash),
      fn pid ->
        :sys.replace_state(pid, fn _state -> :nonsense end) && send(pid, :tick)
      end
    ]
  end

  test "a server under a supervisor" do
    log =
      logged(fn ->
        {:ok, supervisor} =
          Supervisor.start_link([{Server, [name: __MODULE__] ++ @secrets}], strategy: :one_for_one)

        assert PyPort.eval("token", %{}, server: __MODULE__) == {:ok, @secret}
        assert PyPort.eval("import os; os.environ['TOKEN']", %{}, server: __MODULE__) == {:ok, @secret}

        for crash <- crashes() do
          pid = Process.whereis(__MODULE__)
          crash.(pid)
          assert eventually(fn -> Process.whereis(__MODULE__) not in [nil, pid] end)
        end

        assert eventually(fn -> PyPort.eval("token", %{}, server: __MODULE__) == {:ok, @secret} end)
        Supervisor.stop(supervisor)
      end)

    assert log =~ "PyPort.Server"
    refute log =~ @secret
  end

  test "a pool under a supervisor, its manager, its servers, and all of it" do
    log =
      logged(fn ->
        options = [name: __MODULE__, size: 1] ++ @secrets
        {:ok, supervisor} = Supervisor.start_link([{Pool, options}], strategy: :one_for_one, max_restarts: 10)
        assert PyPort.eval("token", %{}, server: __MODULE__) == {:ok, @secret}

        for who <- [:server, :manager], crash <- crashes() do
          pid = pid_of(who)
          crash.(pid)
          # A manager that is started again publishes its servers a moment later.
          assert eventually(fn -> pid_of(who) not in [nil, pid] end, 1_000)
          assert eventually(fn -> PyPort.eval("token", %{}, server: __MODULE__) == {:ok, @secret} end, 1_000)
        end

        pool = Process.whereis(__MODULE__)
        Process.exit(pool, :kill)
        assert eventually(fn -> Process.whereis(__MODULE__) not in [nil, pool] end)
        Supervisor.stop(supervisor)
      end)

    assert log =~ "PyPort.Pool"
    refute log =~ @secret
  end

  defp pid_of(who) do
    case Registry.fetch(Process.whereis(__MODULE__)) do
      {:ok, %{manager: manager}} when who == :manager -> manager
      {:ok, %{connections: {connection}}} -> connection.owner
      _none -> nil
    end
  end

  test "options that are wrong" do
    for wrong <- [[env: %{"TOKEN" => @secret}], [init_code: [@secret]], %{env: @secret}],
        start <- [&Server.start_link/1, &Pool.start_link/1] do
      error = assert_raise ArgumentError, fn -> start.(wrong) end
      refute error.message =~ @secret
    end
  end
end
