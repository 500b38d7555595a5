defmodule PyPort.Test.Telemetry do
  # A stand-in for the library :telemetry, as far as PyPort calls it: events go to the processes that asked for them.

  @table __MODULE__

  @doc "Makes `:telemetry` known, and sends the calling test the events of the server `name` as `{:event, event, measurements, metadata}`."
  def listen(name) do
    unless :ets.whereis(@table) != :undefined do
      # Owned by a process that stays: tests come and go.
      test = self()

      spawn(fn ->
        try do
          :ets.new(@table, [:named_table, :public, :bag])
        rescue
          ArgumentError -> :ok
        end

        send(test, :listening)
        Process.sleep(:infinity)
      end)

      receive do: (:listening -> :ok)
    end

    :ets.insert(@table, {name, self()})

    unless Code.ensure_loaded?(:telemetry) do
      Module.create(
        :telemetry,
        quote do
          def execute(event, measurements, metadata),
            do: PyPort.Test.Telemetry.execute(event, measurements, metadata)
        end,
        Macro.Env.location(__ENV__)
      )
    end

    :ok
  end

  def execute(event, measurements, metadata) do
    for {_name, pid} <- :ets.lookup(@table, metadata.name),
        do: send(pid, {:event, event, measurements, metadata})

    :ok
  end
end
