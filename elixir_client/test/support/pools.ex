defmodule PyPort.Test.Pools do
  # Pools of a test's own.
  import ExUnit.Callbacks, only: [start_supervised!: 1]
  import PyPort.Test.Processes, only: [eventually: 2]

  @doc "A pool with a name of its own that ends with the test; all its servers are ready when this returns."
  def start_pool(options) do
    name = :"pool_#{System.unique_integer([:positive])}"

    start_supervised!(%{
      id: name,
      start: {PyPort.Pool, :start_link, [[name: name] ++ options]},
      type: :supervisor
    })

    size = Keyword.fetch!(options, :size)
    eventually(fn -> length(PyPort.Pool.servers(name)) == size end, 1_000) || raise "the pool is not ready"
    name
  end

  @doc "The process ids of the Pythons that take work."
  def os_pids(pool), do: for(server <- PyPort.Pool.servers(pool), do: PyPort.Server.os_pid(server))
end
