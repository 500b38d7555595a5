defmodule PyPort.Test.Servers do
  # Servers of a test's own.
  import ExUnit.Callbacks, only: [start_supervised!: 1]
  import PyPort.Test.Processes, only: [eventually: 1]

  @doc "A server with a name of its own that ends with the test; ready when this returns."
  def start_server(options \\ []) do
    options = Keyword.merge(threads(), options)
    name = :"server_#{System.unique_integer([:positive])}"
    start = {PyPort.Server, :start_link, [[name: name] ++ options]}
    start_supervised!(%{id: name, start: start, restart: :temporary, shutdown: 10_000})
    {:ok, 1} = PyPort.eval("1", %{}, server: name)
    name
  end

  # The features run a second time on a Python with threads: `PYPORT_TEST_THREADS=8 mix test --exclude main_thread:true FILES`.
  defp threads do
    case System.get_env("PYPORT_TEST_THREADS") do
      nil -> []
      number -> [threads: String.to_integer(number)]
    end
  end

  @doc "What the server knows to be held: objects, sessions, and claims on replies."
  def held(server), do: server |> :sys.get_state() |> PyPort.Server.Ownership.count()

  @doc "Whether the server knows that this process holds something, and so waits for its end."
  def holds?(server, pid), do: Map.has_key?(:sys.get_state(server).ownership.monitors, pid)

  @doc "Whether, within a moment, nothing is left of any request; what is left is said."
  def nothing_left?(server) do
    eventually(fn -> left(server) == [] end) || raise "left on #{inspect(server)}: #{inspect(left(server))}"
  end

  defp left(server) do
    %{connection: connection} = state = :sys.get_state(server)

    left = [
      owned: Map.to_list(state.ownership.table.things),
      monitors: Map.keys(state.ownership.monitors),
      attached: Map.to_list(state.requests.attached),
      workers: Map.to_list(state.requests.workers),
      cancelled: Map.to_list(state.cancellation.entries),
      requests: :ets.tab2list(connection.table),
      slots:
        for(%{rows: rows} <- [PyPort.SharedMemory.of(connection.calls)], row <- :ets.tab2list(rows), do: row),
      # The list of what is allowed and the shared memory stay, and functions until heartbeats say that they are no longer held.
      calls:
        for(row <- :ets.tab2list(connection.calls), not match?({:function, _}, elem(row, 0)), do: row)
        |> List.keydelete(:allow, 0)
        |> List.keydelete(:shared_memory, 0)
    ]

    Enum.reject(left, fn {_what, list} -> list == [] end)
  end

  @doc "Whether, within a moment, all log records and messages that have arrived have been passed on."
  def delivered?(server) do
    eventually(fn ->
      delivery = :sys.get_state(server).delivery
      Process.info(delivery, [:message_queue_len, :status]) == [message_queue_len: 0, status: :waiting]
    end)
  end

  @doc "A process that does what it is told, and can be ended."
  def start_actor do
    spawn(fn -> actor() end)
  end

  def tell(actor, fun) do
    ref = make_ref()
    send(actor, {:do, self(), ref, fun})

    receive do
      {^ref, result} -> result
    after
      10_000 -> raise "the actor did not answer"
    end
  end

  defp actor do
    receive do
      {:do, from, ref, fun} ->
        send(from, {ref, fun.()})
        actor()
    end
  end
end
