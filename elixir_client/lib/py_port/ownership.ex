defmodule PyPort.Ownership do
  # Gives the objects of a reply to an owner (the option `:owner`, the process for which a task works, or the caller), and
  # keeps the scopes of PyPort.with_objects/1. Runs in the reader; PyPort.Server.Ownership keeps the record.
  @moduledoc false

  alias PyPort.{Collector, Error, Registry}

  # The reply to a request, a call of Python's, or a message, in which objects arrived.
  @type claim :: {:reply | :call, binary()} | {:send, reference()}
  # An owner, and its heir, where a process of another node asks; nil where the default holds.
  @type owner :: pid() | {pid(), heir :: pid() | nil} | nil
  @type taken_over :: [{{server :: pid(), owner :: pid()}, [pos_integer()]}]

  # Gives the objects of a reply to their owner, and after it to its heir. They are released where the owner would have too
  # many. The negative ids among theirs are functions, which have no owner.
  @spec take_over(pid(), claim(), [integer()], owner()) :: :ok | {:error, Error.t()}
  # The node of the caller decides whether they are in scope.
  def take_over(server, claim, ids, {owner, heir}), do: take_over(server, claim, ids, owner, heir, true)

  def take_over(server, claim, ids, owner) do
    {owner, heir} = pair(owner)
    # Objects that are given to a process by its name are not of the caller's scope.
    take_over(server, claim, ids, owner, heir, heir != nil or owner == self())
  end

  defp take_over(server, claim, ids, owner, heir, in_scope?) do
    ids = Enum.filter(ids, &(&1 > 0))

    case room(server, owner, ids) do
      :ok ->
        tell(server, {:take_over, claim, ids, owner, heir})
        if in_scope?, do: note_in_scope({server, owner}, ids)
        :ok

      {:error, error} ->
        disclaim(server, claim)
        {:error, error}
    end
  end

  # The value of a reply, with handles that release their objects when they are collected, unless an owner was named.
  @spec collectable(value, [integer()], owner()) :: value when value: term()
  def collectable(value, ids, nil) do
    {owner, _heir} = pair(nil)
    if Enum.any?(ids, &(&1 > 0)), do: Collector.watched(value, owner), else: value
  end

  def collectable(value, _ids, _owner), do: value

  # A frame with objects is not going to be read: they are released.
  @spec disclaim(pid(), claim()) :: :ok
  def disclaim(server, claim), do: tell(server, {:disclaim, claim})

  # Tells a server of a change of ownership, see `PyPort.Server.Ownership.cast/2`.
  @spec tell(pid(), tuple()) :: :ok
  def tell(server, change), do: GenServer.cast(server, {:ownership, change})

  # The owner by an option, and its heir: objects of a task belong to whom it works for, and to the task if that one
  # ends first.
  @spec pair(pid() | nil) :: {pid(), pid() | nil}
  def pair(nil) do
    case Process.get(:"$callers") do
      [first | _rest] when is_pid(first) and first != self() -> {first, self()}
      _none -> {self(), nil}
    end
  end

  def pair(owner), do: {owner, nil}

  # The count may lack what was taken over a moment ago.
  defp room(server, owner, ids) do
    case Registry.fetch(server) do
      {:ok, %{calls: table, max_objects_per_owner: most}} ->
        room(owner, owned(table, owner), length(ids), most)

      _ended ->
        :ok
    end
  end

  # Whether `owner`, which owns `own` objects, may own `more`, of `most`.
  @spec room(pid(), non_neg_integer(), non_neg_integer(), pos_integer()) :: :ok | {:error, Error.t()}
  def room(_owner, own, more, most) when own + more <= most, do: :ok

  def room(owner, own, more, most) do
    message =
      "#{inspect(owner)} owns #{own} objects of this server, and would own #{more} more, of #{most} that one " <>
        "process may own (max_objects_per_owner). Release objects that are no longer used (PyPort.release/1, " <>
        "PyPort.with_objects/1), return plain values, name another owner with the option :owner, or start the " <>
        "server with a larger max_objects_per_owner"

    {:error, Error.new(:encode, message, begun: true)}
  end

  # The table has the owners of many objects only; and a server that has just ended has taken it along.
  defp owned(table, owner) do
    :ets.lookup_element(table, {:owns, owner}, 2)
  rescue
    ArgumentError -> 0
  end

  # --- scopes ---------------------------------------------------------------------------------

  # The objects that came in within PyPort.with_objects/1: a list of scopes, innermost first, each an alias and a list of
  # {{server, owner}, ids}. A task that has no scope of its own finds here that of whom it works for, and sends to the
  # alias what it brought in: before its result, so a scope that has awaited a task knows of its objects. An alias
  # takes no message after its scope has ended.
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

      for {{server, owner}, objects} <- Enum.group_by(brought, &elem(&1, 0), &elem(&1, 1)),
          do: tell(server, {:release, List.flatten(objects), owner})
    end
  end

  # Runs `fun`, and gives the objects that were taken over meanwhile.
  @spec collect((... -> result)) :: {result, taken_over()} when result: var
  def collect(fun) do
    Process.put(@scopes, [{nil, []}])
    result = fun.()
    [{nil, taken_over}] = Process.delete(@scopes)
    {result, taken_over}
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
