defmodule PyPort.Server.Birth do
  # From the launch of a Python to its first words, and what is said and done where it does not get there: said once,
  # tried again at growing intervals, and no reason for its server to end. Runs in the server.
  @moduledoc false

  require Logger

  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{Env, Error, Registry, Telemetry, Wire}
  alias PyPort.Server.{Death, Heir, Launch, Mail, Ownership, Pulse, Vital}

  @type state :: map()

  @backoff_first_ms 500
  @backoff_most_ms 30_000

  @spec state(options :: map()) :: state()
  def state(options) do
    %{
      options: options,
      who: options.label || inspect(options.name || self()),
      phase: :starting,
      handle: nil,
      # Who waits for the server to be ready: GenServer.from()
      waiting: [],
      # The last failure to start, while phase is :down or until the next try succeeds.
      error: nil,
      failures: 0,
      stderr: nil,
      timer: nil,
      # When its Python was launched, or became ready; native monotonic time.
      since: nil,
      # When the server's next look after its house is due; monotonic ms.
      due: nil,
      pulse: nil,
      # The signal by which it says that it was told to end.
      told_to_end: nil,
      # Whether it was seen to have ended before it was ready.
      gone?: false,
      liveness: nil,
      # What was last thought of Python, and since when: {verdict, monotonic ms}
      verdict: nil,
      # Who is taking the stacks: {pid, reason, since, mark}; what was taken last; and why the end follows when they are taken.
      dump: nil,
      stack: nil,
      doom: nil,
      # Which request keeps those from ending that were cancelled: see Ladder.heard/2.
      culprit: nil,
      # id -> what a request has besides its row: %{writer: pid | nil, caller: monitor | :dead | nil, cancel:
      # Ladder.entry() | nil}
      attached: %{},
      # worker -> the call that it serves, {request, call id}, or {:stopped, call id} if that is over
      workers: %{},
      mail: nil,
      heir: Heir.start_link(),
      ownership: Ownership.new(options),
      # Owners of many objects that Logger is to name with the next beat.
      crowded: [],
      # holder of objects or sessions -> the monitor on it
      monitors: %{}
    }
  end

  @spec launch(state()) :: state()
  def launch(%{options: options, who: who} = state) do
    case Launch.open(options, state.heir) do
      {:ok, handle, stderr} ->
        if options.name, do: Registry.count_start(options.name)
        Logger.debug("PyPort #{who}: Python is starting (process #{handle.os_pid})")

        state = %{
          state
          | phase: :starting,
            handle: handle,
            stderr: stderr,
            since: System.monotonic_time(),
            verdict: nil,
            gone?: false
        }

        tell(state, :start, %{system_time: System.system_time()})

        %{
          state
          | timer: start_timer(options.init_timeout, :init_timeout),
            mail: Mail.start_link(handle, who, options.logger),
            pulse: Pulse.open(handle)
        }
        |> Death.limit_stderr()

      {:error, error} ->
        failed(state, error)
    end
  end

  @spec hello(binary(), state()) :: state()
  def hello(frame, %{phase: :starting} = state) do
    ours = Wire.protocol_version()

    case Wire.decode_hello(frame) do
      {:ok, ^ours, info} ->
        case Env.running(state.options.python_env, info) do
          :ok -> ready(%{state | pulse: Pulse.hold_pipe(state.pulse, state.handle.os_pid, info)})
          {:error, words} -> failed(state, unavailable(words))
        end

      {:ok, version, _info} ->
        failed(
          state,
          unavailable(
            "the port_server in this environment speaks protocol #{inspect(version)}, this library speaks #{ours}: " <>
              "install the version that belongs to it"
          )
        )

      :error ->
        failed(
          state,
          unavailable(
            "Python's hello could not be read: the port_server in this environment is of another version than this " <>
              "library. Install the version that belongs to it"
          )
        )
    end
  end

  def hello(_frame, state), do: state

  defp ready(state) do
    cancel_timer(state.timer)
    handle = %{state.handle | ready: true}
    Registry.put(handle)
    Enum.each(state.waiting, &GenServer.reply(&1, {:ok, handle}))
    duration = System.monotonic_time() - state.since
    ms = System.convert_time_unit(duration, :native, :millisecond)

    if state.failures > 0,
      do: Logger.info("PyPort #{state.who}: Python is running again"),
      else: Logger.debug("PyPort #{state.who}: Python is ready after #{ms} ms (process #{handle.os_pid})")

    tell(state, :ready, %{duration: duration})
    state = %{state | phase: :ready, handle: handle, waiting: [], timer: nil, error: nil, failures: 0}
    Death.note_stderr(Vital.begin(%{state | since: System.monotonic_time()}))
  end

  @doc "Python says that it leaves: the exit status follows, or it is the end of a try to start."
  @spec goodbye(binary(), state()) :: state()
  def goodbye(frame, state) do
    case {state.phase, Wire.decode(frame)} do
      {:starting, {:ok, {:goodbye, %{} = description}}} ->
        error = Error.from_wire(description)
        failed(state, %{error | kind: :unavailable, message: message(error), begun: false})

      {_ready, {:ok, {:goodbye, %{message: message}}}} ->
        Logger.error("PyPort #{state.who}: Python is leaving: #{message}")
        state

      {_ready, {:ok, {:goodbye, signal}}} when signal in [:sigterm, :sigint] ->
        %{state | told_to_end: signal |> Atom.to_string() |> String.upcase()}

      # An orderly end.
      _any ->
        state
    end
  end

  defp message(%Error{kind: :python} = error), do: "init_code failed:\n" <> Exception.message(error)
  defp message(%Error{message: message}), do: message

  @doc "It has ended before it was ready."
  @spec ended(state(), exit_status :: non_neg_integer() | nil) :: state()
  def ended(state, status) do
    report = Death.report(state, status)
    message = "Python did not start: " <> report.message <> hint(report.stderr, state.options)
    failed(state, %{report | kind: :unavailable, begun: false, message: message})
  end

  # What a Python that cannot start says is seldom what a person should do about it.
  defp hint(stderr, options) do
    case Env.Hints.python(stderr) || Env.Hints.hidden(stderr, Launch.python_path(options)) do
      nil -> ""
      advice -> ". " <> advice
    end
  end

  @spec too_slow(state()) :: state()
  def too_slow(%{options: %{init_timeout: ms}} = state) do
    failed(
      state,
      unavailable("Python was not ready within #{ms} ms (see :init_timeout and :init_code); it was killed")
    )
  end

  @doc "Python has said hello, and it did not arrive; or something else came before it."
  @spec unreadable(state()) :: state()
  def unreadable(state) do
    failed(
      state,
      unavailable(
        "Python's first message could not be read: other bytes came before it, or instead of it. A sitecustomize.py, a .pth " <>
          "file or the program of the option :python has written to the port, which is file descriptor 8 until then. Let it " <>
          "write to stderr"
      )
    )
  end

  defp failed(state, error) do
    error = %{error | stderr: Death.last_words(state)}
    failures = state.failures + 1
    wait = min(@backoff_first_ms * 2 ** min(failures - 1, 10), @backoff_most_ms)
    tell(state, :boot_failure, %{failures: failures, retry_ms: wait}, %{error: error})
    cancel_timer(state.timer)
    state = Death.close(state)

    # The same failure is not worth a second line.
    if state.error == nil or state.error.message != error.message do
      Logger.error("PyPort #{state.who}: #{Exception.message(error)}\nTrying again in #{wait} ms, and on.")
    end

    Enum.each(state.waiting, &GenServer.reply(&1, {:error, error}))
    %{state | phase: :down, error: error, waiting: [], failures: failures, timer: start_timer(wait, :retry)}
  end

  defp tell(state, event, measurements, metadata \\ %{}) do
    Telemetry.execute([:py_port, :server, event], measurements, Map.merge(Vital.about(state), metadata))
  end

  defp start_timer(:infinity, _message), do: nil
  defp start_timer(after_ms, message), do: :erlang.start_timer(after_ms, self(), message)

  defp cancel_timer(nil), do: :ok
  defp cancel_timer(timer), do: :erlang.cancel_timer(timer)
end
