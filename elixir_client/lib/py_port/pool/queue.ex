defmodule PyPort.Pool.Queue do
  # The requests that wait at a pool, in order of arrival, since no server of it can begin them now. Rows {key, caller} of a
  # table. A server that can begin a request gives its turn to the first callers (`give/3`). The first caller also looks
  # for itself, now and then: a coroutine that begins to wait frees its Python without a frame.
  @moduledoc false

  import PyPort.Deadline, only: [remaining: 1]

  alias PyPort.{Connection, Deadline, Error, Registry, Telemetry}
  alias PyPort.Pool.Members

  # The table, and a count of its rows, since each request and each reply asks whether there are any: to ask the table takes a
  # lock, which cost 64 callers a tenth of their requests.
  @enforce_keys [:table, :count]
  defstruct @enforce_keys

  @type t :: %__MODULE__{table: :ets.tid(), count: :atomics.atomics_ref()}
  # When a request arrived, in native units; a request that was recalled keeps its place by it.
  @type arrived :: integer()

  # Intervals at which a caller that waits looks whether it is the first one, and a server is free. Where many wait they look less
  # often: 10,000 looked 150,000 times a second.
  @least_pause_ms 1
  @most_pause_ms 64
  @looks_per_ms 8

  # How long a turn may be on its way. After that the process that gave it was killed before it has sent it.
  @turn_ms 1_000

  # Owned by the calling process, the supervisor of the pool.
  @spec new() :: t()
  def new,
    do: %__MODULE__{
      table: :ets.new(:py_port_queue, [:ordered_set, :public]),
      count: :atomics.new(1, signed: true)
    }

  @spec empty?(t()) :: boolean()
  def empty?(%{count: count}), do: :atomics.get(count, 1) <= 0

  # How many requests wait, and for how long the first one has, in native units.
  @spec waiting(t()) :: {non_neg_integer(), non_neg_integer()}
  def waiting(%{table: table}) do
    case :ets.first(table) do
      :"$end_of_table" -> {0, 0}
      {arrived, _ref} -> {:ets.info(table, :size), max(System.monotonic_time() - arrived, 0)}
    end
  rescue
    # The pool has just ended.
    ArgumentError -> {0, 0}
  end

  # Waits for a server that can begin one more request. `:full` if too many wait already.
  @spec wait(Members.t(), arrived() | nil, Deadline.t()) ::
          {:ok, Connection.t()} | {:error, Error.t()} | :full
  def wait(%{queue: queue} = members, arrived, deadline) do
    # Counted first, so that of callers that come together no more pass than may.
    if :atomics.add_get(queue.count, 1, 1) > members.max_queue and arrived == nil do
      :atomics.sub(queue.count, 1, 1)
      :full
    else
      since = System.monotonic_time()
      ref = :erlang.monitor(:process, members.pool, alias: :demonitor)
      outcome = wait_as({arrived || since, ref}, members, deadline)
      forget(ref)
      told(outcome, members, since)
    end
  end

  defp wait_as(key, %{queue: queue} = members, deadline) do
    :ets.insert(queue.table, {key, self()})
    # The manager starts another server, or tells those that wait that none can start.
    if members.connections == {} or members.grows?, do: send(members.manager, :waiting)
    look(key, members, deadline, pause(@least_pause_ms, queue))
  rescue
    ArgumentError -> ended(members)
  end

  # After the row was put there, and before waiting: a server that became free before has given its turn to no one.
  defp look(key, %{queue: queue} = members, deadline, pause) do
    with true <- first?(queue, key),
         {:ok, %Members{} = now} <- Registry.fetch(members.pool),
         %Connection{} = connection <- Members.free(now),
         true <- leave(queue, key) do
      wake(queue)
      {:ok, connection}
    else
      _not_yet -> await(key, members, deadline, pause)
    end
  end

  defp await({_arrived, ref} = key, %{queue: queue} = members, deadline, pause) do
    receive do
      {^ref, :look} -> look(key, members, deadline, @least_pause_ms)
      {^ref, turn_or_error} -> in_time(turn_or_error, members, deadline)
      {:DOWN, ^ref, :process, _pool, _reason} -> ended(members)
    after
      min(pause, remaining(deadline)) ->
        cond do
          not :ets.member(queue.table, key) -> await_turn(key, members, deadline)
          remaining(deadline) > 0 -> look(key, members, deadline, pause(2 * pause, queue))
          leave(queue, key) -> {:error, timed_out(members.pool)}
          true -> await_turn(key, members, deadline)
        end
    end
  end

  defp pause(ms, queue),
    do: min(ms, @most_pause_ms) + div(max(:atomics.get(queue.count, 1), 0), @looks_per_ms)

  # The row was taken out, so its turn is on the way.
  defp await_turn({_arrived, ref} = key, members, deadline) do
    receive do
      {^ref, :look} -> await_turn(key, members, deadline)
      {^ref, turn_or_error} -> in_time(turn_or_error, members, deadline)
      {:DOWN, ^ref, :process, _pool, _reason} -> ended(members)
    after
      @turn_ms ->
        :atomics.add(members.queue.count, 1, 1)
        wait_as(key, members, deadline)
    end
  end

  # A turn that comes too late is for the next one.
  defp in_time({:ok, _connection} = turn, members, deadline) do
    if remaining(deadline) > 0 do
      turn
    else
      wake(members.queue)
      {:error, timed_out(members.pool)}
    end
  end

  defp in_time(error, _members, _deadline), do: error

  # Whether no living caller waits before that one.
  defp first?(queue, key) do
    case :ets.first(queue.table) do
      ^key -> true
      :"$end_of_table" -> false
      other -> dead?(queue, other) and first?(queue, key)
    end
  end

  # The row of a dead caller is taken out.
  defp dead?(queue, key) do
    case :ets.lookup(queue.table, key) do
      [{_key, caller}] ->
        dead? = not Process.alive?(caller)
        if dead?, do: take(queue, key)
        dead?

      [] ->
        true
    end
  end

  # Whether the row was still there.
  defp leave(queue, key), do: take(queue, key) != nil

  # The caller of a row, which is there no more.
  defp take(queue, key) do
    case :ets.take(queue.table, key) do
      [{_key, caller}] ->
        :atomics.sub(queue.count, 1, 1)
        caller

      [] ->
        nil
    end
  end

  # No message comes under the reference any more, and those that have come are dropped.
  defp forget(ref) do
    Process.demonitor(ref, [:flush])

    receive do
      {^ref, _late} -> forget(ref)
    after
      0 -> :ok
    end
  end

  defp told({result, _what} = answer, members, since) do
    Telemetry.execute(
      [:py_port, :pool, :wait],
      %{duration: System.monotonic_time() - since, queue: max(:atomics.get(members.queue.count, 1), 0)},
      %{pool: members.pool, name: members.name, result: result}
    )

    answer
  end

  defp timed_out(pool) do
    with {:ok, %Members{queue: queue} = members} <- Registry.fetch(pool),
         true <- Members.any(members) != nil do
      {many, _oldest} = waiting(queue)

      Error.new(
        :timeout,
        "no server of the pool was free when the time was up: all were running other requests, and #{many} more wait " <>
          "for one. Give the request more time with the option :timeout, or the pool more servers (:size)",
        begun: false
      )
    else
      _none_ready ->
        Registry.fact(pool, :trouble) ||
          Error.new(:timeout, "no server of the pool was ready when the time was up", begun: false)
    end
  end

  defp ended(%{pool: pool}),
    do: {:error, Error.unavailable("the pool #{inspect(pool)} is being stopped or restarted")}

  # --- for those that have a turn to give -------------------------------------------------------

  # Gives the turns of a server to the first callers that wait, `many` at most.
  @spec give(t(), Connection.t(), integer()) :: :ok
  def give(queue, connection, many) when many > 0 do
    if ref = pop(queue) do
      send(ref, {ref, {:ok, connection}})
      give(queue, connection, many - 1)
    else
      :ok
    end
  end

  def give(_queue, _connection, _none), do: :ok

  # Gives an error to all that wait.
  @spec fail(t(), Error.t()) :: :ok
  def fail(queue, error) do
    if ref = pop(queue) do
      send(ref, {ref, {:error, error}})
      fail(queue, error)
    else
      :ok
    end
  end

  # Lets the first caller look for itself.
  @spec wake(t()) :: :ok
  def wake(queue) do
    case :ets.first(queue.table) do
      :"$end_of_table" ->
        :ok

      {_arrived, ref} = key ->
        if dead?(queue, key), do: wake(queue), else: send(ref, {ref, :look})
        :ok
    end
  rescue
    ArgumentError -> :ok
  end

  # Takes out the first row whose caller is alive.
  defp pop(queue) do
    with {_arrived, ref} = key <- :ets.first(queue.table) do
      caller = take(queue, key)
      if caller != nil and Process.alive?(caller), do: ref, else: pop(queue)
    else
      :"$end_of_table" -> nil
    end
  rescue
    ArgumentError -> nil
  end

  # --- once a second ------------------------------------------------------------------------------

  # Takes out the rows of dead callers, and mends the count, which a caller that is killed between its row and the count leaves
  # wrong. Callers that are just between the two make it differ as well: so it is wrong if it differs as it did the last
  # time. Gives by how much it differs now.
  @spec tidy(t(), before :: integer()) :: integer()
  def tidy(%{table: table, count: count} = queue, before) do
    for {key, _caller} <- :ets.tab2list(table), do: dead?(queue, key)

    case :atomics.get(count, 1) - :ets.info(table, :size) do
      ^before ->
        :atomics.sub(count, 1, before)
        0

      differs ->
        differs
    end
  rescue
    # The pool has just ended.
    ArgumentError -> 0
  end
end
