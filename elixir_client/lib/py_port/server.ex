defmodule PyPort.Server do
  @moduledoc """
  One Python process under one supervisor.

      children = [
        {PyPort.Server, name: Analytics, python: "/usr/bin/python3"}
      ]

      PyPort.eval("1 + 1", %{}, server: Analytics)

  The server starts its Python in the background: `start_link/1` returns at once, and the first requests wait (within their
  own `:timeout`) until Python is ready. A Python that cannot be started is tried again, at growing intervals; meanwhile every
  request gets the reason as its error. When a Python that ran ends, for whatever reason, its server ends with it, every
  waiting caller gets the report, and the supervisor starts a new one.

  ## Options

    * `:name` - the name to register, as with `GenServer`.
    * `:label` - its name in Logger. Default: `:name`, else its pid.
    * `:python` - the interpreter: a path, or a name on the PATH. Default: the environment `:default` of
      `config :py_port, :uv_init` (see `PyPort.Env`), else the environment variable `PYPORT_PYTHON`, else `python3`.
    * `:python_env` - instead of `:python` the name of a Python environment (see `PyPort.Env`).
    * `:cd` - the working directory. Default: the BEAM's own.
    * `:env` - environment variables, as `[{"NAME", "value"}]`; a value of `nil` unsets one. Or a function that gives such a
      list, called at each start.
    * `:inherit_env` - which of the BEAM's own environment variables Python and its children have as well: `true` for all
      but `RELEASE_COOKIE`, `false` for none, or a list of names. Default: `true`. See "What Python can see and do" in
      docs/reliability.md.
    * `:init_code` - Python source run once at start, or a function that gives it; the names it defines are seen by every
      request. It runs in the main thread. With a top-level `await` it runs on the event loop of later requests, in the
      thread of that loop, and tasks that it creates go on. It cannot wait for calls into Elixir, which are answered from
      `hello` on.
    * `:wait` - whether `start_link/1` returns only when Python is ready, or gives the error why it is not: then the
      application does not start without its Python. Default: `false`.
    * `:preload` - for `PyPort.Pool`, which runs it once for all of its servers. A server by itself runs it at each start,
      before `:init_code`.
    * `:init_timeout` - how long Python may take from its start until it is ready, `:init_code` included,
      in ms. Default: 60_000.
    * `:allow` - the functions that Python may call by name with `port_server.call(module, function, args)`: a list of
      `{Module, :function, arity}`, `{Module, :function}` and whole modules, or `:all`. Default: none. It guards against accidents, not
      against attacks: Python is trusted code.
    * `:arrays`, `:tables` - what arrays and tables are in the values of requests that do not say it themselves, and in the
      arguments of functions of Elixir, see `PyPort`. Default: `:object`.
    * `:logger` - whether Python's log records, and lines of its stderr that belong to no request, go to `Logger`.
      Default: `true`.
    * `:heartbeat_interval` - the interval of Python's heartbeats, and of the server's own checks (stderr, requests of
      callers that have died), in ms. Default: 1_000.
    * `:lost_after` - how long an idle Python may send no heartbeat before it is killed, in ms, or `:infinity`.
      Default: 10_000.
    * `:gil_held_limit` - how long code may hold the interpreter, so that Python sends no heartbeat, before it is killed, in
      ms. Default: `:infinity`, since to be busy is no error: a request is limited by its own timeout.
    * `:cancel_grace` - how long a request that was cancelled (its timeout has passed, its caller has died, its stream is
      read no further) may take to end, in ms. Default: 1_000.
    * `:kill_grace` - how long after that its Python is killed at the latest, in ms. Default: 1_000. A caller has its
      answer at the latest at `:timeout` + `:cancel_grace` + `:kill_grace`.
    * `:import_grace` - how long an import may go on that a request was in the midst of when it was cancelled, in ms, before
      its Python is killed. Default: 30_000. docs/reliability.md says why an import is not cut short.
    * `:after_cancel` - whether a Python in which a running request was interrupted goes on (`:keep`), or is drained and
      started anew (`:restart`), for code that leaves things half done. Default: `:keep`.
    * `:memory_limit` - how much memory Python may have, in bytes; beyond it there is a `MemoryError`. It counts address
      space, so leave room for libraries. Default: `nil`, no limit but the machine's.
    * `:shutdown_grace` - how long Python may take to finish what it is doing when its server is stopped,
      before it is killed, in ms. Default: 1_000.
    * `:max_frame_bytes` - the largest request or reply, in bytes. Default: 1 GiB.
    * `:max_depth` - how deep a value may be nested on its way to Python and back, in levels, 2,000 at the most.
      Default: 512.
    * `:max_queued_bytes` - how much may wait in the port before requests are refused with `:overloaded`, in
      bytes. Default: 64 MiB. One request of any size always passes.
    * `:shm_threshold` - from how many bytes on a request goes through memory that Python shares with this node, and not
      through the pipe; `:infinity` for none. On Linux, and without `:memory_limit`. Default: 2 MiB.
    * `:max_shm_bytes` - how much of that memory there may be, in bytes; more goes through the pipe. It goes back to the system
      after 30 s without a large request. Default: 512 MiB.
    * `:binary_as` - what the binaries of globals and arguments are in Python, for requests without this option: `:str`
      (they must be UTF-8) or `:bytes`. The results of calls into Elixir are the same. Default: `:str`.
    * `:threads` - how many requests run at once, each in a thread of its own, in this one Python: for code that waits (for
      the network, a disk, a lock) or computes where the GIL is released. With 0 they run one after another in Python's main
      thread, where any code can be stopped. A thread cannot be stopped while it waits in a call that never returns: then
      its caller has its `:timeout` on time, the server takes no more requests, finishes the others and starts anew.
      Default: 0.
    * `:async_threads` - how many threads `asyncio.to_thread` and `run_in_executor` have. Default: 32.
    * `:max_pending` - how many requests may be open before more are refused with `:overloaded`. Default: 1_024.
    * `:max_stderr_bytes` - how large the file of Python's stderr may become, in bytes; then it is emptied, and lines that
      have not reached Logger yet are lost. Its size is checked ten times a second, and a hundred times while it grows.
      Default: 16 MiB.
    * `:max_objects` - how many `PyPort.Object` handles may be alive before no more are made. With a tenth of them Logger gets
      a warning. Default: 100_000.
    * `:max_objects_per_owner` - how many of them one process may own before it gets no more, so that one process that
      keeps them all does not take them from the others. Default: 50_000. An owner of a tenth of that is named in Logger.

  The events of a server go to `Logger` and, if the host application has it, to `:telemetry`: see `PyPort.Telemetry`.
  """

  # The owner of the port. Callers write to the port themselves and read their replies themselves; the owner forwards
  # bytes, and hands each message on: frames to Traffic, requests that are to end to Cancellation, its own look after
  # Python to Health, the end of Python to Shutdown. Each of these has a part of the state, see PyPort.Server.State.
  use GenServer, restart: :permanent

  require Logger

  import PyPort.Server.Requests, only: [is_worker: 2]

  alias PyPort.{Callbacks, Connection, Env, Error, Options, Reaper, Registry, Wire}

  alias PyPort.Server.{AsyncDelivery, Cancellation, Health, Ownership, RequestTable}
  alias PyPort.Server.{Shutdown, Startup, Stderr, Traffic}

  @type variables :: [{String.t(), String.t() | nil | false}]
  @type option ::
          {:name, GenServer.name()}
          | {:python | :cd, String.t() | nil}
          | {:env, variables() | (... -> variables())}
          | {:inherit_env, boolean() | [String.t()]}
          | {:init_code | :preload,
             String.t() | PyPort.Code.t() | nil | (... -> String.t() | PyPort.Code.t())}
          | {:init_timeout | :lost_after | :gil_held_limit, timeout()}
          | {:allow, :all | [module() | {module(), atom()} | {module(), atom(), arity()}]}
          | {:arrays, :object | :tensor | :nx}
          | {:tables, :object | :arrow | :explorer}
          | {:logger, boolean()}
          | {:binary_as, :str | :bytes}
          | {:heartbeat_interval, pos_integer()}
          | {:cancel_grace | :kill_grace | :import_grace | :shutdown_grace, non_neg_integer()}
          | {:after_cancel, :keep | :restart}
          | {:memory_limit, pos_integer() | nil}
          | {:threads, non_neg_integer()}
          | {:async_threads, pos_integer()}
          | {:shm_threshold, pos_integer() | :infinity}
          | {:max_shm_bytes, pos_integer()}
          | {:max_frame_bytes | :max_depth | :max_queued_bytes | :max_pending, pos_integer()}
          | {:max_stderr_bytes | :max_objects | :max_objects_per_owner, pos_integer()}

  @doc """
  Starts a server, linked to the caller. See the module's documentation for the options.

  Raises `ArgumentError` for an unknown option or a value of the wrong type. Gives
  `{:error, %PyPort.Error{kind: :unavailable}}` where the application `:py_port` is not started.

  ## Examples

      iex> {:ok, server} = PyPort.Server.start_link(init_code: "import math")
      iex> PyPort.eval("math.floor(2.5)", %{}, server: server)
      {:ok, 2}
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(options \\ []),
    do:
      Reaper.start_watched(GenServer, __MODULE__, options |> Options.server!() |> Env.put_default(), &wait/1)

  defp wait(server), do: with({:ok, _connection} <- await_ready(server, :infinity), do: :ok)

  @doc false
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [Options.seal(options)]},
      type: :worker,
      restart: :permanent,
      # The grace that Python has, and then the time to kill it and to tidy up.
      shutdown: Keyword.get(options, :shutdown_grace, 1_000) + 4_000
    }
  end

  @doc """
  The operating system's process id of the Python process, or `nil` while none is running.

  ## Examples

      iex> {:ok, server} = PyPort.Server.start_link()
      iex> {:ok, os_pid} = PyPort.eval("import os; os.getpid()", %{}, server: server)
      iex> PyPort.Server.os_pid(server) == os_pid
      true
  """
  @spec os_pid(GenServer.server()) :: pos_integer() | nil
  def os_pid(server) do
    with pid when is_pid(pid) <- GenServer.whereis(server),
         {:ok, %Connection{os_pid: os_pid}} <- Registry.fetch(pid) do
      os_pid
    else
      _none -> nil
    end
  end

  @doc false
  @spec await_ready(pid(), timeout()) :: {:ok, Connection.t()} | {:error, Error.t()}
  def await_ready(owner, timeout) do
    GenServer.call(owner, :await_ready, timeout)
  catch
    :exit, {:timeout, _call} ->
      {:error, Error.new(:timeout, "Python was still starting when the time was up", begun: false)}

    :exit, {reason, _call} ->
      {:error, %{Error.of_exit(reason) | kind: :unavailable, begun: false}}
  end

  # --- startup --------------------------------------------------------------------------------

  @impl true
  def init(options) do
    # A port that dies with data queued sends only an exit signal.
    Process.flag(:trap_exit, true)
    {:ok, Startup.state(options), {:continue, :open}}
  end

  @impl true
  def handle_continue(:open, state), do: {:noreply, state |> Health.schedule() |> Startup.launch()}

  # --- messages -------------------------------------------------------------------------------

  @impl true
  def handle_info({port, {:data, frame}}, %{connection: %{port: port}, phase: phase} = state) do
    route = Wire.route(frame)

    if phase == :starting do
      if route in [:hello, :goodbye], do: control(route, frame, state), else: unreadable(frame, state)
    else
      case Traffic.frame(route, frame, state) do
        {:ok, state} -> {:noreply, state}
        :other -> control(route, frame, state)
      end
    end
  end

  def handle_info(:tick, state) do
    case Health.tick(state) do
      {:ok, state} ->
        {:noreply, state |> Traffic.sweep() |> Traffic.pass_on_stderr() |> Stderr.note()}

      # The kill follows when it is known where the interpreter was held.
      {:kill, why, state} when why in [:gil_held, :stuck] ->
        state |> Cancellation.dump_before_kill(why) |> next()

      end_of_python ->
        next(end_of_python)
    end
  end

  def handle_info({:collected, id, owner}, state), do: {:noreply, Ownership.collected(state, id, owner)}
  def handle_info(:stderr, state), do: {:noreply, Stderr.limit(state)}
  def handle_info({:cancel_step, id}, state), do: state |> Cancellation.next_step(id) |> next()
  def handle_info({:dumped, pid, result}, state), do: state |> Cancellation.dumped(pid, result) |> next()

  def handle_info(:replace, %{phase: :ready} = state), do: {:noreply, Cancellation.replace(state)}
  # By after_cancel: :restart, or since a request could not be stopped.
  def handle_info(:restart, %{phase: :ready} = state), do: {:stop, Shutdown.restart(state), state}

  def handle_info({port, {:exit_status, status}}, %{connection: %{port: port}} = state),
    do: died(status, state)

  # The pipe is gone, the status still to come, if it comes.
  def handle_info({:EXIT, port, _reason}, %{connection: %{port: port}} = state),
    do: died(Shutdown.exit_status(port), state)

  def handle_info({:timeout, timer, what}, state) when what in [:init_timeout, :retry],
    do: {:noreply, Startup.timeout(state, timer, what)}

  def handle_info({{:caller_down, id}, _monitor, :process, _pid, _reason}, state),
    do: {:noreply, Traffic.caller_down(state, id)}

  def handle_info({:DOWN, monitor, :process, pid, _reason}, state),
    do: {:noreply, Ownership.down(state, monitor, pid)}

  def handle_info({:EXIT, worker, reason}, state) when is_worker(state, worker),
    do: {:noreply, Traffic.worker_ended(state, worker, reason)}

  # The process of async delivery should not end; if it does all the same, another one goes on.
  def handle_info({:EXIT, delivery, reason}, %{delivery: delivery} = state) do
    Logger.error("PyPort #{state.who}: the process for log records ended: #{Exception.format_exit(reason)}")
    delivery = AsyncDelivery.start_link(state.connection, state.who, state.options.logger)
    AsyncDelivery.acknowledge_all(state.connection)
    {:noreply, %{state | delivery: delivery}}
  end

  # The same for the heir.
  def handle_info({:EXIT, heir, reason}, %{heir: heir} = state) do
    Logger.error(
      "PyPort #{state.who}: the process of its open requests ended: #{Exception.format_exit(reason)}"
    )

    {:noreply, %{state | heir: RequestTable.replace_heir(state.connection)}}
  end

  # The parent's exit ends a GenServer before it gets here; any other link is the port of an earlier try.
  # A process that was linked to this one and ended in peace is no reason to end, as with any other process.
  def handle_info({:EXIT, pid, reason}, state) when is_pid(pid) and reason != :normal,
    do: {:stop, reason, state}

  def handle_info(_late, state), do: {:noreply, state}

  @impl true
  def handle_call(:await_ready, from, state), do: Startup.await(state, from)

  # Of a server that is taken out of service: no process has anything here, and none will.
  def handle_call(:retire, _from, %{phase: :ready} = state) do
    idle? = Ownership.count(state) == 0 and Connection.close_intake(state.connection)
    {:reply, if(idle?, do: :retired, else: :in_use), state}
  end

  def handle_call(:retire, _from, state), do: {:reply, :retired, state}

  def handle_call({:transfer, ids, owner}, _from, %{phase: :ready} = state) do
    {answer, state} = Ownership.transfer(state, ids, owner)
    {:reply, answer, state}
  end

  def handle_call({:transfer, ids, _owner}, _from, state), do: {:reply, {:error, ids}, state}

  def handle_call({:transfer_session, name, owner}, _from, state) do
    {answer, state} = Ownership.transfer_session(state, name, owner)
    {:reply, answer, state}
  end

  @impl true
  def handle_cast({:ownership, change}, state), do: {:noreply, Ownership.cast(state, change)}
  def handle_cast({:cancel, id, why}, state), do: {:noreply, Cancellation.cancel(state, id, why)}
  def handle_cast({:gave_up, id}, state), do: {:noreply, Cancellation.gave_up(state, id)}

  # --- frames that belong to no request -------------------------------------------------------

  defp control(:hello, frame, state), do: {:noreply, Startup.hello(frame, state)}

  defp control(:goodbye, frame, state) do
    case {state.phase, Wire.decode(frame)} do
      {:starting, {:ok, {:goodbye, %{} = why}}} -> {:noreply, Startup.goodbye(state, why)}
      {_phase, {:ok, {:goodbye, why}}} -> {:noreply, Shutdown.goodbye(state, why)}
      _unreadable -> {:noreply, state}
    end
  end

  defp control(:heartbeat, frame, state) do
    case Wire.decode(frame) do
      {:ok, {:heartbeat, %{} = said}} ->
        {dropped, said} = Map.pop(said, :dropped, [])
        Callbacks.drop(state.connection, dropped)
        Registry.put_fact(self(), :heartbeat, {said, System.monotonic_time(:millisecond)})
        {:noreply, state |> Health.heartbeat(said) |> Ownership.warn(said)}

      _unreadable ->
        {:noreply, state}
    end
  end

  # A term, so the frames before and behind it are frames.
  defp control(_unknown, <<131, _term::binary>> = frame, state) do
    Logger.warning(
      "PyPort #{state.who}: a frame of an unknown kind from Python: #{inspect(frame, limit: 32)}"
    )

    {:noreply, state}
  end

  defp control(_no_term, frame, state), do: unreadable(frame, state)

  # From here on it is not known where a frame begins.
  defp unreadable(frame, state) do
    Logger.error(
      "PyPort #{state.who}: #{byte_size(frame)} bytes from Python are not a message of the protocol: " <>
        inspect(frame, limit: 32)
    )

    next({:kill, :unreadable, state})
  end

  # --- shutdown -------------------------------------------------------------------------------

  defp next({:ok, state}), do: {:noreply, state}

  defp next({:exited, %{phase: :starting} = state}) do
    case Startup.gone(state) do
      {:wait, state} -> {:noreply, state}
      {:ended, state} -> exited(state)
    end
  end

  defp next({:exited, state}), do: exited(state)
  defp next({:kill, :unreadable, %{phase: :starting} = state}), do: {:noreply, Startup.unreadable(state)}

  defp next({:kill, why, state}) do
    {reason, state} = Shutdown.kill(state, why)
    {:stop, reason, %{state | phase: :dead}}
  end

  defp exited(state) do
    {status, state} = Shutdown.exited(state)
    died(status, state)
  end

  # While it starts, an end is a failure to start.
  defp died(status, %{phase: :starting} = state), do: {:noreply, Startup.ended(state, status)}

  defp died(status, state) do
    state = Stderr.log(state)
    {:stop, Shutdown.died(state, status), %{state | phase: :dead}}
  end

  @impl true
  def terminate(_reason, %{phase: :ready} = state), do: Shutdown.drain(state)
  def terminate(_reason, state), do: Shutdown.close(state)
end
