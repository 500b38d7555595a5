defmodule PyPort.Server.RequestTable do
  # Stands beside a server for those who have requests open there: when the server ends, by any way of ending, its table
  # of requests comes here, and each of them is told why, in the words of a monitor.
  #
  # A monitor of each caller's own would be simpler, and was what stood here before: to set it and to take it away again
  # are two signals to the server, which is woken for each of them, and half a microsecond of every request.
  @moduledoc false

  alias PyPort.Connection

  # Starts it, linked to the calling server.
  @spec start_heir() :: pid()
  def start_heir do
    server = self()

    spawn_link(fn ->
      Process.flag(:trap_exit, true)

      receive do
        {:EXIT, ^server, reason} -> inherit(server, reason)
      end
    end)
  end

  # The table of requests of the calling server. `counter` is that of its `Handle`.
  @spec new(pid(), :atomics.atomics_ref()) :: :ets.tid()
  def new(heir, counter) do
    :ets.new(:py_port_requests, [:set, :public, {:write_concurrency, true}, {:heir, heir, counter}])
  end

  # Starts another heir, after the end of the one before.
  @spec replace_heir(Connection.t() | nil) :: pid()
  def replace_heir(connection) do
    heir = start_heir()
    if connection, do: :ets.setopts(connection.table, {:heir, heir, connection.counter})
    heir
  end

  # A table comes before the signal of its owner's end. There is none where nobody had a request open.
  defp inherit(server, reason) do
    receive do
      {:"ETS-TRANSFER", table, ^server, counter} ->
        Connection.refuse(counter)
        # Who comes later sees that, and goes away by itself.
        for {_id, ref, _caller, _extra} <- :ets.tab2list(table),
            do: send(ref, {:DOWN, ref, :process, server, reason})

        :ets.delete(table)
    after
      0 -> :ok
    end
  end
end
