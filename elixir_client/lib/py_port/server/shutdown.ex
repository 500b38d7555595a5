defmodule PyPort.Server.Shutdown do
  # How a server ends its Python, and what is said of a Python that has ended. When is decided elsewhere.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, Error, Reaper, Registry, StatusPage, StderrFile, Telemetry, Wire}
  alias PyPort.Server.{Cancellation, Health, OwnershipTable, Probe, Traffic}

  @type state :: map()
  @type reason ::
          {:shutdown, {:python_ended, Error.t(), StatusPage.t() | nil} | {:restart, Error.t()}}

  @stderr_lines 20

  # After the end of its pipe is seen, an exit status still comes; not for ever, since a grandchild may hold the pipe.
  @exit_status_wait_ms 500

  @doc "The exit status that the port has for its owner, or has in a moment."
  @spec exit_status(port()) :: non_neg_integer() | nil
  def exit_status(port) do
    receive do
      {^port, {:exit_status, status}} -> status
    after
      @exit_status_wait_ms -> nil
    end
  end

  @doc """
  The process is gone, or a zombie; a child of it that holds its pipe open keeps the port from saying so. The whole
  group is killed, then the port says it. The replies that it has written before are answers all the same.
  """
  @spec exited(state()) :: {non_neg_integer() | nil, state()}
  def exited(%{connection: connection} = state) do
    Reaper.kill(self())
    await_exit(connection.port, System.monotonic_time(:millisecond) + @exit_status_wait_ms, state)
  end

  @doc """
  The reason with which a server ends: `PyPort.Error.of_exit/2` makes of it, with the last page, what each of its callers
  is told.
  """
  @spec reason(state(), Error.t(), StatusPage.t() | nil) :: reason()
  def reason(state, report, page) do
    Logger.error("PyPort #{state.who}: #{report.message}; #{open(pending(state))}")
    tell(state, report)
    {:shutdown, {:python_ended, report, page}}
  end

  @doc """
  The same for a server that starts anew because a request was cancelled (`after_cancel: :restart`). Nothing has gone
  wrong with it, so a pool starts the next at once, however often it comes.
  """
  @spec restart(state()) :: reason()
  def restart(state) do
    report = %Error{
      kind: :exited,
      message: "the server was started anew after a request was cancelled (after_cancel: :restart)"
    }

    tell(state, report)
    # Without the page: what is on it now may yet be finished.
    {:shutdown, {:restart, report}}
  end

  defp tell(state, report) do
    Telemetry.execute(
      [:py_port, :server, :exit],
      %{duration: System.monotonic_time() - state.since, pending: pending(state)},
      Map.put(Health.about(state), :error, report)
    )
  end

  defp open(1), do: "1 request was open"
  defp open(count), do: "#{count} requests were open"

  defp pending(state), do: :ets.info(state.connection.table, :size)

  @doc "What is known of an end that nobody here has brought about."
  @spec report(state(), exit_status :: non_neg_integer() | nil) :: Error.t()
  def report(state, status) do
    report = Error.death(status, last_words(state))
    told = if state.told_to_end, do: ": it was told to end by #{state.told_to_end}, which PyPort has not sent"
    stack = state.stderr && StderrFile.fatal_stack(state.stderr, Connection.oldest(state.connection))
    %{report | message: "#{report.message}#{told}", stack: stack}
  end

  @doc "Kills the group now, and says why; with the page that it leaves."
  @spec kill(state(), why :: :request | :import | :gil_held | :stuck | :lost | :unreadable) ::
          {state(), Error.t(), StatusPage.t() | nil}
  def kill(state, why) do
    Telemetry.execute(
      [:py_port, :server, :kill],
      %{pending: pending(state)},
      Map.put(Health.about(state), :reason, why)
    )

    # Nobody new comes; and whoever is told so may ask for the next Python at once.
    Registry.delete(self())

    # Before the kill, since a machine that needs this may be slow with all else. Which requests have not begun is known
    # after it.
    state = Cancellation.fell(state)
    # A pong that is still on its way knows of another culprit.
    culprit = state.culprit
    message = "the Python process was killed: " <> words(why, state)
    Reaper.kill(self())
    page = last_page(state, why)
    # What stands in the mailbox by now is answered.
    {_status, state} = await_exit(state.connection.port, System.monotonic_time(:millisecond), state)
    state = Cancellation.fell(%{state | culprit: culprit}, page)

    {state,
     %Error{
       kind: :killed,
       signal: "SIGKILL",
       message: message,
       culprit: if(why == :request, do: culprit),
       stack: state.stack,
       stderr: last_words(state)
     }, page}
  end

  # Requests that the page does not show may have run: what they were answered did not arrive.
  defp last_page(state, :unreadable), do: StatusPage.alive(Probe.page(state.pulse))
  defp last_page(state, _why), do: Probe.last_page(state.pulse)

  defp words(:request, %{culprit: culprit, options: options}) do
    grace = "#{options.cancel_grace + options.kill_grace} ms (cancel_grace and kill_grace)"

    case culprit do
      %{request: nil} ->
        "its interpreter was held, so that a request which was to end could not be told so within #{grace}"

      %{code: code} when code != nil ->
        Error.blocks(culprit) <>
          ", so that others could not be ended within #{grace}. " <> Error.unblock(culprit)

      %{request: number} ->
        "request #{number} went on for more than #{grace} after it was cancelled"

      nil ->
        "a request went on for more than #{grace} after it was cancelled"
    end
  end

  defp words(:import, %{options: options}),
    do:
      "an import went on for more than #{options.import_grace} ms after its request was cancelled (import_grace)"

  defp words(:lost, %{options: options}),
    do: "nothing was heard of it for #{options.lost_after} ms (lost_after), and it had nothing to do"

  defp words(:unreadable, _state),
    do:
      "it ran, but what it wrote could not be read: code has written to the file descriptor of the port, or has replaced it"

  defp words(_held, %{options: options}),
    do: "its interpreter was held for more than #{options.gil_held_limit} ms (gil_held_limit)"

  # How soon the size of the stderr file is looked at again. On a disk it can grow by 800 MB a second, in memory by more.
  @stderr_ms 100
  @growing_stderr_ms 10

  @doc "Keeps the stderr file small, from the launch of a Python to its end."
  @spec limit_stderr(state()) :: state()
  def limit_stderr(%{stderr: nil} = state), do: state

  def limit_stderr(%{stderr: stderr, options: options} = state) do
    {grown?, stderr} = StderrFile.limit(stderr, options.max_stderr_bytes)
    Process.send_after(self(), :stderr, if(grown?, do: @growing_stderr_ms, else: @stderr_ms))
    %{state | stderr: stderr}
  end

  @doc "Notes what stands in the stderr file now: it is no news of requests to come."
  @spec note_stderr(state()) :: state()
  def note_stderr(%{phase: :ready, connection: connection} = state),
    do: %{
      state
      | stderr: StderrFile.note(state.stderr, Connection.requests(connection), Connection.oldest(connection))
    }

  def note_stderr(state), do: state

  @doc "The last lines of the stderr file from the time of the requests that are open."
  @spec last_words(state()) :: [String.t()]
  def last_words(%{stderr: nil}), do: []

  def last_words(%{stderr: stderr, connection: connection}),
    do: StderrFile.last_lines(stderr, @stderr_lines, Connection.oldest(connection))

  # --- closing --------------------------------------------------------------------------------

  @doc "An orderly end: Python finishes what it is doing, and replies go out, within the grace."
  @spec drain(state(), (state() -> state())) :: state()
  def drain(%{connection: connection} = state, log_stderr) do
    grace = state.options.shutdown_grace
    Connection.refuse(connection)
    Connection.command(connection, Wire.shutdown(grace))
    {_status, state} = await_exit(connection.port, System.monotonic_time(:millisecond) + grace, state)
    state |> log_stderr.() |> close()
  end

  defp await_exit(port, deadline, state) do
    receive do
      {^port, {:data, frame}} ->
        state =
          case frame |> Wire.route() |> Traffic.frame(frame, state) do
            {:ok, state} -> state
            # News of a Python that is about to be none.
            :other -> state
          end

        await_exit(port, deadline, state)

      {^port, {:exit_status, status}} ->
        {status, state}

      {:EXIT, ^port, _reason} ->
        {nil, state}

      {:EXIT, worker, reason} when is_map_key(state.workers, worker) ->
        await_exit(port, deadline, Traffic.worker_ended(state, worker, reason))

      :stderr ->
        await_exit(port, deadline, limit_stderr(state))
    after
      max(deadline - System.monotonic_time(:millisecond), 0) -> {nil, state}
    end
  end

  @doc "Nothing of this Python is left."
  @spec close(state()) :: state()
  def close(%{connection: nil} = state), do: state

  # Kill first, then close: closing a port with data queued leaves it open as long as its pipe has a reader.
  def close(%{connection: connection, stderr: stderr} = state) do
    Reaper.kill(self())
    Probe.close(state.pulse)
    close_port(connection.port)
    # Whoever has a request open yet is told by the heir, which gets the table when this process has ended.
    Connection.refuse(connection)
    if Connection.pending(connection) == 0, do: :ets.delete(connection.table)
    :ets.delete(connection.calls)
    Registry.delete(self())
    StderrFile.close(stderr)
    File.rm_rf(connection.dir)
    Process.unlink(state.mail)
    Process.exit(state.mail, :kill)
    for {_holder, monitor} <- state.monitors, do: Process.demonitor(monitor, [:flush])

    for {worker, _call} <- state.workers do
      Process.unlink(worker)
      Process.exit(worker, :kill)
    end

    %{
      state
      | connection: nil,
        stderr: nil,
        pulse: nil,
        timer: nil,
        mail: nil,
        attached: %{},
        workers: %{},
        ownership: OwnershipTable.new(state.options),
        crowded: [],
        monitors: %{}
    }
  end

  defp close_port(port) do
    Port.close(port)
  rescue
    ArgumentError -> true
  end
end
