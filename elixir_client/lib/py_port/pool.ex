defmodule PyPort.Pool do
  @moduledoc """
  Several Python processes behind one name.

      children = [
        {PyPort.Pool, name: Analytics, size: 4, init_code: "import statistics"}
      ]

      PyPort.eval("statistics.median(data)", %{data: data}, server: Analytics)

  A pool goes wherever a server goes: `server: Analytics`, or its pid, in `PyPort.eval/3`, `call/4`, `stream/3`,
  `open_session/1` and `status/1`. A request goes to a server that can begin it, and no process stands between its caller and
  that server. Sessions and objects live on one server, and requests that use them go there.

  Each server is a `PyPort.Server` with a Python of its own: two requests that compute do so on two cores, and state of
  modules (`some_module.counter += 1`) is each server's own. Objects of different servers cannot meet in one request.

  ## Waiting at the pool

  While every server runs something that takes longer than about a millisecond, requests wait at the pool, in the order of
  arrival, within their `:timeout`; the server that is free first gets the next one. So a long request holds up no other
  while a server is free, and a server that ends takes with it only the requests that it has begun, and those that were sent to it
  in the last few milliseconds: short requests follow each other closely, and Python has the next one at hand. A request
  that finds itself behind a long one after all, for 5 ms, is taken back and waits at the pool, as long as it has since it was
  made. `retry: n` in the options of a request asks again where a server has ended before it began.

  The order is that in which turns are given. Requests that come or get their turns at the same moment, within about a millisecond,
  may begin in another one. Use one process, a session, or `PyPort.cast/4` to one server where the order counts.

  Requests that await, and streams, leave their server free for others; with `threads: n` a server has n places. A
  request from a callback goes to the Python that has called it, if no other is free. A session is opened at once, on the server
  with the fewest requests. A server that has as many requests as it takes (`:max_pending`) is passed over. `PyPort.status/1` and `PyPort.Telemetry` tell how many requests wait, and for how long.

  ## Options

    * `:name` - the name to register, as with `GenServer`.
    * `:size` - how many servers. Default: as many as the BEAM has schedulers. 0 makes sense for a node that only uses
      the pool of others, see `:cluster`.
    * `:min_size` - how many servers the pool starts with, and keeps: others are started one at a time while requests wait,
      up to `:size`, and end when they are idle. With 0 the first request starts the first one. Default: `:size`.
    * `:idle_timeout` - how long a server above `:min_size` has no request before it ends, in ms, or `:infinity`. One with an open
      session or a live object stays. Default: 60_000.
    * `:max_queue` - how many requests may wait at the pool; one more is an error of the kind `:overloaded`. Default:
      10_000.
    * `:max_requests` - a server is replaced after this many requests. Default: `:infinity`.
    * `:max_age` - a server is replaced after this long, in ms. Default: `:infinity`.
    * `:max_rss` - a server is replaced when its process has this much memory resident, in bytes. Default: `:infinity`.
      A server without a request so far is not replaced for it: the next would be as large.
    * `:drain_timeout` - how long a server that is taken out may still work for those who have something on it, in ms,
      or `:infinity`. Default: 60_000.
    * `:preload` - Python source that is run once for the whole pool, or a function that gives it; see "Preloading" below.
    * `:cluster` - whether pools of the same name on other nodes stand in for this one, and this one for them. Default:
      `false`.

  All options of `PyPort.Server` besides, for each of the servers: `:python`, `:python_env`, `:init_code`, `:allow`, `:max_pending`
  and so on.

  ## Replacing servers

  Limits are looked at once a second, so they are exceeded a little. A server that is due goes on working until another
  has started, its `:init_code` included, and has taken its place. Then it gets no new work, and is stopped when it has no
  request, no open session and no live object any more. Until then it shows in `PyPort.status/1`, with
  the reason under `draining` and with what is left under `pending`, `sessions` and `objects`. After `:drain_timeout` it is
  stopped all the same, and what lived there ends with it.

  One server is replaced at a time, however many are due. A place whose last server is still being drained is not
  replaced again: there are never more than two servers for each place.

  ## Preloading

      {PyPort.Pool, name: Models, size: 8, preload: "import torch; model = load()"}

  One process, the template, runs the code once. The servers' Pythons are forks of it: they see the names that the code
  has bound, share its memory as long as neither side writes to it, and start in milliseconds. `:init_code` runs after the
  fork, in each of them. The template starts with the first server, gets `:cd`, `:env` and `:init_timeout` of the servers,
  and prints to Logger. When it ends, or does not answer for 5 s, the servers go on, and the next one starts another
  template.

  A fork has the memory of the template and none of its threads. Put all that does not survive into `:init_code`:
  threads (Logger names those that the code has left), CUDA contexts, connections, event loops. Native thread pools that
  the code has used, such as OpenMP's, can hang in a fork: load the model in the template, and use it in the members. A
  random generator of numpy or torch has one state in all members: seed it in `:init_code`. `atexit` functions that
  the code registers run at the end of each member. `restart/1` and a reload start another template, which runs the code anew.

  A small program that is built with the C extensions connects a server to the template. Without it each server runs the
  code itself, before `:init_code`, and Logger says so once.

  ## When servers end

  A server that ends takes only its own requests with it. Another is started at once; a server that keeps ending within 10
  seconds of its start is started again after 100 ms, then 200, up to every 30 seconds: from the second time in a row, or
  from the eleventh if it had answered requests each time. While no server works, requests get
  the reason as their error. A pool never gives up, and never ends its supervisor.

  The pool tells `:telemetry`, if the host application has it, which servers come and go, and why: see `PyPort.Telemetry`.

  ## Pools that span nodes

      {PyPort.Pool, name: Analytics, size: 2, cluster: true}

  Pools of one name with `cluster: true` find each other (by `:pg`) when their nodes are connected. A request goes to
  another node when none of the pool's own servers is ready, or when they are full (`:max_pending`), or when as many requests wait
  as may (`:max_queue`); local servers always
  come first, since the way to another node and back costs some 50 µs and a copy of all values. If no pool of that
  name runs on a node, and the name is an atom, its requests go to another node, too.

  Without `:cluster`, `server: {Analytics, node}` names the pool (or server) of another node. Either way: output reaches
  the caller's device, functions among the values run on the caller's node, objects and sessions lead back to the node
  where they live, and `:timeout` holds. When the node goes down the answer is a `PyPort.Error` of kind `:unavailable`
  whose `begun` is `nil`. PyPort must run on that node, in the same version.

  ## The default pool

  Without `server:` the pool `PyPort.Default` answers, which the application `:py_port` starts:

      config :py_port, pool: [size: 4, init_code: "import numpy as np"]

  It takes the options above; its `:size` is 1 unless configured, so that objects of different requests can always meet,
  modules keep their state, and an application pays for one Python. `config :py_port, pool: false` switches it off.
  """

  # A supervisor over the servers' supervisor and the manager: a manager that crashes leaves the servers running.
  use Supervisor

  alias PyPort.{Env, Error, Options, Reaper, Registry, Request}
  alias PyPort.Pool.{Manager, Members, Queue}
  alias PyPort.Server.Preload

  @type option :: {atom(), term()}

  @doc """
  Starts a pool, linked to the caller. It returns at once; the servers start in the background.

  Raises `ArgumentError` for an unknown option or a value of the wrong type. Gives
  `{:error, %PyPort.Error{kind: :unavailable}}` where the application `:py_port` is not started.

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 2)
      iex> PyPort.eval("1 + 1", %{}, server: pool)
      {:ok, 2}
  """
  @spec start_link([option()]) :: Supervisor.on_start() | {:error, Error.t()}
  def start_link(options \\ []),
    do: Reaper.start_watched(Supervisor, __MODULE__, options |> Options.pool!() |> Env.put_default(), &wait/1)

  defp wait(pool) do
    with {:ok, %{connections: {}} = members} <- Registry.fetch(pool),
         {:ok, _connection} <- Queue.wait(members, nil, :infinity) do
      :ok
    else
      {:ok, _members} -> :ok
      {:error, error} -> {:error, error}
    end
  end

  @doc false
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [Options.seal(options)]},
      type: :supervisor,
      restart: :permanent,
      shutdown: :infinity
    }
  end

  @doc """
  Changes how many servers a pool has. Returns at once: new servers take work when they are ready, and those that are
  too many get no new work and are stopped when they have no request, session or object any more (or after
  `:drain_timeout`).

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 1)
      iex> PyPort.Pool.resize(pool, 2)
      :ok
      iex> length(PyPort.status(pool))
      2
  """
  @spec resize(Supervisor.supervisor(), non_neg_integer()) :: :ok | {:error, Error.t()}
  def resize(pool, size) when is_integer(size) and size >= 0 do
    with {:ok, members} <- members(pool), do: Manager.resize(members.manager, size)
  catch
    :exit, _reason -> {:error, not_running(pool)}
  end

  def resize(_pool, size) do
    raise ArgumentError, "the size of a pool must be a number of servers (0 or more), got: #{inspect(size)}"
  end

  @doc """
  The servers of a pool that take work now. Each can be used as `server:` itself.

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 1)
      iex> {:ok, 1} = PyPort.eval("1", %{}, server: pool)
      iex> [server] = PyPort.Pool.servers(pool)
      iex> PyPort.eval("2", %{}, server: server)
      {:ok, 2}
  """
  @spec servers(Supervisor.supervisor()) :: [pid()]
  def servers(pool) do
    case members(pool) do
      {:ok, members} -> for connection <- Tuple.to_list(members.connections), do: connection.owner
      {:error, _error} -> []
    end
  end

  @doc """
  Replaces all servers of a pool, one after the other, with no request lost: each goes on until its successor has
  started, and then finishes what it has (see "Replacing servers"). The template of `:preload` is replaced as well. Returns at
  once; `PyPort.status/1` shows how far it is.

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 1)
      iex> PyPort.Pool.restart(pool)
      :ok
  """
  @spec restart(Supervisor.supervisor()) :: :ok | {:error, Error.t()}
  def restart(pool), do: renew(pool, :restart)

  @doc false
  # Takes all servers out at once, and starts others.
  @spec reload(Supervisor.supervisor()) :: :ok | {:error, Error.t()}
  def reload(pool), do: renew(pool, :reload)

  defp renew(pool, how) do
    with {:ok, members} <- members(pool), do: Manager.renew(members.manager, how)
  catch
    :exit, _reason -> {:error, not_running(pool)}
  end

  @doc """
  Evaluates the same code in every server of a pool that takes work now, at the same time, to swap a model, say. Gives
  the outcome of each. The options are those of `PyPort.eval/3`, but `:server` and `:session`.

  A server that starts later has not run the code: change what `:init_code` or `:preload` does as well. It gives an error if
  no such pool is running.

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 2, wait: true)
      iex> outcomes = PyPort.Pool.eval_all(pool, "1 + n", %{n: 1})
      iex> Enum.all?(outcomes, &match?({_server, {:ok, 2}}, &1))
      true
  """
  @spec eval_all(Supervisor.supervisor(), PyPort.code(), PyPort.globals(), [PyPort.option()]) ::
          [{pid(), {:ok, term()} | {:error, Error.t()}}] | {:error, Error.t()}
  def eval_all(pool, code, globals \\ %{}, options \\ []) when is_map(globals) do
    options = Options.request!(options)

    for name <- [:server, :session], given = Map.fetch!(options, name), given != nil do
      raise ArgumentError,
            "PyPort.Pool.eval_all/4 asks each server of the pool, and takes no option #{inspect(name)}, got: " <>
              inspect(given)
    end

    with {:ok, %{connections: connections}} <- members(pool) do
      servers = for connection <- Tuple.to_list(connections), do: connection.owner

      servers
      |> Enum.map(&Task.async(fn -> Request.ask({:eval, code, globals}, %{options | server: &1}) end))
      |> Task.await_many(:infinity)
      |> then(&Enum.zip(servers, &1))
    end
  end

  defp members(pool) do
    with pid when is_pid(pid) <- GenServer.whereis(pool),
         {:ok, %Members{} = members} <- Registry.fetch(pid) do
      {:ok, members}
    else
      _no_pool -> {:error, not_running(pool)}
    end
  end

  defp not_running(pool),
    do: Error.unavailable("no PyPort.Pool is running as #{inspect(pool)}. #{Registry.running(pool)}")

  @impl true
  def init(options) do
    # Of this process, so that it outlives a manager that crashes.
    queue = Queue.new()

    template =
      if options.preload, do: [%{id: :template, start: {Preload, :start_link, [{self(), options}]}}], else: []

    children =
      [Supervisor.child_spec({DynamicSupervisor, strategy: :one_for_one}, id: :servers)] ++
        template ++ [%{id: :manager, start: {Manager, :start_link, [{self(), queue, options}]}}]

    Supervisor.init(children, strategy: :rest_for_one)
  end
end
