defmodule PyPort.Server.Ownership do
  # The ownership of the objects and sessions of this Python. Carries out the effects of PyPort.Server.OwnershipTable:
  # monitors holders, and tells Python which objects to release. Runs in the server.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, Error, Registry, Wire}
  alias PyPort.Server.{OwnershipTable, State}

  # `monitors` has that of each holder; `crowded` the owners of many objects that Logger names with the
  # next heartbeat; `many?` whether Logger has been told that there are many in all.
  @enforce_keys [:table]
  defstruct [:table, monitors: %{}, crowded: [], many?: false]

  @type t :: %__MODULE__{
          table: OwnershipTable.t(),
          monitors: %{optional(pid()) => reference()},
          crowded: [pid()],
          many?: boolean()
        }

  # How many handles are taken out of the mailbox at once, before other messages have their turn.
  @most_collected 1_000

  @spec new(PyPort.Options.server()) :: t()
  def new(options), do: %__MODULE__{table: OwnershipTable.new(options)}

  # A frame with objects is on its way to `reader`.
  @spec claim(State.t(), PyPort.Ownership.claim(), pid(), binary()) :: State.t()
  def claim(state, claim, reader, frame),
    do: state.ownership.table |> OwnershipTable.claim(claim, reader, frame) |> carry_out(state)

  # A change that a process has sent, by `PyPort.Ownership.tell/2`.
  @spec cast(State.t(), tuple()) :: State.t()
  def cast(%{connection: nil} = state, _change), do: state

  def cast(%{ownership: %{table: table}} = state, change) do
    case change do
      {:take_over, claim, ids, owner, heir} -> OwnershipTable.take_over(table, claim, ids, owner, heir)
      {:disclaim, claim} -> OwnershipTable.disclaim(table, claim)
      {:forget, ids} -> OwnershipTable.forget(table, ids)
      {:release, ids, holder} -> OwnershipTable.release(table, ids, holder)
      {:session_opened, name, opener} -> OwnershipTable.open_session(table, name, opener)
      {:session_closed, name} -> OwnershipTable.close_session(table, name)
    end
    |> carry_out(state)
  end

  # Handles of objects were collected. Those that were transferred meanwhile stay.
  @spec collected(State.t(), pos_integer(), pid()) :: State.t()
  def collected(state, id, owner) do
    [{id, owner} | more_collected(@most_collected)]
    |> Enum.group_by(&elem(&1, 1), &elem(&1, 0))
    |> Enum.reduce(state, fn {owner, ids}, state -> cast(state, {:release, ids, owner}) end)
  end

  defp more_collected(0), do: []

  defp more_collected(left) do
    receive do
      {:collected, id, owner} -> [{id, owner} | more_collected(left - 1)]
    after
      0 -> []
    end
  end

  @spec transfer(State.t(), [pos_integer()], pid()) ::
          {:ok | {:error, [pos_integer()] | Error.t()}, State.t()}
  def transfer(%{ownership: %{table: table}, options: %{max_objects_per_owner: most}} = state, ids, owner) do
    with :ok <- PyPort.Ownership.room(owner, OwnershipTable.owned(table, owner), length(ids), most),
         {:ok, table, effects} <- OwnershipTable.transfer(table, ids, owner) do
      {:ok, carry_out({table, effects}, state)}
    else
      {:error, error_or_unknown} -> {{:error, error_or_unknown}, state}
    end
  end

  @spec transfer_session(State.t(), String.t(), pid()) :: {:ok | {:error, :unknown}, State.t()}
  def transfer_session(%{ownership: %{table: table}} = state, name, owner) do
    case OwnershipTable.transfer_session(table, name, owner) do
      {:error, :unknown} -> {{:error, :unknown}, state}
      changed -> {:ok, carry_out(changed, state)}
    end
  end

  # A process has ended that may have held something: its monitor tells.
  @spec down(State.t(), reference(), pid()) :: State.t()
  def down(%{ownership: %{monitors: monitors} = part} = state, monitor, pid) do
    case monitors do
      %{^pid => ^monitor} ->
        state = %{state | ownership: %{part | monitors: Map.delete(monitors, pid)}}
        part.table |> OwnershipTable.ended(pid) |> carry_out(state)

      _holds_nothing ->
        state
    end
  end

  # How many objects, sessions and claims there are.
  @spec count(State.t()) :: non_neg_integer()
  def count(state), do: OwnershipTable.count(state.ownership.table)

  # Forgets all of it: its Python has ended.
  @spec close(State.t()) :: State.t()
  def close(state) do
    for {_holder, monitor} <- state.ownership.monitors, do: Process.demonitor(monitor, [:flush])
    %{state | ownership: new(state.options)}
  end

  defp carry_out({table, effects}, state),
    do: %{state | ownership: Enum.reduce(effects, %{state.ownership | table: table}, &effect(&1, &2, state))}

  defp effect({:monitor, pid}, part, _state),
    do: %{part | monitors: Map.put(part.monitors, pid, Process.monitor(pid))}

  defp effect({:demonitor, pid}, part, _state) do
    {monitor, monitors} = Map.pop(part.monitors, pid)
    # The monitor of a process that is down has been taken out of the map.
    if monitor, do: Process.demonitor(monitor, [:flush])
    %{part | monitors: monitors}
  end

  # A row for each owner of many objects, which `PyPort.Ownership` reads in other processes. It goes when the owner has
  # less than half of that, and the owner is named again when it comes back.
  defp effect({:owns, owner, count}, %{table: %{many: many}} = part, %{connection: %{calls: rows}}) do
    cond do
      count < div(many, 2) ->
        :ets.delete(rows, {:owns, owner})
        part

      count >= many and :ets.insert_new(rows, {{:owns, owner}, count}) ->
        %{part | crowded: [owner | part.crowded]}

      true ->
        :ets.update_element(rows, {:owns, owner}, {2, count})
        part
    end
  end

  defp effect(to_python, part, %{connection: connection}) do
    case to_python do
      {:release, ids} -> Connection.command(connection, Wire.release(ids))
      {:release_in, frame} -> release_in(connection, frame)
      {:close_session, name} -> close_session(connection, name)
    end

    part
  end

  defp close_session(connection, name) do
    Registry.forget_session(connection.owner, name)
    Connection.command(connection, Wire.close_session(name))
  end

  # Releases the objects of a frame that no process reads. Walking over a large frame takes its time, so a process
  # does it.
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

  # --- warnings -------------------------------------------------------------------------------

  # From this part of `max_objects` on there are many, until there are half as many again.
  @many 10

  # By a heartbeat: names the owners of many objects, and says that there are many in all, with the type that Python says most
  # of the latest objects have.
  @spec warn(State.t(), map()) :: State.t()
  def warn(state, said),
    do: state |> warn_of_owners(said[:type]) |> warn_of_all(said[:objects] || 0, said[:type])

  defp warn_of_all(%{ownership: part, options: %{max_objects: most}} = state, count, type) do
    if count * @many >= most and not part.many? do
      Logger.warning(
        "PyPort #{state.who}: #{count} objects of this Python are held, of #{most} (max_objects)" <>
          if(type, do: "; most of the latest are of the type #{type}", else: "") <>
          ". They are released when their owners end, by PyPort.release/1, and at the end of PyPort.with_objects/1"
      )
    end

    many? = count * @many >= most or (part.many? and count * @many * 2 >= most)
    %{state | ownership: %{part | many?: many?}}
  end

  defp warn_of_owners(%{ownership: %{crowded: []}} = state, _type), do: state

  defp warn_of_owners(%{ownership: part, options: options} = state, type) do
    for owner <- Enum.uniq(part.crowded), count = OwnershipTable.owned(part.table, owner), count > 0 do
      Logger.warning(
        "PyPort #{state.who}: #{named(owner)} owns #{count} objects of this Python, of #{options.max_objects_per_owner} " <>
          "that one process may own (max_objects_per_owner) and #{options.max_objects} in all (max_objects)" <>
          if(type, do: "; most of the latest are of the type #{type}", else: "") <>
          ". They are released when it ends, by PyPort.release/1, and at the end of PyPort.with_objects/1"
      )
    end

    %{state | ownership: %{part | crowded: []}}
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
end
