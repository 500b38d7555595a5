defmodule PyPort.Server.RequestTable do
  # The table of a server's open requests, and its heir: a process that gets the table when the server ends, in whatever way,
  # and tells each caller why, in the form of a monitor's message.
  #
  # Rejected: a monitor of each caller on the server. To set it and to take it away are two signals to the server, which is
  # woken for each of them, and half a microsecond of every request.
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

  # A table comes before the signal of its owner's end. Without open requests the server has deleted it.
  defp inherit(server, reason) do
    receive do
      {:"ETS-TRANSFER", table, ^server, counter} ->
        Connection.refuse(counter)
        # A caller that comes later sees that, and goes away by itself.
        for {_id, ref, _caller, _extra} <- :ets.tab2list(table),
            do: send(ref, {:DOWN, ref, :process, server, reason})

        :ets.delete(table)
    after
      0 -> :ok
    end
  end
end
