defmodule PyPort.Server.Ownership do
  # Carries out what PyPort.Server.OwnershipTable decides: monitors holders, and tells Python what to release. The first
  # part runs in the server, the second in whoever has a handle.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, Error, Wire}
  alias PyPort.Server.OwnershipTable

  # --- in the server --------------------------------------------------------------------------

  @spec claim(map(), OwnershipTable.claim_key(), pid(), binary()) :: map()
  def claim(state, key, reader, frame),
    do: state.ownership |> OwnershipTable.claim(key, reader, frame) |> carry_out(state)

  @spec cast(map(), tuple()) :: map()
  def cast(%{connection: nil} = state, _message), do: state

  def cast(state, message) do
    table = state.ownership

    case message do
      {:take_over, key, ids, owner, heir} -> OwnershipTable.take_over(table, key, ids, owner, heir)
      {:disclaim, key} -> OwnershipTable.disclaim(table, key)
      {:forget, ids} -> OwnershipTable.forget(table, ids)
      {:release, ids, holder} -> OwnershipTable.release(table, ids, holder)
      {:session_opened, name, opener} -> OwnershipTable.open_session(table, name, opener)
      {:session_closed, name} -> OwnershipTable.close_session(table, name)
    end
    |> carry_out(state)
  end

  @spec transfer(map(), [pos_integer()], pid()) :: {:ok | {:error, [pos_integer()] | Error.t()}, map()}
  def transfer(%{options: %{max_objects_per_owner: most}} = state, ids, owner) do
    with :ok <- PyPort.Ownership.room(owner, OwnershipTable.owned(state.ownership, owner), length(ids), most),
         {:ok, table, effects} <- OwnershipTable.transfer(state.ownership, ids, owner) do
      {:ok, carry_out({table, effects}, state)}
    else
      {:error, error_or_unknown} -> {{:error, error_or_unknown}, state}
    end
  end

  @doc "A process has ended that may have held something: its monitor tells."
  @spec down(map(), reference(), pid()) :: map()
  def down(state, monitor, pid) do
    case state.monitors do
      %{^pid => ^monitor} ->
        state = %{state | monitors: Map.delete(state.monitors, pid)}
        state.ownership |> OwnershipTable.ended(pid) |> carry_out(state)

      _nothing_held ->
        state
    end
  end

  defp carry_out({table, effects}, state), do: Enum.reduce(effects, %{state | ownership: table}, &effect/2)

  defp effect({:monitor, pid}, state),
    do: %{state | monitors: Map.put(state.monitors, pid, Process.monitor(pid))}

  defp effect({:demonitor, pid}, state) do
    {monitor, monitors} = Map.pop(state.monitors, pid)
    # One that is down already has been taken out of the map.
    if monitor, do: Process.demonitor(monitor, [:flush])
    %{state | monitors: monitors}
  end

  defp effect({:release, ids}, state) do
    Connection.command(state.connection, Wire.release(ids))
    state
  end

  defp effect({:release_in, frame}, state) do
    release_in(state.connection, frame)
    state
  end

  defp effect({:close_session, name}, state) do
    Connection.command(state.connection, Wire.close_session(name))
    state
  end

  # A row for each owner of many objects, which `room/3` reads in other processes. It goes when the owner has less than half
  # of that, and the owner is named again when it comes back.
  defp effect({:owns, owner, count}, %{connection: %{calls: table}, ownership: %{many: many}} = state) do
    cond do
      count < div(many, 2) ->
        :ets.delete(table, {:owns, owner})
        state

      count >= many and :ets.insert_new(table, {{:owns, owner}, count}) ->
        %{state | crowded: [owner | state.crowded]}

      true ->
        :ets.update_element(table, {:owns, owner}, {2, count})
        state
    end
  end

  @doc "Names the owners of many objects, with the type that Python says most of the latest objects have."
  @spec warn(map(), String.t() | nil) :: map()
  def warn(%{crowded: []} = state, _type), do: state

  def warn(%{options: options} = state, type) do
    for owner <- Enum.uniq(state.crowded), count = OwnershipTable.owned(state.ownership, owner), count > 0 do
      Logger.warning(
        "PyPort #{state.who}: #{named(owner)} owns #{count} objects of this Python, of #{options.max_objects_per_owner} " <>
          "that one process may own (max_objects_per_owner) and #{options.max_objects} in all (max_objects)" <>
          if(type, do: "; most of the latest are of the type #{type}", else: "") <>
          ". They are released when it ends, by PyPort.release/1, and at the end of PyPort.with_objects/1"
      )
    end

    %{state | crowded: []}
  end

  defp named(owner) when node(owner) != node(), do: inspect(owner)

  defp named(owner) do
    case Process.info(owner, [:registered_name, :dictionary]) do
      [{:registered_name, name}, _] when is_atom(name) -> "#{inspect(owner)} (#{inspect(name)})"
      [_, {:dictionary, words}] -> "#{inspect(owner)}#{initial_call(words[:"$initial_call"])}"
      nil -> inspect(owner)
    end
  end

  defp initial_call({module, function, arity}),
    do: " (#{Exception.format_mfa(module, function, arity)})"

  defp initial_call(_unknown), do: ""

  @doc "Releases the objects of a frame that nobody reads. Walking over a large frame takes its time, so a process does it."
  @spec release_in(Connection.t(), binary()) :: :ok
  def release_in(connection, frame) do
    spawn(fn ->
      case Wire.object_ids(frame) do
        [] -> :ok
        ids -> Connection.command(connection, Wire.release(ids))
      end
    end)

    :ok
  end
end
