defmodule PyPort.Pool.Members do
  # The servers of a pool that take work, as callers see them, and which of them one request goes to. It stands in a
  # persistent term that PyPort.Pool.Manager replaces when the membership changes: a request reads it without a copy,
  # and asks no process.
  @moduledoc false

  alias PyPort.{Connection, StatusPage}

  @enforce_keys [:pool, :manager, :turn, :queue]
  defstruct @enforce_keys ++
              [:name, :cluster, max_queue: 10_000, width: 1, grows?: false, reloads?: false, connections: {}]

  @type t :: %__MODULE__{
          pool: pid(),
          manager: pid(),
          # Counts the picks: equal servers take turns.
          turn: :atomics.atomics_ref(),
          # Of requests that wait, and how many may; see PyPort.Pool.Queue.
          queue: struct(),
          max_queue: pos_integer(),
          # How many requests a server runs at once, but for those that await.
          width: pos_integer(),
          name: GenServer.name() | nil,
          # Whether another server may be started if requests wait.
          grows?: boolean(),
          # Whether Python files are looked at before a request.
          reloads?: boolean(),
          # Its name, where pools of that name on other nodes stand in for it; nil where it is of this node alone.
          cluster: atom() | nil,
          connections: tuple()
        }

  # The most servers whose status page is read (15 µs each) for one request.
  @most_pages 8

  # The server that can begin one more request, or nil. As long as it is quick it takes more than it can begin now. They are
  # pipelined, and Python need not wait for the next one. A longer request makes the others wait at the pool.
  #
  # Load is the size of a server's table of requests. Among equals the turn decides: callers that look at the same moment
  # see the same loads, and would all take the first.
  @spec pick(t()) :: Connection.t() | nil
  def pick(%{width: width} = members) do
    case least(members) do
      {load, connection} when load < width -> connection
      {load, connection} -> if quick?(load, connection), do: connection, else: idle(members)
      nil -> nil
    end
  end

  # The same for a request that waits. A server that has just replied has given its turns, and those who have got them may not have
  # sent their requests yet.
  @spec free(t()) :: Connection.t() | nil
  def free(%{connections: connections} = members) do
    rested = for one <- Tuple.to_list(connections), not Connection.quick?(one), do: one
    pick(%{members | connections: List.to_tuple(rested)})
  end

  # The server that has the fewest requests, whether it can begin one or not.
  @spec any(t()) :: Connection.t() | nil
  def any(members) do
    with {_load, connection} <- least(members), do: connection
  end

  defp least(%{connections: {}}), do: nil

  defp least(%{connections: connections, turn: turn}) do
    size = tuple_size(connections)
    least(connections, size, rem(:atomics.add_get(turn, 1, 1), size), size, nil)
  end

  defp least(_connections, _size, _at, 0, best), do: best

  defp least(connections, size, at, left, best) do
    connection = elem(connections, at)
    next = if at + 1 == size, do: 0, else: at + 1

    case {load(connection), best} do
      # No load is less than 0.
      {0, _best} -> {0, connection}
      {nil, best} -> least(connections, size, next, left - 1, best)
      {load, {least, _connection}} when load >= least -> least(connections, size, next, left - 1, best)
      {load, _more_or_none} -> least(connections, size, next, left - 1, {load, connection})
    end
  end

  defp quick?(load, connection),
    do: Connection.quick?(connection) and load < Connection.pipelined(connection)

  # Requests that await, and streams, do not keep Python from beginning another.
  defp idle(%{connections: connections, turn: turn, width: width}) do
    size = tuple_size(connections)
    first = :atomics.get(turn, 1)

    Enum.find_value(1..min(size, @most_pages), fn step ->
      connection = elem(connections, rem(first + step, size))

      with load when load != nil <- load(connection),
           true <- load < connection.max_pending,
           true <- load - StatusPage.aside(StatusPage.read(connection.dir)) < width do
        # Others may follow at once.
        Connection.replied(connection)
        connection
      else
        _busy_or_gone -> nil
      end
    end)
  end

  # How many more requests a server takes that has just replied; `page` reads its status page, which takes 15 µs.
  @spec room(Connection.t(), (... -> StatusPage.t() | nil), threads :: non_neg_integer()) :: integer()
  def room(connection, page, threads) do
    most = if Connection.quick?(connection), do: Connection.pipelined(connection), else: max(threads, 1)
    pending = Connection.pending(connection)
    room = min(most, connection.max_pending) - pending

    cond do
      Connection.refuses?(connection) -> 0
      room > 0 -> room
      true -> min(most + StatusPage.aside(page.()), connection.max_pending) - pending
    end
  end

  # A server that has just ended, or takes no more requests, is passed over before the pool has been told.
  defp load(%Connection{table: table} = connection) do
    case :ets.info(table, :size) do
      :undefined -> nil
      size -> if Connection.refuses?(connection), do: nil, else: size
    end
  end

  # The pools of that name on other nodes which have a server ready.
  @spec remote(atom()) :: [pid()]
  def remote(name) do
    for pool <- :pg.get_members(PyPort.Cluster, {__MODULE__, name}), node(pool) != node(), do: pool
  rescue
    # The application is not started.
    ArgumentError -> []
  end

  # Lets other nodes know whether a pool has a server ready.
  @spec announce(t(), boolean()) :: :ok
  def announce(%{cluster: nil}, _ready?), do: :ok

  def announce(%{cluster: name, pool: pool}, ready?) do
    joined? = pool in :pg.get_local_members(PyPort.Cluster, {__MODULE__, name})

    cond do
      ready? and not joined? -> :pg.join(PyPort.Cluster, {__MODULE__, name}, pool)
      joined? and not ready? -> :pg.leave(PyPort.Cluster, {__MODULE__, name}, pool)
      true -> :ok
    end
  rescue
    # The scope is just being restarted; the next time will do.
    ArgumentError -> :ok
  catch
    :exit, _reason -> :ok
  end

  # Whether no server is ready, or each would refuse one more request.
  @spec full?(t()) :: boolean()
  def full?(members) do
    case least(members) do
      {load, connection} -> load >= connection.max_pending
      nil -> true
    end
  end
end
