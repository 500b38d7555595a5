defmodule PyPort.Test.LogTo do
  # A handler of log records that sends them to a process: `{:logged, event}`.

  def attach(to) do
    # Tests that run at the same time have one each.
    id = :"log_to_#{System.unique_integer([:positive])}"
    :ok = :logger.add_handler(id, __MODULE__, %{config: %{to: to}})
    ExUnit.Callbacks.on_exit(fn -> :logger.remove_handler(id) end)
  end

  @doc "Whether a record with that text has come, or comes within some seconds."
  def logged?(text) do
    receive do
      {:logged, %{msg: {:string, said}}} -> IO.chardata_to_string(said) =~ text or logged?(text)
    after
      5_000 -> false
    end
  end

  def log(event, %{config: %{to: to}}), do: send(to, {:logged, event})
end
