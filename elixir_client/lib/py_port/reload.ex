defmodule PyPort.Reload do
  # In development: before a request of a pool looks whether a Python file has changed, and starts the servers of all pools
  # anew if one has.
  @moduledoc false
  use GenServer

  require Logger

  alias PyPort.{Registry, Sources}
  alias PyPort.Pool.Manager

  # After a look none follows for so long.
  @look_ms 100
  @names_shown 3

  # `directories` gives those that are looked at, besides `priv/python`.
  @spec start_link((... -> [Path.t()])) :: GenServer.on_start()
  def start_link(directories), do: GenServer.start_link(__MODULE__, directories, name: __MODULE__)

  # Returns when the servers of changed files take no request any more.
  @spec check() :: :ok
  def check do
    GenServer.call(__MODULE__, :check, :infinity)
  catch
    # It is just being restarted.
    :exit, _reason -> :ok
  end

  @impl true
  def init(directories), do: {:ok, %{directories: directories, files: look(directories), at: now()}}

  @impl true
  def handle_call(:check, _from, %{files: files, at: at, directories: directories} = state) do
    if now() - at < @look_ms do
      {:reply, :ok, state}
    else
      found = look(directories)
      changed = for {path, stat} <- found, files[path] != stat, do: path
      gone = for {path, _stat} <- files, not is_map_key(found, path), do: path
      if changed ++ gone != [], do: reload(changed ++ gone)
      {:reply, :ok, %{state | files: found, at: now()}}
    end
  end

  defp reload(paths) do
    Logger.info("PyPort: #{names(paths)} changed: the servers of the pools start anew")

    for pool <- Registry.pools(), {:ok, members} <- [Registry.fetch(pool)], do: renew(members.manager)
  end

  defp renew(manager) do
    Manager.renew(manager, :reload)
  catch
    # Its pool is just ending, or its next manager is starting.
    :exit, _reason -> :ok
  end

  defp names(paths) do
    {shown, more} = Enum.split(paths, @names_shown)
    text = Enum.map_join(shown, ", ", &Path.relative_to_cwd/1)
    if more == [], do: text, else: "#{text} and #{length(more)} more"
  end

  defp look(directories), do: Sources.state(Sources.directories() ++ directories.())

  defp now, do: System.monotonic_time(:millisecond)
end
