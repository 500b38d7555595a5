defmodule PyPort.Registry do
  # Which servers this VM has: owner pid -> handle, {owner pid, :beat} -> the last that was heard of its Python,
  # {owner pid, :verdict} -> what is thought of it, and {:starts, name} -> how often one was started by that name. A
  # public ETS table, so that finding a server costs a look-up and never a message; what a row means is the business of
  # PyPort.Server.
  #
  # The handle of a server that is ready stands in a persistent term as well, which is not copied: a handle is full of
  # references to tables, and copying those costs a request 2 µs, a tenth of all that it takes. The price is a look at
  # every process when such a term is erased; that is when a server ends, and nobody else does it.
  @moduledoc false

  alias PyPort.Server.Handle

  @table __MODULE__

  @spec create() :: :ok
  def create do
    :ets.new(@table, [:named_table, :public, :set, read_concurrency: true])
    :ok
  end

  @spec put(Handle.t()) :: :ok
  def put(%Handle{owner: owner} = handle) do
    :ets.insert(@table, {owner, handle})
    # Once in the life of a server, since to replace one would cost what to erase it does.
    if handle.ready, do: :persistent_term.put({__MODULE__, owner}, handle)
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

  @spec all() :: [Handle.t()]
  def all, do: for({owner, handle} when is_pid(owner) <- :ets.tab2list(@table), do: handle)

  @spec put_beat(pid(), PyPort.Status.beat()) :: :ok
  def put_beat(owner, beat) do
    :ets.insert(@table, {{owner, :beat}, beat})
    :ok
  end

  @spec fetch_beat(pid()) :: PyPort.Status.beat() | nil
  def fetch_beat(owner) do
    case :ets.lookup(@table, {owner, :beat}) do
      [{_key, beat}] -> beat
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @spec put_verdict(pid(), PyPort.Liveness.verdict()) :: :ok
  def put_verdict(owner, verdict) do
    :ets.insert(@table, {{owner, :verdict}, verdict})
    :ok
  end

  @spec fetch_verdict(pid()) :: PyPort.Liveness.verdict() | nil
  def fetch_verdict(owner) do
    case :ets.lookup(@table, {owner, :verdict}) do
      [{_key, verdict}] -> verdict
      [] -> nil
    end
  rescue
    ArgumentError -> nil
  end

  @spec count_start(term()) :: :ok
  def count_start(name) do
    :ets.update_counter(@table, {:starts, name}, 1, {{:starts, name}, 0})
    :ok
  end

  @doc "How often a Python was started by that name, but for the first time."
  @spec restarts(term()) :: non_neg_integer()
  def restarts(name) do
    case :ets.lookup(@table, {:starts, name}) do
      [{_key, starts}] -> starts - 1
      [] -> 0
    end
  rescue
    ArgumentError -> 0
  end

  @doc false
  @spec fetch(pid()) :: {:ok, Handle.t()} | :error | :not_started
  def fetch(owner) do
    case :persistent_term.get({__MODULE__, owner}, nil) do
      nil -> fetch_unready(owner)
      handle -> {:ok, handle}
    end
  end

  defp fetch_unready(owner) do
    case :ets.lookup(@table, owner) do
      [{_owner, handle}] -> {:ok, handle}
      [] -> :error
    end
  rescue
    ArgumentError -> :not_started
  end
end
