defmodule PyPort.Application do
  # What runs once per VM: the table of servers, the reaper, and the default server.
  @moduledoc false
  use Application

  # `[:safe]` refuses atoms that the VM has not met, so the modules whose structs Python may send are
  # loaded before the first reply is read.
  @struct_modules [MapSet, Range, Date, Time, NaiveDateTime, DateTime, Calendar.ISO, Decimal, PyPort.Bytes] ++
                    [PyPort.Object, PyPort.Callback]

  @impl true
  def start(_type, _args) do
    Enum.each(@struct_modules, &Code.ensure_loaded/1)
    PyPort.Telemetry.load()
    # The process that runs this function lives as long as the application, and so does its table.
    PyPort.Registry.create()
    PyPort.Env.start()

    # Callers' own bad luck (a few segfaults in a row) must not end their whole application: the
    # default server may restart often, and each of its starts is guarded by its own back-off.
    Supervisor.start_link([PyPort.Reaper | default_server()],
      strategy: :one_for_one,
      max_restarts: 1_000,
      max_seconds: 60,
      name: PyPort.Supervisor
    )
  end

  defp default_server do
    case Application.get_env(:py_port, :server, []) do
      false -> []
      options -> [{PyPort.Server, options |> PyPort.Env.put_default() |> Keyword.put(:name, PyPort.Default)}]
    end
  end

  @doc false
  # After the environment `:default` has been built anew: the default server starts again in it.
  @spec restart_default() :: :ok
  def restart_default do
    for child <- default_server() do
      %{id: id} = spec = Supervisor.child_spec(child, [])
      Supervisor.terminate_child(PyPort.Supervisor, id)
      Supervisor.delete_child(PyPort.Supervisor, id)
      {:ok, _pid} = Supervisor.start_child(PyPort.Supervisor, spec)
    end

    :ok
  end
end
