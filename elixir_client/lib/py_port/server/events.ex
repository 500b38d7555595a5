defmodule PyPort.Server.Events do
  # The telemetry events of a server and its requests, as PyPort.Telemetry documents them.
  @moduledoc false

  alias PyPort.Server.State
  alias PyPort.Telemetry

  @spec tell(State.t(), :server | :request, atom(), measurements :: map(), metadata :: map()) :: :ok
  def tell(%{connection: connection, options: options}, of, event, measurements, metadata \\ %{}) do
    about = %{server: self(), name: options.name, os_pid: connection && connection.os_pid}
    Telemetry.execute([:py_port, of, event], measurements, Map.merge(about, metadata))
  end
end
