defmodule PyPort.Server do
  @moduledoc """
  One Python process under one supervisor.

      children = [
        {PyPort.Server, name: Analytics, python: "/usr/bin/python3"}
      ]

      PyPort.eval("1 + 1", %{}, server: Analytics)

  The server starts its Python in the background: `start_link/1` returns at once, and the first
  requests wait (within their own `:timeout`) until Python is there. A Python that cannot be started is
  tried again, at growing intervals, and every request is told why meanwhile. When a Python that ran ends, for
  whatever reason, its server ends with it, every waiting caller gets the report, and the supervisor starts
  a new one.

  ## Options

    * `:name` - the name to register, as with `GenServer`.
    * `:python` - the interpreter: a path, or a name on the PATH. Default: the environment variable
      `PYPORT_PYTHON`, else `python3`.
    * `:python_env` - instead of `:python` the name of a Python environment (see `PyPort.Env`).
    * `:cd` - the working directory. Default: the BEAM's own.
    * `:env` - environment variables, as `[{"NAME", "value"}]`; a value of `nil` unsets one.
    * `:init_code` - Python source run once at start; the names it defines are seen by every request.
    * `:init_timeout` - how long Python may take from its start until it is ready, `:init_code` included,
      in ms. Default: 60_000.
    * `:allow` - what Python may call by name with `port_server.call(module, function, args)`: a list of
      `{Module, :function, arity}`, `{Module, :function}` and whole modules. Default: nothing. It guards against
      accidents, not against attacks: Python is trusted code.
    * `:logger` - whether what Python logs, and what it writes to stderr, goes to `Logger`. Default: `true`.
    * `:heartbeat_interval` - how often Python tells how it is, and the server looks after its house (stderr,
      requests of callers that have died), in ms. Default: 1_000.
    * `:shutdown_grace` - how long Python may take to finish what it is doing when its server is stopped,
      before it is killed, in ms. Default: 1_000.
    * `:max_frame_bytes` - the largest request or reply, in bytes. Default: 1 GiB.
    * `:max_queued_bytes` - how much may wait in the port before requests are refused with `:overloaded`, in
      bytes. Default: 64 MiB. One request of any size always passes.
    * `:max_pending` - how many requests may be open before more are refused with `:overloaded`. Default: 1_024.
    * `:max_objects` - how many `PyPort.Object` handles may be alive before no more are made. Default: 100_000.
  """

  # The owner of the port. Callers write to the port themselves and read their replies themselves; the
  # owner forwards bytes, and sees to birth and death. How a process is started is PyPort.Server.Launch's,
  # what frames hold is PyPort.Wire's, killing is PyPort.Reaper's.
  use GenServer, restart: :permanent

  require Logger

  alias PyPort.{Env, Error, Options, Reaper, Registry, Status, StderrFile, Wire}
  alias PyPort.Server.{Handle, Launch, Mail, Ownership, Property, Traffic}

  @stderr_lines 20
  @backoff_first_ms 500
  @backoff_most_ms 30_000

  # After the end of its pipe is seen, an exit status still comes; not for ever, since a grandchild may hold the pipe.
  @exit_status_wait_ms 500

  # Reads of 64 KiB: what one look at the stderr file may bring to Logger.
  @stderr_reads 16

  @type option :: {atom(), term()}

  @doc """
  Starts a server, linked to the caller. See the module's documentation for the options.

  Raises `ArgumentError` for an unknown option or a value of the wrong type. Gives
  `{:error, %PyPort.Error{kind: :unavailable}}` where the application `:py_port` is not started.
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(options \\ []) do
    valid = Options.server!(options)

    if Process.whereis(Reaper) do
      GenServer.start_link(__MODULE__, valid, if(valid.name, do: [name: valid.name], else: []))
    else
      {:error, Error.not_started()}
    end
  end

  @doc false
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [options]},
      type: :worker,
      restart: :permanent,
      # The grace that Python has, and then the time to kill it and to tidy up.
      shutdown: Keyword.get(options, :shutdown_grace, 1_000) + 4_000
    }
  end

  @doc """
  The operating system's process id of the Python process, or `nil` while none is running.
  """
  @spec os_pid(GenServer.server()) :: pos_integer() | nil
  def os_pid(server) do
    with pid when is_pid(pid) <- GenServer.whereis(server),
         {:ok, %Handle{os_pid: os_pid}} <- Registry.fetch(pid) do
      os_pid
    else
      _none -> nil
    end
  end

  @doc false
  @spec await_ready(pid(), timeout()) :: {:ok, Handle.t()} | {:error, Error.t()}
  def await_ready(owner, timeout) do
    GenServer.call(owner, :await_ready, timeout)
  catch
    :exit, {:timeout, _call} ->
      {:error,
       %Error{kind: :timeout, begun: false, message: "Python was still starting when the time was up"}}

    :exit, {reason, _call} ->
      {:error, Error.of_exit(reason)}
  end

  # --- birth ----------------------------------------------------------------------------------

  @impl true
  def init(options) do
    # A port that dies with data queued tells so by an exit signal and nothing else.
    Process.flag(:trap_exit, true)

    state = %{
      options: options,
      phase: :starting,
      handle: nil,
      # Who waits for the server to be ready: GenServer.from()
      waiting: [],
      # The last failure to start, while phase is :down or until the next try succeeds.
      error: nil,
      failures: 0,
      stderr: nil,
      timer: nil,
      # id -> what serves that request besides its caller: %{writer: pid | nil, servant: pid | nil}
      attached: %{},
      mail: nil,
      ownership: Ownership.new(),
      # holder of objects or sessions -> the monitor on it
      monitors: %{}
    }

    {:ok, state, {:continue, :open}}
  end

  @impl true
  def handle_continue(:open, state) do
    Process.send_after(self(), :beat, state.options.heartbeat_interval)
    {:noreply, open(state)}
  end

  defp open(state) do
    case Launch.open(state.options) do
      {:ok, handle, stderr} ->
        mail = Mail.start_link(handle, who(state), state.options.logger)
        timer = start_timer(state.options.init_timeout, :init_timeout)
        %{state | phase: :starting, handle: handle, stderr: stderr, timer: timer, mail: mail}

      {:error, error} ->
        boot_failed(state, error)
    end
  end

  # --- messages -------------------------------------------------------------------------------

  @impl true
  def handle_info({port, {:data, frame}}, %{handle: %{port: port}} = state) do
    route = Wire.route(frame)

    case Traffic.frame(route, frame, state) do
      {:ok, state} -> {:noreply, state}
      :other -> control(route, frame, state)
    end
  end

  def handle_info(:beat, state) do
    Process.send_after(self(), :beat, state.options.heartbeat_interval)
    {:noreply, state |> Traffic.sweep() |> log_stderr()}
  end

  def handle_info({port, {:exit_status, status}}, %{handle: %{port: port}} = state), do: died(status, state)

  # The pipe is gone, the status still to come, if it comes.
  def handle_info({:EXIT, port, _reason}, %{handle: %{port: port}} = state) do
    receive do
      {^port, {:exit_status, status}} -> died(status, state)
    after
      @exit_status_wait_ms -> died(nil, state)
    end
  end

  def handle_info({:timeout, timer, :init_timeout}, %{timer: timer, phase: :starting} = state) do
    error =
      unavailable(
        "Python was not ready within #{state.options.init_timeout} ms (see :init_timeout and :init_code); it was killed"
      )

    {:noreply, boot_failed(state, error)}
  end

  def handle_info({:timeout, timer, :retry}, %{timer: timer, phase: :down} = state) do
    {:noreply, open(%{state | phase: :starting})}
  end

  def handle_info({:DOWN, monitor, :process, pid, _reason}, state) do
    case Property.down(state, monitor, pid) do
      {:ok, state} -> {:noreply, state}
      :unknown -> {:noreply, state}
    end
  end

  # The process that takes the mail does nothing that could end it; if it ends all the same, the next does its work.
  def handle_info({:EXIT, mail, reason}, %{mail: mail} = state) do
    Logger.error("PyPort #{who(state)}: the process for log records ended: #{Exception.format_exit(reason)}")
    {:noreply, %{state | mail: Mail.start_link(state.handle, who(state), state.options.logger)}}
  end

  # The parent's exit ends a GenServer before it gets here; any other link is the port of an earlier try.
  # A process that was linked to this one and ended in peace is no reason to end, as with any other process.
  def handle_info({:EXIT, pid, reason}, state) when is_pid(pid) and reason != :normal,
    do: {:stop, reason, state}

  def handle_info(_late, state), do: {:noreply, state}

  @impl true
  def handle_call(:await_ready, from, state) do
    case state do
      %{phase: :ready, handle: handle} -> {:reply, {:ok, handle}, state}
      %{phase: :down, error: error} -> {:reply, {:error, error}, state}
      %{phase: :starting} -> {:noreply, %{state | waiting: [from | state.waiting]}}
    end
  end

  def handle_call({:transfer, ids, owner}, _from, %{phase: :ready} = state) do
    {answer, state} = Property.transfer(state, ids, owner)
    {:reply, answer, state}
  end

  def handle_call({:transfer, ids, _owner}, _from, state), do: {:reply, {:error, ids}, state}

  @impl true
  def handle_cast({:property, message}, state), do: {:noreply, Property.cast(state, message)}
  def handle_cast({:gave_up, id}, state), do: {:noreply, Traffic.abandon(state, id)}

  defp control(:hello, frame, state), do: hello(frame, state)
  defp control(:goodbye, frame, state), do: goodbye(frame, state)

  defp control(:heartbeat, frame, state) do
    with {:ok, {:heartbeat, %{} = beat}} <- Wire.decode(frame),
         do: Registry.put_beat(self(), Status.beat(beat))

    {:noreply, state}
  end

  defp control(_unknown, frame, state) do
    Logger.warning(
      "PyPort #{who(state)}: a frame of an unknown kind from Python: #{inspect(frame, limit: 32)}"
    )

    {:noreply, state}
  end

  defp hello(frame, %{phase: :starting} = state) do
    case Wire.decode_hello(frame) do
      {:ok, version, info} ->
        if version == Wire.protocol_version() do
          case Env.running(state.options.python_env, info) do
            :ok -> {:noreply, ready(state)}
            {:error, error} -> {:noreply, boot_failed(state, error)}
          end
        else
          ours = Wire.protocol_version()

          message =
            "the port_server in this environment speaks protocol #{inspect(version)}, this library speaks #{ours}: " <>
              "install the version that belongs to it"

          {:noreply, boot_failed(state, unavailable(message))}
        end

      :error ->
        {:noreply, boot_failed(state, unavailable("Python's first words could not be read"))}
    end
  end

  defp hello(_frame, state), do: {:noreply, state}

  defp ready(state) do
    cancel_timer(state.timer)
    handle = %{state.handle | ready: true}
    Registry.put(handle)
    Enum.each(state.waiting, &GenServer.reply(&1, {:ok, handle}))
    if state.failures > 0, do: Logger.info("PyPort #{who(state)}: Python is running again")
    %{state | phase: :ready, handle: handle, waiting: [], timer: nil, error: nil, failures: 0}
  end

  defp goodbye(frame, state) do
    case {state.phase, Wire.decode(frame)} do
      {:starting, {:ok, {:goodbye, %{} = description}}} ->
        error = Error.from_wire(description)

        {:noreply,
         boot_failed(state, %{error | kind: :unavailable, message: boot_message(error), begun: false})}

      {_ready, {:ok, {:goodbye, %{message: message}}}} ->
        Logger.error("PyPort #{who(state)}: Python is leaving: #{message}")
        {:noreply, state}

      # An orderly end; the exit status follows.
      _any ->
        {:noreply, state}
    end
  end

  # What a Python that cannot start says is seldom what a person should do about it.
  defp boot_hint(stderr) do
    case Env.Advice.python(stderr) do
      nil -> ""
      advice -> ". " <> advice
    end
  end

  defp boot_message(%Error{kind: :python} = error),
    do: "init_code failed:\n" <> Exception.message(error)

  defp boot_message(%Error{message: message}), do: message

  # --- death ----------------------------------------------------------------------------------

  # While it starts, an end is a failure to start: said once, tried again, and no reason to die.
  defp died(status, %{phase: :starting} = state) do
    report = Error.death(status, [])
    message = "Python did not start: " <> report.message <> boot_hint(last_words(state))
    {:noreply, boot_failed(state, %{report | kind: :unavailable, begun: false, message: message})}
  end

  # What had begun nobody knows here, so `begun` stays nil.
  defp died(status, state) do
    state = log_stderr(state)
    Reaper.kill(self())
    report = Error.death(status, last_words(state))
    Logger.error("PyPort #{who(state)}: #{report.message}")
    {:stop, {:shutdown, report}, %{state | phase: :dead}}
  end

  defp boot_failed(state, error) do
    error = %{error | stderr: last_words(state)}
    state = close(state)
    failures = state.failures + 1
    wait = min(@backoff_first_ms * 2 ** min(failures - 1, 10), @backoff_most_ms)

    # The same failure is not worth a second line.
    if state.error == nil or state.error.message != error.message do
      Logger.error("PyPort #{who(state)}: #{Exception.message(error)}\nTrying again in #{wait} ms, and on.")
    end

    Enum.each(state.waiting, &GenServer.reply(&1, {:error, error}))
    %{state | phase: :down, error: error, waiting: [], failures: failures, timer: start_timer(wait, :retry)}
  end

  # Kill first, then close: closing a port with data queued to a stopped child leaves the port open.
  defp close(%{handle: nil} = state), do: state

  defp close(%{handle: handle, stderr: stderr} = state) do
    cancel_timer(state.timer)
    Reaper.kill(self())
    close_port(handle.port)
    :ets.delete(handle.table)
    :ets.delete(handle.calls)
    Registry.delete(self())
    StderrFile.close(stderr)
    File.rm_rf(handle.dir)
    Process.unlink(state.mail)
    Process.exit(state.mail, :kill)
    for {_holder, monitor} <- state.monitors, do: Process.demonitor(monitor, [:flush])

    %{
      state
      | handle: nil,
        stderr: nil,
        timer: nil,
        mail: nil,
        attached: %{},
        ownership: Ownership.new(),
        monitors: %{}
    }
  end

  defp close_port(port) do
    Port.close(port)
  rescue
    ArgumentError -> true
  end

  @impl true
  def terminate(_reason, %{phase: :ready} = state) do
    # An orderly stop: Python may finish what it is doing, within the grace.
    grace = state.options.shutdown_grace
    Handle.command(state.handle, Wire.shutdown(grace))
    await_exit(state.handle.port, System.monotonic_time(:millisecond) + grace, state)
  end

  def terminate(_reason, state), do: close(state)

  # Replies go out until the end.
  defp await_exit(port, deadline, state) do
    receive do
      {^port, {:data, frame}} ->
        state =
          case frame |> Wire.route() |> Traffic.frame(frame, state) do
            {:ok, state} -> state
            :other -> state
          end

        await_exit(port, deadline, state)

      {^port, {:exit_status, _status}} ->
        state |> log_stderr() |> close()

      {:EXIT, ^port, _reason} ->
        state |> log_stderr() |> close()
    after
      max(deadline - System.monotonic_time(:millisecond), 0) -> state |> log_stderr() |> close()
    end
  end

  # --- small things ---------------------------------------------------------------------------

  defp log_stderr(%{stderr: nil} = state), do: state

  defp log_stderr(%{options: %{logger: log?}} = state) do
    {lines, stderr} = StderrFile.read_lines(state.stderr, @stderr_reads)
    if log? and lines != [], do: Logger.info("PyPort #{who(state)} stderr: #{Enum.join(lines, "\n")}")
    %{state | stderr: stderr}
  end

  defp last_words(%{stderr: nil}), do: []
  defp last_words(%{stderr: stderr}), do: StderrFile.last_lines(stderr, @stderr_lines)

  defp who(%{options: %{name: nil}}), do: inspect(self())
  defp who(%{options: %{name: name}}), do: inspect(name)

  defp unavailable(message), do: %Error{kind: :unavailable, message: message, begun: false}

  defp start_timer(:infinity, _message), do: nil
  defp start_timer(after_ms, message), do: :erlang.start_timer(after_ms, self(), message)

  defp cancel_timer(nil), do: :ok
  defp cancel_timer(timer), do: :erlang.cancel_timer(timer)
end
