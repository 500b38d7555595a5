defmodule PyPort.Application do
  # Starts the processes that run once per VM: the table of servers, the reaper, and the default pool.
  @moduledoc false
  use Application

  # `[:safe]` refuses atoms that the VM has not met, so the modules whose structs Python may send are
  # loaded before the first reply is read.
  @struct_modules [
                    MapSet,
                    Range,
                    Date,
                    Time,
                    NaiveDateTime,
                    DateTime,
                    Calendar.ISO,
                    Decimal,
                    Duration,
                    PyPort.Bytes
                  ] ++
                    [PyPort.Object, PyPort.Callback]

  @kinds %{{PyPort.Server, :init, 1} => :server, {:supervisor, PyPort.Pool, 1} => :pool}

  @impl true
  def start(_type, _args) do
    Enum.each(@struct_modules, &Code.ensure_loaded/1)
    PyPort.Telemetry.load()
    # The process that runs this function lives as long as the application, and so does its table.
    PyPort.Registry.create(@kinds)
    PyPort.Env.start()

    # A few segfaults in a row must not end the host application: a pool starts its servers again itself, for ever and at
    # growing intervals, so they count as no restarts of this supervisor.
    # Pools that span nodes find each other in a scope of :pg.
    cluster = %{id: PyPort.Cluster, start: {:pg, :start_link, [PyPort.Cluster]}}
    children = [PyPort.Reaper, cluster | default_pool()]
    Supervisor.start_link(children, strategy: :one_for_one, name: PyPort.Supervisor)
  end

  defp default_pool do
    case PyPort.Pool.Default.options() do
      nil -> []
      options -> [{PyPort.Pool, options}]
    end
  end

  # After the environment `:default` has been built: the default pool starts in it, anew or, where the configuration has
  # kept it from starting before there is an environment, for the first time.
  @spec restart_default() :: :ok
  def restart_default do
    options = PyPort.Pool.Default.options() || PyPort.Pool.Default.options([])
    %{id: id} = spec = Supervisor.child_spec({PyPort.Pool, options}, [])
    Supervisor.terminate_child(PyPort.Supervisor, id)
    Supervisor.delete_child(PyPort.Supervisor, id)
    {:ok, _pid} = Supervisor.start_child(PyPort.Supervisor, spec)
    :ok
  end
end
