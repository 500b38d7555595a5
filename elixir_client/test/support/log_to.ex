defmodule PyPort.Test.LogTo do
  # A handler of log records that sends them to a process: `{:logged, event}`.

  def attach(to, id \\ __MODULE__) do
    :ok = :logger.add_handler(id, __MODULE__, %{config: %{to: to}})
    ExUnit.Callbacks.on_exit(fn -> :logger.remove_handler(id) end)
  end

  def log(event, %{config: %{to: to}}), do: send(to, {:logged, event})
end
