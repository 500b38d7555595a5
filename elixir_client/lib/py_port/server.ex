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
    * `:cd` - the working directory. Default: the BEAM's own.
    * `:env` - environment variables, as `[{"NAME", "value"}]`; a value of `nil` unsets one.
    * `:init_code` - Python source run once at start; the names it defines are seen by every request.
    * `:init_timeout` - how long Python may take from its start until it is ready, `:init_code` included,
      in ms. Default: 60_000.
    * `:logger` - whether what Python writes to stderr goes to `Logger`. Default: `true`.
    * `:heartbeat_interval` - how often the server looks after its house (stderr, requests of callers that have
      died), in ms. Default: 1_000.
    * `:shutdown_grace` - how long Python may take to finish what it is doing when its server is stopped,
      before it is killed, in ms. Default: 1_000.
    * `:max_frame_bytes` - the largest request or reply, in bytes. Default: 1 GiB.
    * `:max_queued_bytes` - how much may wait in the port before requests are refused with `:overloaded`, in
      bytes. Default: 64 MiB. One request of any size always passes.
    * `:max_pending` - how many requests may be open before more are refused with `:overloaded`. Default: 1_024.
  """

  # The owner of the port. Callers write to the port themselves and read their replies themselves; the
  # owner forwards bytes, and sees to birth and death. How a process is started is PyPort.Server.Launch's,
  # what frames hold is PyPort.Wire's, killing is PyPort.Reaper's.
  use GenServer, restart: :permanent

  require Logger

  alias PyPort.{Error, Options, Output, Reaper, Registry, StderrFile, Wire}
  alias PyPort.Server.{Handle, Launch}

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
      {:error, death_report(reason)}
  end

  @doc false
  # What a caller makes of the reason for which its server ended.
  @spec death_report(term()) :: Error.t()
  def death_report({:shutdown, %Error{} = error}), do: error

  def death_report(reason) when reason in [:noproc, :noconnection] do
    %Error{kind: :unavailable, begun: false, message: "the server is not running, or is just being restarted"}
  end

  def death_report(reason) when reason in [:normal, :shutdown] do
    %Error{kind: :exited, message: "the server was stopped before it answered"}
  end

  def death_report({:shutdown, _reason}), do: death_report(:shutdown)

  def death_report(reason) do
    %Error{kind: :exited, message: "the process that owns the port ended: #{Exception.format_exit(reason)}"}
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
      # id -> the process that writes the output of that request
      writers: %{}
    }

    {:ok, state, {:continue, :open}}
  end

  @impl true
  def handle_continue(:open, state) do
    Process.send_after(self(), :beat, state.options.heartbeat_interval)
    {:noreply, open(state)}
  end

  defp open(state) do
    dir = new_dir()
    stderr_path = Path.join(dir, "stderr")

    with {:ok, launch} <- Launch.prepare(state.options, stderr_path),
         {:ok, stderr} <- make_stderr(dir, stderr_path),
         {:ok, port, os_pid} <- open_port(launch) do
      start_time = Reaper.start_time(os_pid)
      handle = handle(state.options, port, os_pid, start_time, dir)
      # In this order: a reaper that is just being restarted hears no casts, and reads the registry first.
      Registry.put(handle)
      Reaper.watch(self(), os_pid, start_time, dir)
      command(port, Wire.init(init_options(state.options)))
      timer = start_timer(state.options.init_timeout, :init_timeout)
      %{state | phase: :starting, handle: handle, stderr: stderr, timer: timer}
    else
      {:error, error} ->
        File.rm_rf(dir)
        boot_failed(state, error)
    end
  end

  defp handle(options, port, os_pid, start_time, dir) do
    %Handle{
      owner: self(),
      port: port,
      table: :ets.new(:py_port_requests, [:set, :public, write_concurrency: true]),
      counter: :atomics.new(1, signed: false),
      os_pid: os_pid,
      start_time: start_time,
      dir: dir,
      max_frame_bytes: options.max_frame_bytes,
      max_queued_bytes: options.max_queued_bytes,
      max_pending: options.max_pending
    }
  end

  defp open_port(launch) do
    port = Port.open({:spawn_executable, ~c"/bin/sh"}, launch.port_options)

    case Port.info(port, :os_pid) do
      {:os_pid, os_pid} -> {:ok, port, os_pid}
      nil -> {:error, unavailable("Python ended before it had begun")}
    end
  rescue
    error -> {:error, unavailable("Python could not be started: #{Exception.message(error)}")}
  end

  defp new_dir do
    unique = Base.encode32(:rand.bytes(10), case: :lower, padding: false)
    Path.join(System.tmp_dir() || "/tmp", "py_port-#{System.pid()}-#{unique}")
  end

  defp make_stderr(dir, path) do
    with :ok <- File.mkdir(dir),
         :ok <- File.chmod(dir, 0o700),
         {:ok, stderr} <- StderrFile.open(path) do
      {:ok, stderr}
    else
      {:error, reason} ->
        {:error,
         unavailable(
           "the directory #{dir} for Python's stderr could not be made: #{:file.format_error(reason)}. " <>
             "Set TMPDIR to a directory that can be written"
         )}
    end
  end

  # Who the owner is, and what a struct looks like on this Elixir, Python cannot know.
  defp init_options(options) do
    base = %{
      owner: self(),
      token: Base.encode16(:rand.bytes(16)),
      max_frame_bytes: options.max_frame_bytes,
      templates: %{map_set: MapSet.new()}
    }

    case options.init_code do
      nil ->
        base

      %PyPort.Code{source: source, file: file, line: line} ->
        Map.put(base, :init_code, {:code, source, file, line})

      source ->
        Map.put(base, :init_code, source)
    end
  end

  # --- messages -------------------------------------------------------------------------------

  @impl true
  def handle_info({port, {:data, frame}}, %{handle: %{port: port}} = state) do
    case Wire.route(frame) do
      {:reply, id} -> {:noreply, reply(state, id, frame)}
      {:output, id} -> {:noreply, output(state, id, frame)}
      :hello -> hello(frame, state)
      :goodbye -> goodbye(frame, state)
      other -> {:noreply, aside(other, frame, state)}
    end
  end

  def handle_info(:beat, state) do
    Process.send_after(self(), :beat, state.options.heartbeat_interval)
    {:noreply, state |> sweep() |> log_stderr()}
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

  defp reply(state, id, frame) do
    case :ets.take(state.handle.table, id) do
      [{_id, ref, _caller, _deadline, _devices}] ->
        case state.writers do
          %{^id => writer} ->
            send(ref, {ref, frame, writer})
            Output.finish(writer, ref)
            %{state | writers: Map.delete(state.writers, id)}

          _printed_nothing ->
            send(ref, {ref, frame})
            state
        end

      # Its caller has given up.
      [] ->
        {writer, writers} = Map.pop(state.writers, id)
        if writer, do: Output.finish(writer, nil)
        %{state | writers: writers}
    end
  end

  defp output(state, id, frame) do
    case state.writers do
      %{^id => writer} ->
        Output.write(writer, frame)
        state

      writers ->
        case :ets.lookup(state.handle.table, id) do
          [{_id, _ref, caller, _deadline, devices}] ->
            writer = Output.start(caller, devices)
            Output.write(writer, frame)
            %{state | writers: Map.put(writers, id, writer)}

          [] ->
            log_output(frame, state)
        end
    end
  end

  # What is printed for nobody goes to Logger.
  defp log_output(frame, state) do
    with {:ok, {:output, _id, _stream, text}} <- Wire.decode(frame),
         do: log(state, String.trim_trailing(text))

    state
  end

  defp hello(frame, %{phase: :starting} = state) do
    case Wire.decode_hello(frame) do
      {:ok, version, _info} ->
        if version == Wire.protocol_version() do
          {:noreply, ready(state)}
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

  # The options that Python is started with came with 3.11; an older one complains of the first.
  defp boot_hint(stderr) do
    if Enum.any?(stderr, &(&1 =~ "option: -P" or &1 =~ "option -P")),
      do: "; is it older than Python 3.11, the oldest that will do?",
      else: ""
  end

  defp boot_message(%Error{kind: :python} = error),
    do: "init_code failed:\n" <> Exception.message(error)

  defp boot_message(%Error{message: message}), do: message

  defp aside(:log, frame, state) do
    # A record may hold a term of any size; the owner does not build it.
    if state.options.logger, do: spawn(fn -> log_record(frame) end)
    state
  end

  defp aside({:pong, _id}, _frame, state), do: state

  defp aside(_unknown, frame, state) do
    Logger.warning(
      "PyPort #{who(state)}: a frame of an unknown kind from Python: #{inspect(frame, limit: 32)}"
    )

    state
  end

  defp log_record(frame) do
    with {:ok, {:log, level, message, metadata}} when level in [:debug, :info, :warning, :error] <-
           Wire.decode(frame),
         true <- is_binary(message) and is_map(metadata) do
      Logger.log(level, message, Enum.filter(metadata, fn {name, _value} -> is_atom(name) end))
    end
  end

  # Callers that died leave a row behind; what they asked for need not be computed.
  defp sweep(%{phase: :ready, handle: %{table: table, port: port}} = state) do
    if :ets.info(table, :size) > 0 do
      for [id, caller] <- :ets.match(table, {:"$1", :_, :"$2", :_, :_}),
          node(caller) == node() and not Process.alive?(caller),
          :ets.take(table, id) != [],
          do: command(port, Wire.cancel(id))
    end

    state
  end

  defp sweep(state), do: state

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
    Registry.delete(self())
    StderrFile.close(stderr)
    File.rm_rf(handle.dir)
    %{state | handle: nil, stderr: nil, timer: nil, writers: %{}}
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
    command(state.handle.port, Wire.shutdown(grace))
    await_exit(state.handle.port, System.monotonic_time(:millisecond) + grace, state)
  end

  def terminate(_reason, state), do: close(state)

  # Replies go out until the end.
  defp await_exit(port, deadline, state) do
    receive do
      {^port, {:data, frame}} ->
        state =
          case Wire.route(frame) do
            {:reply, id} -> reply(state, id, frame)
            {:output, id} -> output(state, id, frame)
            _other -> state
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
  defp log_stderr(state), do: log_stderr(state, @stderr_reads)

  defp log_stderr(state, 0), do: state

  defp log_stderr(state, reads) do
    case StderrFile.read_lines(state.stderr) do
      {[], stderr} ->
        %{state | stderr: stderr}

      {lines, stderr} ->
        log(state, Enum.join(lines, "\n"))
        log_stderr(%{state | stderr: stderr}, reads - 1)
    end
  end

  defp log(%{options: %{logger: false}}, _text), do: :ok
  defp log(state, text), do: Logger.info("PyPort #{who(state)} stderr: #{text}")

  defp last_words(%{stderr: nil}), do: []
  defp last_words(%{stderr: stderr}), do: StderrFile.last_lines(stderr, @stderr_lines)

  defp who(%{options: %{name: nil}}), do: inspect(self())
  defp who(%{options: %{name: name}}), do: inspect(name)

  defp unavailable(message), do: %Error{kind: :unavailable, message: message, begun: false}

  defp command(port, frame) do
    Port.command(port, frame)
  rescue
    # It died meanwhile; its exit status is in the mailbox.
    ArgumentError -> false
  end

  defp start_timer(:infinity, _message), do: nil
  defp start_timer(after_ms, message), do: :erlang.start_timer(after_ms, self(), message)

  defp cancel_timer(nil), do: :ok
  defp cancel_timer(timer), do: :erlang.cancel_timer(timer)
end
