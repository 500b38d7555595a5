defmodule PyPort.Registry do
  # Which servers this VM has: owner pid -> connection, {owner pid, :beat} -> the last that was heard of its Python,
  # {owner pid, :verdict} -> what is thought of it, {owner pid, :name} -> its name, and {:starts, name} -> how often one was
  # started by that name. A public ETS table, so that finding a server costs a look-up and never a message; what a row means is the business of
  # PyPort.Server.
  #
  # The connection of a server that is ready stands in a persistent term as well, which is not copied: a connection is full of
  # references to tables, and copying those costs a request 2 µs, a tenth of all that it takes. The price is a look at
  # every process when such a term is erased; that is when a server ends, and nobody else does it.
  #
  # The servers of a pool stand in a persistent term of the pool's own, under its pid like that of a server, so that a
  # request need not know what it was given. It is replaced when a server joins or leaves. {server, :pool} -> pid tells
  # to which pool a server belongs, {pool, :trouble} -> error why a pool has nobody who works, {pool, :members} that there is
  # such a term. PyPort.Reaper sees to it that nothing is left of a server or pool that has ended, by any way of ending.
  @moduledoc false

  alias PyPort.Connection
  alias PyPort.Pool.Members

  @table __MODULE__

  @spec create() :: :ok
  def create do
    :ets.new(@table, [:named_table, :public, :set, read_concurrency: true])
    :ok
  end

  @spec put(Connection.t()) :: :ok
  def put(%Connection{owner: owner} = connection) do
    :ets.insert(@table, {owner, connection})
    # Once in the life of a server, since to replace one would cost what to erase it does.
    if connection.ready, do: :persistent_term.put({__MODULE__, owner}, connection)
    :ok
  end

  @spec delete(pid()) :: :ok
  def delete(owner) do
    :persistent_term.erase({__MODULE__, owner})
    :ets.delete(@table, owner)
    :ets.delete(@table, {owner, :beat})
    :ets.delete(@table, {owner, :verdict})
    :ok
  rescue
    # The application is stopping and its table has gone before its servers.
    ArgumentError -> :ok
  end

  @spec all() :: [Connection.t()]
  def all, do: for({owner, connection} when is_pid(owner) <- :ets.tab2list(@table), do: connection)

  @doc """
  The servers and pools that a name was registered for, by that name; not those of other registries. Asked of the
  processes themselves: a server whose Python cannot be started has no row here.
  """
  @spec named() :: [{atom(), pid()}]
  def named do
    for name <- Process.registered(),
        pid = Process.whereis(name),
        is_pid(pid),
        :proc_lib.translate_initial_call(pid) in [{PyPort.Server, :init, 1}, {:supervisor, PyPort.Pool, 1}],
        do: {name, pid}
  end

  @spec put_beat(pid(), PyPort.Status.beat()) :: :ok
  def put_beat(owner, beat) do
    :ets.insert(@table, {{owner, :beat}, beat})
    :ok
  end

  @spec fetch_beat(pid()) :: PyPort.Status.beat() | nil
  def fetch_beat(owner), do: value({owner, :beat})

  defp value(key) do
    case :ets.lookup(@table, key) do
      [{_key, value}] -> value
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @spec put_pool(Members.t()) :: :ok
  def put_pool(%Members{pool: pool} = members) do
    :ets.insert(@table, {{pool, :members}, true})
    :persistent_term.put({__MODULE__, pool}, members)
  end

  @spec pools() :: [pid()]
  def pools, do: :ets.select(@table, [{{{:"$1", :members}, :_}, [], [:"$1"]}])

  @spec delete_pool(pid()) :: :ok
  def delete_pool(pool) do
    :persistent_term.erase({__MODULE__, pool})
    :ets.delete(@table, {pool, :trouble})
    :ets.delete(@table, {pool, :members})
    :ets.match_delete(@table, {{:_, :pool}, pool})
    :ok
  rescue
    ArgumentError -> :ok
  end

  @spec put_pool_of(server :: pid(), pool :: pid()) :: :ok
  def put_pool_of(server, pool) do
    :ets.insert(@table, {{server, :pool}, pool})
    :ok
  end

  @spec delete_pool_of(server :: pid()) :: :ok
  def delete_pool_of(server) do
    :ets.delete(@table, {server, :pool})
    :ok
  end

  @doc "The pool that a server belongs to, if it belongs to one."
  @spec pool_of(server :: pid()) :: pid() | nil
  def pool_of(server), do: value({server, :pool})

  @spec put_trouble(pool :: pid(), PyPort.Error.t()) :: :ok
  def put_trouble(pool, error) do
    :ets.insert(@table, {{pool, :trouble}, error})
    :ok
  end

  @spec delete_trouble(pool :: pid()) :: :ok
  def delete_trouble(pool) do
    :ets.delete(@table, {pool, :trouble})
    :ok
  end

  @spec trouble(pool :: pid()) :: PyPort.Error.t() | nil
  def trouble(pool), do: value({pool, :trouble})

  @spec put_verdict(pid(), PyPort.Server.Liveness.verdict()) :: :ok
  def put_verdict(owner, verdict) do
    :ets.insert(@table, {{owner, :verdict}, verdict})
    :ok
  end

  @spec fetch_verdict(pid()) :: PyPort.Server.Liveness.verdict() | nil
  def fetch_verdict(owner), do: value({owner, :verdict})

  @doc "The calling server has started a Python; `name` is that of the server."
  @spec count_start(term()) :: :ok
  def count_start(name) do
    :ets.insert(@table, {{self(), :name}, name})
    :ets.update_counter(@table, {:starts, name}, 1, {{:starts, name}, 0})
    :ok
  end

  @doc "The name of a server that has ended; it is forgotten with that."
  @spec take_name(pid()) :: {:ok, term()} | :error
  def take_name(owner) do
    case :ets.take(@table, {owner, :name}) do
      [{_key, name}] -> {:ok, name}
      [] -> :error
    end
  end

  @doc "Forgets how often a server of that name was started, unless there is one."
  @spec forget_starts(term()) :: :ok
  def forget_starts(name) do
    if GenServer.whereis(name) == nil, do: :ets.delete(@table, {:starts, name})
    :ok
  rescue
    # A registry of the host's, named by {:via, ...}, that has ended.
    _gone -> :ok
  end

  @doc "How often a Python was started by that name, but for the first time."
  @spec restarts(term()) :: non_neg_integer()
  def restarts(name), do: (value({:starts, name}) || 1) - 1

  @doc false
  @spec fetch(pid()) :: {:ok, Connection.t() | Members.t()} | :error | :not_started
  def fetch(owner) do
    case :persistent_term.get({__MODULE__, owner}, nil) do
      nil -> fetch_unready(owner)
      handle_or_members -> {:ok, handle_or_members}
    end
  end

  defp fetch_unready(owner) do
    case :ets.lookup(@table, owner) do
      [{_owner, connection}] -> {:ok, connection}
      [] -> :error
    end
  rescue
    ArgumentError -> :not_started
  end
end
