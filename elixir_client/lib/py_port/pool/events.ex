defmodule PyPort.Pool.Events do
  # The telemetry events of a pool, as PyPort.Telemetry documents them. PyPort.Pool.Manager calls it with its state after the
  # change, and gets the same state back.
  @moduledoc false

  alias PyPort.{Connection, Telemetry}
  alias PyPort.Pool.{Slot, State}

  # The server of a slot takes work from now on.
  @spec taken_in(State.t(), pos_integer(), reason :: atom()) :: State.t()
  def taken_in(state, index, reason) do
    %Slot{connection: connection} = Map.fetch!(state.slots, index)
    tell(state, :server_in, %{servers: servers(state)}, about(connection, index, reason))
  end

  # The server that was in `slot` takes no new work any more, where it has taken any.
  @spec taken_out(State.t(), pos_integer(), Slot.t(), reason :: atom()) :: State.t()
  def taken_out(state, _index, %Slot{connection: nil}, _reason), do: state

  def taken_out(state, index, %Slot{connection: connection, ready_at: ready_at}, reason) do
    lived_ms = System.monotonic_time(:millisecond) - ready_at
    duration = System.convert_time_unit(lived_ms, :millisecond, :native)
    measurements = %{servers: servers(state), requests: Connection.requests(connection), duration: duration}
    tell(state, :server_out, measurements, about(connection, index, reason))
  end

  # The same of a server whose process has ended, for that reason.
  @spec ended(State.t(), pos_integer(), Slot.t(), exit_reason :: term()) :: State.t()
  def ended(state, index, slot, {:shutdown, {:restart, _report}}), do: taken_out(state, index, slot, :restart)
  def ended(state, index, slot, _reason), do: taken_out(state, index, slot, :ended)

  @spec resized(State.t(), previous :: non_neg_integer()) :: State.t()
  def resized(state, previous),
    do: tell(state, :resize, %{size: state.options.size, previous: previous}, %{})

  defp servers(state), do: Enum.count(state.slots, fn {_index, slot} -> slot.connection != nil end)

  defp about(connection, index, reason),
    do: %{server: connection.owner, os_pid: connection.os_pid, index: index, reason: reason}

  defp tell(state, event, measurements, metadata) do
    about = %{pool: state.pool, name: state.options.name}
    Telemetry.execute([:py_port, :pool, event], measurements, Map.merge(about, metadata))
    state
  end
end
