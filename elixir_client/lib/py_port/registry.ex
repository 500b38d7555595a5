defmodule PyPort.Registry do
  # Which servers this VM has: owner pid -> handle. A public ETS table, so that finding a server costs
  # a look-up and never a message; what a row means is the business of PyPort.Server.
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
    :ok
  end

  @spec delete(pid()) :: :ok
  def delete(owner) do
    :ets.delete(@table, owner)
    :ok
  rescue
    # The application is stopping and its table has gone before its servers.
    ArgumentError -> :ok
  end

  @spec all() :: [Handle.t()]
  def all, do: for({_owner, handle} <- :ets.tab2list(@table), do: handle)

  @doc false
  @spec fetch(pid()) :: {:ok, Handle.t()} | :error | :not_started
  def fetch(owner) do
    case :ets.lookup(@table, owner) do
      [{_owner, handle}] -> {:ok, handle}
      [] -> :error
    end
  rescue
    ArgumentError -> :not_started
  end
end
