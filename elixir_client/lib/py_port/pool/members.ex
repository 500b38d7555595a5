defmodule PyPort.Pool.Members do
  # The servers of a pool that take work, as callers see them, and which of them one request goes to. It stands in a
  # persistent term that PyPort.Pool.Manager replaces when the membership changes: a request reads it without a copy,
  # and asks no process.
  @moduledoc false

  alias PyPort.Connection

  @enforce_keys [:pool, :manager, :turn]
  defstruct [:pool, :manager, :turn, :cluster, connections: {}]

  @type t :: %__MODULE__{
          pool: pid(),
          manager: pid(),
          # Counts the picks: equal servers take turns.
          turn: :atomics.atomics_ref(),
          # Its name, where pools of that name on other nodes stand in for it; nil where it is of this node alone.
          cluster: atom() | nil,
          connections: tuple()
        }

  # Up to here the loads of all are read (75 ns each). Beyond it those of two random ones: the better of two is nearly the
  # best of all, and no caller pays for the size of the pool.
  @look_at_all 8

  # The server for one more request, or nil for a pool without one.
  #
  # Load is the size of a server's table of requests. Among equals the turn decides: callers that look at the same moment
  # see the same loads, and would all take the first.
  @spec pick(t()) :: Connection.t() | nil
  # Whether it is alive shows when the request is put into its table.
  def pick(%{connections: {connection}}), do: connection
  def pick(%{connections: {}}), do: nil

  def pick(%{connections: connections, turn: turn}) do
    size = tuple_size(connections)
    turn = :atomics.add_get(turn, 1, 1)

    if size <= @look_at_all do
      least(connections, size, rem(turn, size), size, nil, nil)
    else
      # A hash of the turn, taken for one of all pairs, is as good a die as :rand, and leaves no seed in the caller.
      pair = :erlang.phash2(turn, size * (size - 1))
      one = div(pair, size - 1)
      other = rem(one + 1 + rem(pair, size - 1), size)

      case {load(elem(connections, one)), load(elem(connections, other))} do
        {nil, nil} -> least(connections, size, one, size, nil, nil)
        {nil, _load} -> elem(connections, other)
        {_load, nil} -> elem(connections, one)
        {load, other_load} -> elem(connections, if(other_load < load, do: other, else: one))
      end
    end
  end

  defp least(_connections, _size, _at, 0, best, _load), do: best

  defp least(connections, size, at, left, best, best_load) do
    connection = elem(connections, at)
    next = if at + 1 == size, do: 0, else: at + 1

    case load(connection) do
      nil -> least(connections, size, next, left - 1, best, best_load)
      # No load is less than 0.
      0 -> connection
      # A number is less than nil.
      load when load < best_load -> least(connections, size, next, left - 1, connection, load)
      _more -> least(connections, size, next, left - 1, best, best_load)
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

  # Whether a server would refuse one more request.
  @spec full?(Connection.t()) :: boolean()
  def full?(connection), do: Connection.pending(connection) >= connection.max_pending
end
