defmodule PyPort.Status do
  @moduledoc """
  How a server is, as far as is known without asking Python. `PyPort.status/1` gives these.

    * `server` - the server's process, or the name under which none is running.
    * `draining` - why its pool takes it out (`:max_requests`, `:max_age`, `:max_rss`, `:requested`, `:reload`, `:resized`, `:idle`,
      or `:not_wanted` for one that has never worked), while it still has requests, sessions or objects; `nil` for one that takes new work.
    * `state` - one of
      * `:idle`, `:busy` - it sends heartbeats; whether it runs a request;
      * `:gil_held` - silent, and computing: code holds the interpreter. `stacks/1` shows where;
      * `:stuck` - silent, not computing, with requests open: code holds the interpreter and waits;
      * `:stopped` - the process is stopped (SIGSTOP, a debugger);
      * `:lost` - silent without any reason; it is killed after `:lost_after`;
      * `:unknown` - silent, and there is no `/proc` here to see why;
      * `:unreadable` - it writes, but no whole frame arrives: code has written to the port's file descriptor, or has
        replaced it. It is killed at once;
      * `:starting`, `:down` - not running yet; not running, or Python could not be started.
    * `restarts` - how often a Python was started anew for a server of this name; 0 where it has no name.
    * `running`, `running_ms` - the number of the request that the main thread is running, and since when; `nil` if none.
    * `queue` - how many requests wait in Python for their turn.
    * `pool_queue`, `pool_wait_ms` - how many requests wait at its pool for a server that can begin them, and for how long
      the first of them has; the same for all servers of a pool.
    * `pending` - how many requests have no final answer yet, as this side counts; the only number that is of now.
    * `requests` - how many were answered since the start of Python.
    * `objects`, `sessions`, `tasks`, `calls` - the numbers of live handles, open sessions, requests that await, and calls
      into the BEAM.
    * `shm_bytes`, `shm_frames` - how much memory it shares with this node, and how many large requests stand there, or are
      still referred to by arrays that Python keeps.
    * `rss_bytes` - the memory that Python's process has resident.
    * `os_pid` - its process id, `nil` while there is none.
    * `beat_age_ms` - how old what Python says of itself is; `nil` where it has not said anything yet.

  `table/1` prints several of them for people, `mix py_port.top` does so again and again.
  """

  @enforce_keys [:server, :state]
  defstruct @enforce_keys ++
              [:running, :running_ms, :os_pid, :rss_bytes, :beat_age_ms, :draining] ++
              [restarts: 0, pending: 0, queue: 0, requests: 0, objects: 0, sessions: 0, tasks: 0, calls: 0] ++
              [pool_queue: 0, pool_wait_ms: 0, shm_bytes: 0, shm_frames: 0]

  @type state ::
          :idle | :busy | :gil_held | :stopped | :stuck | :lost | :unknown | :unreadable | :starting | :down

  @type t :: %__MODULE__{
          server: GenServer.server(),
          state: state(),
          restarts: non_neg_integer(),
          running: pos_integer() | nil,
          running_ms: non_neg_integer() | nil,
          os_pid: pos_integer() | nil,
          rss_bytes: non_neg_integer() | nil,
          beat_age_ms: non_neg_integer() | nil,
          draining: atom() | nil,
          pending: non_neg_integer(),
          queue: non_neg_integer(),
          pool_queue: non_neg_integer(),
          pool_wait_ms: non_neg_integer(),
          shm_bytes: non_neg_integer(),
          shm_frames: non_neg_integer(),
          requests: non_neg_integer(),
          objects: non_neg_integer(),
          sessions: non_neg_integer(),
          tasks: non_neg_integer(),
          calls: non_neg_integer()
        }

  alias PyPort.{Connection, Registry, Remote}
  alias PyPort.Pool.{Manager, Members, Queue}

  @numbers [:rss_bytes, :queue, :requests, :objects, :sessions, :tasks, :calls, :running_ms] ++
             [:shm_bytes, :shm_frames]

  @doc """
  Every server and every pool of this node, by its name, or its pid if it has none, for a dashboard.

  ## Examples

      iex> {PyPort.Default, [%PyPort.Status{} | _]} = List.keyfind(PyPort.Status.all(), PyPort.Default, 0)
  """
  @spec all() :: [{GenServer.name() | pid(), [t()]}]
  def all do
    named = Registry.named()
    pids = MapSet.new(named, &elem(&1, 1))
    owners = for %Connection{owner: owner} <- Registry.all(), do: Registry.fact(owner, :pool) || owner
    nameless = for pid <- Enum.uniq(owners), pid not in pids, do: {pid, pid}

    for {name, pid} <- Enum.sort_by(named ++ nameless, fn {name, _pid} -> inspect(name) end),
        do: {name, of_pid(pid, restarts(pid))}
  end

  @doc """
  A table of servers, as text: a line for each, with its state, the number of its running request and since when, how many
  requests are open and how many of them queue in Python, how many were answered, its memory, and its restarts.

  Takes what `PyPort.status/1` gives, or what `all/0` gives, whose names then stand before their servers.

  ## Examples

      iex> table = PyPort.Status.table(PyPort.status())
      iex> table |> String.split("\\n") |> hd() |> String.split()
      ~w(SERVER STATE REQUEST SINCE OPEN QUEUE DONE RSS RESTARTS)
  """
  @spec table([t()] | [{GenServer.name() | pid(), [t()]}]) :: String.t()
  def table(statuses), do: PyPort.Status.Table.text(statuses)

  @doc false
  @spec of(GenServer.server()) :: [t()]
  def of(server) do
    case GenServer.whereis(server) do
      pid when is_pid(pid) and node(pid) == node() -> of_pid(pid, restarts(server))
      pid when is_pid(pid) -> of_remote(node(pid), pid)
      {name, node} when node != node() -> of_remote(node, name)
      _nobody -> [%__MODULE__{server: server, state: :down, restarts: restarts(server)}]
    end
  end

  defp of_remote(node, server) do
    case Remote.errand(node, __MODULE__, :of, [server]) do
      {:ok, list} -> list
      {:error, _gone} -> [%__MODULE__{server: server, state: :down}]
    end
  end

  defp of_pid(pid, restarts) do
    case Registry.fetch(pid) do
      {:ok, %Members{manager: manager, queue: queue}} ->
        {length, oldest} = Queue.waiting(queue)
        waiting = %{pool_queue: length, pool_wait_ms: System.convert_time_unit(oldest, :native, :millisecond)}
        for {server, role} <- Manager.overview(manager), do: struct!(of_member(server, role, pid), waiting)

      _server ->
        [%{of_owner(pid) | restarts: restarts}]
    end
  catch
    # The pool is just being stopped.
    :exit, _reason -> [%__MODULE__{server: pid, state: :down}]
  end

  # A place that waits for a new server.
  defp of_member(nil, _role, pool), do: %__MODULE__{server: pool, state: :down}
  defp of_member(server, {:draining, why}, _pool), do: %{of_owner(server) | draining: why}
  defp of_member(server, _role, _pool), do: of_owner(server)

  defp of_owner(owner) do
    case Registry.fetch(owner) do
      {:ok, %Connection{ready: true} = connection} ->
        connection |> heard(Registry.fact(owner, :heartbeat)) |> judged(Registry.fact(owner, :health))

      {:ok, %Connection{os_pid: os_pid}} ->
        %__MODULE__{server: owner, state: :starting, os_pid: os_pid}

      _none ->
        %__MODULE__{server: owner, state: :down}
    end
  end

  defp restarts(pid) when is_pid(pid) do
    case Process.info(pid, :registered_name) do
      {:registered_name, name} -> Registry.restarts(name)
      _none -> 0
    end
  end

  defp restarts(name), do: Registry.restarts(name)

  # Until the first heartbeat its requests tell whether it is busy.
  defp heard(connection, nil) do
    pending = Connection.pending(connection)
    state = if pending == 0, do: :idle, else: :busy
    %__MODULE__{server: connection.owner, state: state, os_pid: connection.os_pid, pending: pending}
  end

  defp heard(connection, {said, at}) do
    numbers = for name <- @numbers, is_integer(said[name]), do: {name, said[name]}

    struct!(
      %__MODULE__{
        server: connection.owner,
        state: if(said[:state] == :busy, do: :busy, else: :idle),
        running: number(said[:running]),
        os_pid: connection.os_pid,
        pending: Connection.pending(connection),
        beat_age_ms: max(System.monotonic_time(:millisecond) - at, 0)
      },
      numbers
    )
  end

  # The last heartbeat of a Python that is well is newer than the server's last look at it.
  defp judged(status, health) when health in [nil, :idle, :busy], do: status
  defp judged(status, :exited), do: %{status | state: :down}
  defp judged(status, health), do: %{status | state: health}

  defp number(<<number::64>>), do: number
  defp number(_none), do: nil

  defimpl Inspect do
    alias PyPort.Status.Table

    def inspect(status, _options) do
      parts = [
        Table.state(status),
        status.running && "request #{status.running} for #{Table.duration(status.running_ms || 0)}",
        status.pending > 0 && "#{status.pending} open",
        status.queue > 0 && "#{status.queue} queued",
        "#{status.requests} answered",
        status.objects > 0 && "#{status.objects} objects",
        status.sessions > 0 && "#{status.sessions} sessions",
        status.rss_bytes && Table.bytes(status.rss_bytes),
        status.os_pid && "process #{status.os_pid}",
        status.restarts > 0 && "#{status.restarts} restarts"
      ]

      "#PyPort.Status<#{Kernel.inspect(status.server)} #{parts |> Enum.filter(& &1) |> Enum.join(", ")}>"
    end
  end
end
