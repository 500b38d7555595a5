defmodule PyPort.Registry do
  # The servers and pools of this VM, in a public ETS table: finding one costs a look-up and never a message.
  #
  # | key | value |
  # | --- | --- |
  # | pid of a server | its connection, from the launch of its Python on |
  # | `{pid, fact}` | `:heartbeat` of a Python, with its time; `:health` state; `:name` of a server; `:pool` of a server; `:template`: the `PyPort.Server.Preload` of a pool; `:trouble`: the error why a pool has no server that works; `:members`: the pool has a persistent term |
  # | `{:starts, name}` | how often a Python was started for a server of that name |
  # | `:kinds` | how to tell a process that is a server or a pool |
  #
  # The connection of a server that is ready stands in a persistent term as well, which is not copied: it is full of
  # references to tables, and copying those costs a request 2 µs, a tenth of all that it takes. To erase such a term costs
  # a look at every process; only the end of a server does it. The servers of a pool stand in a persistent term under the
  # pool's pid, so that a request need not know which of the two it was given.
  #
  # PyPort.Reaper removes what a server or a pool leaves here, however it has ended.
  @moduledoc false

  alias PyPort.{Connection, DidYouMean}
  alias PyPort.Pool.Members

  @table __MODULE__

  # A list that is read, not searched.
  @names_shown 10

  @type fact :: :heartbeat | :health | :name | :pool | :template | :trouble
  @type kind :: :server | :pool

  # `kinds` maps the initial call of a process to what the process is.
  @spec create(%{mfa() => kind()}) :: :ok
  def create(kinds) do
    :ets.new(@table, [:named_table, :public, :set, read_concurrency: true])
    put_row(:kinds, kinds)
  end

  @spec put(Connection.t()) :: :ok
  def put(%Connection{owner: owner} = connection) do
    put_row(owner, connection)
    # Once in the life of a server, since to replace one would cost what to erase it does.
    if connection.ready, do: :persistent_term.put({__MODULE__, owner}, connection)
    :ok
  end

  @spec delete(pid()) :: :ok
  def delete(owner) do
    :persistent_term.erase({__MODULE__, owner})
    delete_rows([owner, {owner, :heartbeat}, {owner, :health}])
  end

  @spec all() :: [Connection.t()]
  def all, do: for({owner, connection} when is_pid(owner) <- :ets.tab2list(@table), do: connection)

  @spec fetch(pid()) :: {:ok, Connection.t() | Members.t()} | :error | :not_started
  def fetch(owner) do
    case :persistent_term.get({__MODULE__, owner}, nil) do
      nil -> fetch_unready(owner)
      connection_or_members -> {:ok, connection_or_members}
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

  # --- names ----------------------------------------------------------------------------------

  # The kind of a process; nil if it is neither a server nor a pool, or has ended.
  @spec kind(pid()) :: kind() | nil
  def kind(pid), do: Map.get(value(:kinds) || %{}, :proc_lib.translate_initial_call(pid))

  # The servers and pools that a name was registered for, by that name; not those of other registries. The processes
  # themselves are looked at: a server whose Python cannot be started has no row here.
  @spec named() :: [{atom(), pid()}]
  def named do
    for name <- Process.registered(),
        pid = Process.whereis(name),
        is_pid(pid),
        kind(pid) != nil,
        do: {name, pid}
  end

  # A sentence with the names of the servers and pools that run, for an error about the name of another one.
  @spec running(term()) :: String.t()
  def running(name) do
    case named() |> Enum.map(&elem(&1, 0)) |> Enum.sort_by(&inspect/1) do
      [] ->
        "None is running under any name"

      known ->
        {shown, others} = Enum.split(known, @names_shown)
        more = if others == [], do: "", else: " and #{length(others)} more"

        String.trim_leading(DidYouMean.similar(name, known) <> " Running: ") <>
          Enum.map_join(shown, ", ", &inspect/1) <> more
    end
  end

  # --- facts ----------------------------------------------------------------------------------

  @spec put_fact(pid(), fact(), term()) :: :ok
  def put_fact(pid, fact, value), do: put_row({pid, fact}, value)

  @spec fact(pid(), fact()) :: term() | nil
  def fact(pid, fact), do: value({pid, fact})

  @spec delete_fact(pid(), fact()) :: :ok
  def delete_fact(pid, fact), do: delete_rows([{pid, fact}])

  # --- pools ----------------------------------------------------------------------------------

  @spec put_pool(Members.t()) :: :ok
  def put_pool(%Members{pool: pool} = members) do
    put_row({pool, :members}, true)
    :persistent_term.put({__MODULE__, pool}, members)
  end

  @spec pools() :: [pid()]
  def pools, do: :ets.select(@table, [{{{:"$1", :members}, :_}, [], [:"$1"]}])

  @spec delete_pool(pid()) :: :ok
  def delete_pool(pool) do
    :persistent_term.erase({__MODULE__, pool})
    delete_rows([{pool, :trouble}, {pool, :template}, {pool, :members}])
    :ets.match_delete(@table, {{:_, :pool}, pool})
    :ok
  rescue
    ArgumentError -> :ok
  end

  # --- starts ---------------------------------------------------------------------------------

  # The calling server has started a Python; `name` is that of the server.
  @spec count_start(term()) :: :ok
  def count_start(name) do
    put_row({self(), :name}, name)
    :ets.update_counter(@table, {:starts, name}, 1, {{:starts, name}, 0})
    :ok
  end

  # The name of a server that has ended; it is forgotten with that.
  @spec take_name(pid()) :: {:ok, term()} | :error
  def take_name(owner) do
    case :ets.take(@table, {owner, :name}) do
      [{_key, name}] -> {:ok, name}
      [] -> :error
    end
  end

  # Forgets how often a server of that name was started, unless there is one.
  @spec forget_starts(term()) :: :ok
  def forget_starts(name) do
    if GenServer.whereis(name) == nil, do: delete_rows([{:starts, name}])
    :ok
  rescue
    # A registry of the host's, named by {:via, ...}, that has ended.
    _gone -> :ok
  end

  # How often a Python was started by that name, but for the first time.
  @spec restarts(term()) :: non_neg_integer()
  def restarts(name), do: (value({:starts, name}) || 1) - 1

  # --- rows -----------------------------------------------------------------------------------

  defp put_row(key, value) do
    :ets.insert(@table, {key, value})
    :ok
  end

  defp value(key) do
    case :ets.lookup(@table, key) do
      [{_key, value}] -> value
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  defp delete_rows(keys) do
    Enum.each(keys, &:ets.delete(@table, &1))
  rescue
    # The application is stopping and its table has gone before its servers.
    ArgumentError -> :ok
  end
end
