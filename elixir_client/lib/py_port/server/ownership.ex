defmodule PyPort.Server.Ownership do
  # Carries out what PyPort.Server.OwnershipTable decides: monitors holders, and tells Python what to release. The first
  # part runs in the server, the second in whoever has a handle.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, Error, Registry, Wire}
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
      {:adopt, key, ids, owner, heir} -> OwnershipTable.adopt(table, key, ids, owner, heir)
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
    with :ok <- room(owner, OwnershipTable.owned(state.ownership, owner), length(ids), most),
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

  # --- anywhere -------------------------------------------------------------------------------

  @doc """
  The reader of a frame with handles says whose they are: an owner's, or, where one is asked for on behalf of another
  node's process, an owner's and after it an heir's. They are released where the owner would have too many.
  """
  @spec adopt(pid(), OwnershipTable.claim_key(), [pos_integer()], pid() | {pid(), pid() | nil} | nil) ::
          :ok | {:error, Error.t()}
  # Whether it is in scope is decided at home.
  def adopt(server, key, ids, {owner, heir}), do: adopt(server, key, ids, owner, heir, true)

  def adopt(server, key, ids, owner) do
    {owner, heir} = if owner, do: {owner, nil}, else: default_owner()
    # Where somebody else was named they are a present, and no business of anybody's scope.
    adopt(server, key, ids, owner, heir, heir != nil or owner == self())
  end

  defp adopt(server, key, ids, owner, heir, in_scope?) do
    case room(server, owner, ids) do
      :ok ->
        GenServer.cast(server, {:property, {:adopt, key, ids, owner, heir}})
        if in_scope?, do: note_in_scope({server, owner}, ids)
        :ok

      {:error, error} ->
        disclaim(server, key)
        {:error, error}
    end
  end

  # The count may lack what was adopted a moment ago.
  defp room(server, owner, ids) do
    case Registry.fetch(server) do
      {:ok, %{calls: table, max_objects_per_owner: most}} ->
        room(owner, owned(table, owner), length(ids), most)

      _ended ->
        :ok
    end
  end

  defp room(_owner, own, more, most) when own + more <= most, do: :ok

  defp room(owner, own, more, most) do
    {:error,
     %Error{
       kind: :encode,
       begun: true,
       message:
         "#{inspect(owner)} owns #{own} objects of this server, and would own #{more} more, of #{most} that one " <>
           "process may own (max_objects_per_owner). Release objects that are no longer used (PyPort.release/1, " <>
           "PyPort.with_objects/1), return plain values, name another owner with the option :owner, or start the " <>
           "server with a larger max_objects_per_owner"
     }}
  end

  # Few are not counted here; and a server that has just ended has taken the table with it.
  defp owned(table, owner) do
    :ets.lookup_element(table, {:owns, owner}, 2)
  rescue
    ArgumentError -> 0
  end

  @spec disclaim(pid(), OwnershipTable.claim_key()) :: :ok
  def disclaim(server, key), do: GenServer.cast(server, {:property, {:disclaim, key}})

  @doc "Whose objects are, and whose after that: a task's are for whom it works, and stay its own if that one ends first."
  @spec default_owner() :: {pid(), pid() | nil}
  def default_owner do
    case Process.get(:"$callers") do
      [first | _rest] when is_pid(first) and first != self() -> {first, self()}
      _none -> {self(), nil}
    end
  end

  # --- scopes ---------------------------------------------------------------------------------

  # The objects that came in within PyPort.with_objects/1: a list of scopes, innermost first, each an alias and a list of
  # {{server, owner}, ids}. A task that has no scope of its own finds here that of whom it works for, and sends to the
  # alias what it brought in: before its result, so a scope that has awaited a task knows of its objects. An alias
  # takes nothing any more once its scope has ended.
  @scopes {__MODULE__, :scopes}

  @spec with_scope((... -> result)) :: result when result: var
  def with_scope(fun) do
    outer = Process.get(@scopes)
    Process.put(@scopes, [{:erlang.alias(), []} | outer || []])

    try do
      fun.()
    after
      [{scope, own} | _outer] = Process.get(@scopes)
      if outer, do: Process.put(@scopes, outer), else: Process.delete(@scopes)
      by_tasks = brought_to(scope, [])
      :erlang.unalias(scope)

      brought = brought_to(scope, by_tasks) ++ own

      for {{server, owner}, objects} <- Enum.group_by(brought, &elem(&1, 0), &elem(&1, 1)) do
        GenServer.cast(server, {:property, {:release, List.flatten(objects), owner}})
      end
    end
  end

  @doc "Runs `fun`, and tells of the objects that were adopted meanwhile."
  @spec collect((... -> result)) :: {result, [{{pid(), pid()}, [pos_integer()]}]} when result: var
  def collect(fun) do
    Process.put(@scopes, [{nil, []}])
    result = fun.()
    [{nil, adopted}] = Process.delete(@scopes)
    {result, adopted}
  end

  @spec note_in_scope({server :: pid(), owner :: pid()}, [pos_integer()]) :: term()
  def note_in_scope({_server, owner} = whose, ids) do
    case Process.get(@scopes) do
      [{scope, own} | outer] -> Process.put(@scopes, [{scope, [{whose, ids} | own]} | outer])
      nil when owner != self() and node(owner) == node() -> note_in_scope_of(owner, whose, ids)
      nil -> :ok
    end
  end

  defp note_in_scope_of(owner, whose, ids) do
    with {:dictionary, dictionary} <- Process.info(owner, :dictionary),
         {@scopes, [{scope, _own} | _outer]} <- List.keyfind(dictionary, @scopes, 0),
         do: send(scope, {scope, whose, ids})
  end

  defp brought_to(scope, found) do
    receive do
      {^scope, whose, ids} -> brought_to(scope, [{whose, ids} | found])
    after
      0 -> found
    end
  end
end
