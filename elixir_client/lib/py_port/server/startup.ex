defmodule PyPort.Server.Startup do
  # From the launch of a Python to its first words. A failure to start is logged once, tried again at growing intervals,
  # and no reason for its server to end. Runs in the server.
  @moduledoc false

  require Logger

  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{Env, Error, Reaper, Registry, SharedMemory, Wire}

  alias PyPort.Server.{AsyncDelivery, Cancellation, Events, Health, Launch, Ownership, RequestTable}
  alias PyPort.Server.{Requests, Shutdown, State, Stderr}

  # The processes that wait for the server to be ready; the last failure to start, until the next try succeeds, and how many
  # there were in a row; the timer of the try, or until the next; and whether its process was seen to have ended.
  defstruct [:error, :timer, waiting: [], failures: 0, gone?: false]

  @type t :: %__MODULE__{
          waiting: [GenServer.from()],
          error: Error.t() | nil,
          failures: non_neg_integer(),
          timer: reference() | nil,
          gone?: boolean()
        }

  @backoff_first_ms 500
  @backoff_most_ms 30_000

  @spec state(PyPort.Options.server()) :: State.t()
  def state(options) do
    %State{
      options: options,
      who: options.label || inspect(options.name || self()),
      heir: RequestTable.start_heir(),
      startup: %__MODULE__{},
      requests: Requests.new(),
      cancellation: Cancellation.new(),
      ownership: Ownership.new(options),
      health: Health.new(),
      stderr: Stderr.new(),
      shutdown: Shutdown.new()
    }
  end

  @spec launch(State.t()) :: State.t()
  def launch(%{options: options, who: who} = state) do
    case Launch.open(options, state.heir) do
      {:ok, connection, stderr} ->
        if options.name, do: Registry.count_start(options.name)
        Logger.debug("PyPort #{who}: Python is starting (process #{connection.os_pid})")
        delivery = AsyncDelivery.start_link(connection, who, options.logger)
        state = begin(%{state | phase: :starting, connection: connection, delivery: delivery})
        Events.tell(state, :server, :start, %{system_time: System.system_time()})

        state
        |> update(timer: start_timer(options.init_timeout, :init_timeout), gone?: false)
        |> Health.open()
        |> Stderr.open(stderr)

      {:error, error} ->
        failed(state, error)
    end
  end

  defp begin(state), do: %{state | since: System.monotonic_time()}

  # A process waits for the server to be ready.
  @spec await(State.t(), GenServer.from()) :: {:reply, term(), State.t()} | {:noreply, State.t()}
  def await(%{phase: :ready, connection: connection} = state, _from), do: {:reply, {:ok, connection}, state}
  def await(%{phase: :down, startup: %{error: error}} = state, _from), do: {:reply, {:error, error}, state}

  def await(%{startup: %{waiting: waiting}} = state, from),
    do: {:noreply, update(state, waiting: [from | waiting])}

  # A timer has run out.
  @spec timeout(State.t(), reference(), :init_timeout | :retry) :: State.t()
  def timeout(%{startup: %{timer: timer}, phase: :down} = state, timer, :retry), do: launch(state)

  def timeout(%{startup: %{timer: timer}, phase: :starting} = state, timer, :init_timeout) do
    ms = state.options.init_timeout

    fail(
      state,
      "Python was not ready within #{ms} ms (see :init_timeout, :init_code and :preload); it was killed"
    )
  end

  def timeout(state, _late, _what), do: state

  @spec hello(binary(), State.t()) :: State.t()
  def hello(frame, %{phase: :starting} = state) do
    ours = Wire.protocol_version()

    case Wire.decode_hello(frame) do
      {:ok, ^ours, info} ->
        case Env.running(state.options.python_env, info) do
          :ok -> state |> forked(info) |> Health.hold_pipe(info) |> ready(info)
          {:error, words} -> fail(state, words)
        end

      {:ok, version, _info} ->
        fail(
          state,
          "the port_server in this environment speaks protocol #{inspect(version)}, this library speaks #{ours}: " <>
            "install the version that belongs to it"
        )

      :error ->
        fail(
          state,
          "Python's hello could not be read: the port_server in this environment is of another version than this " <>
            "library. Install the version that belongs to it"
        )
    end
  end

  def hello(_frame, state), do: state

  # The port's process is the stub of a template; Python is a child of that template, and leads a group of its own.
  defp forked(
         %{options: %{preload: {:template, _pool}}, connection: %{os_pid: stub} = connection} = state,
         info
       )
       when is_map_key(info, :os_pid) and info.os_pid != stub do
    start_time = Reaper.start_time(info.os_pid)
    connection = %{connection | os_pid: info.os_pid, start_time: start_time}
    Registry.put(connection)
    Reaper.watch(self(), info.os_pid, start_time, connection.dir)
    Health.open(Health.close(%{state | connection: connection}))
  end

  defp forked(state, _info), do: state

  defp ready(%{startup: %{failures: failures, timer: timer, waiting: waiting}, who: who} = state, info) do
    cancel_timer(timer)
    %{shm_threshold: threshold, max_shm_bytes: most_bytes} = state.options
    shared? = SharedMemory.open(state.connection.calls, info, most_bytes)
    shm_threshold = if shared?, do: threshold, else: :infinity
    connection = %{state.connection | ready: true, shm_threshold: shm_threshold}
    Registry.put(connection)
    Enum.each(waiting, &GenServer.reply(&1, {:ok, connection}))
    duration = System.monotonic_time() - state.since
    ms = System.convert_time_unit(duration, :native, :millisecond)

    if failures > 0,
      do: Logger.info("PyPort #{who}: Python is running again"),
      else: Logger.debug("PyPort #{who}: Python is ready after #{ms} ms (process #{connection.os_pid})")

    Events.tell(state, :server, :ready, %{duration: duration})

    %{state | phase: :ready, connection: connection, startup: %__MODULE__{}}
    |> begin()
    |> Health.begin()
    |> Stderr.note()
  end

  # Python leaves before it is ready, and says why.
  @spec goodbye(State.t(), map()) :: State.t()
  def goodbye(state, description) do
    error = Error.from_wire(description)

    message =
      if error.kind == :python,
        do: "#{description[:option] || :init_code} failed:\n" <> Exception.message(error),
        else: error.message

    failed(state, %{error | kind: :unavailable, message: message, begun: false})
  end

  # Its process was seen to have ended. Its goodbye, which says why, may be still on its way, and its end behind it: they have
  # until the next look. A child that holds the pipe would keep the end from coming.
  @spec gone(State.t()) :: {:wait | :ended, State.t()}
  def gone(%{startup: %{gone?: true}} = state), do: {:ended, state}

  def gone(state) do
    Reaper.kill(self())
    {:wait, update(state, gone?: true)}
  end

  # It has ended before it was ready.
  @spec ended(State.t(), exit_status :: non_neg_integer() | nil) :: State.t()
  def ended(state, status) do
    report = Shutdown.report(state, status)
    message = "Python did not start: " <> report.message <> hint(report.stderr, state.options)
    failed(state, %{report | kind: :unavailable, begun: false, message: message})
  end

  # Advice for a Python that cannot start, since its own words seldom name the remedy.
  defp hint(stderr, options) do
    case Env.Hints.python(stderr) || Env.Hints.hidden(stderr, Launch.python_path(options)) do
      nil -> ""
      hint -> ". " <> hint
    end
  end

  # Python has said hello, and it did not arrive; or something else came before it.
  @spec unreadable(State.t()) :: State.t()
  def unreadable(state) do
    fail(
      state,
      "Python's first message could not be read: other bytes came before it, or instead of it. A sitecustomize.py, a .pth " <>
        "file or the program of the option :python has written to the port, which is file descriptor 8 until then. Let it " <>
        "write to stderr"
    )
  end

  defp fail(state, message), do: failed(state, unavailable(message))

  defp failed(%{startup: startup} = state, error) do
    error = %{error | stderr: Stderr.last_lines(state)}
    failures = startup.failures + 1
    wait = min(@backoff_first_ms * 2 ** min(failures - 1, 10), @backoff_most_ms)
    Events.tell(state, :server, :boot_failure, %{failures: failures, retry_ms: wait}, %{error: error})
    cancel_timer(startup.timer)
    state = Shutdown.close(state)

    # The same failure is not worth a second line.
    if startup.error == nil or startup.error.message != error.message do
      Logger.error("PyPort #{state.who}: #{Exception.message(error)}\nTrying again in #{wait} ms, and on.")
    end

    Enum.each(startup.waiting, &GenServer.reply(&1, {:error, error}))
    startup = %__MODULE__{error: error, failures: failures, timer: start_timer(wait, :retry)}
    %{state | phase: :down, startup: startup}
  end

  defp update(%{startup: startup} = state, changes), do: %{state | startup: struct!(startup, changes)}

  defp start_timer(:infinity, _message), do: nil
  defp start_timer(after_ms, message), do: :erlang.start_timer(after_ms, self(), message)

  defp cancel_timer(nil), do: :ok
  defp cancel_timer(timer), do: :erlang.cancel_timer(timer)
end
