defmodule PyPort.Server.Shutdown do
  # How a server ends its Python, and its report of a Python that has ended. Other modules decide when.
  @moduledoc false

  require Logger

  import PyPort.Deadline, only: [deadline: 1, remaining: 1]
  import PyPort.Server.Requests, only: [is_worker: 2]

  alias PyPort.{Connection, Error, Reaper, Registry, StatusPage, Wire}
  alias PyPort.Server.{Cancellation, Events, Health, Ownership, Requests, State, Stderr, Traffic}

  # The signal by which Python says that it was told to end.
  defstruct [:signal]

  @type t :: %__MODULE__{signal: String.t() | nil}
  @type reason ::
          {:shutdown, {:python_ended, Error.t(), StatusPage.t() | nil} | {:restart, Error.t()}}

  # After the end of its pipe is seen, an exit status still comes; not for ever, since a grandchild may hold the pipe.
  @exit_status_wait_ms 500

  @spec new() :: t()
  def new, do: %__MODULE__{}

  # A Python that runs says that it leaves: its exit status follows.
  @spec goodbye(State.t(), term()) :: State.t()
  def goodbye(state, %{message: message}) do
    Logger.error("PyPort #{state.who}: Python is leaving: #{message}")
    state
  end

  def goodbye(state, signal) when signal in [:sigterm, :sigint],
    do: %{state | shutdown: %__MODULE__{signal: signal |> Atom.to_string() |> String.upcase()}}

  # An orderly end.
  def goodbye(state, _any), do: state

  # The exit status that the port has for its owner, or has in a moment.
  @spec exit_status(port()) :: non_neg_integer() | nil
  def exit_status(port) do
    receive do
      {^port, {:exit_status, status}} -> status
    after
      @exit_status_wait_ms -> nil
    end
  end

  # The process is gone, or a zombie; a child of it that holds its pipe open keeps the port from saying so. The whole
  # group is killed, then the port says it. The replies that it has written before are answers all the same.
  @spec exited(State.t()) :: {non_neg_integer() | nil, State.t()}
  def exited(state) do
    Reaper.kill(self())
    await_exit(state, deadline(@exit_status_wait_ms))
  end

  # The reason with which a server ends: `PyPort.Error.of_exit/2` makes of it, with the last page, what each of its callers
  # is told.
  @spec reason(State.t(), Error.t(), StatusPage.t() | nil) :: reason()
  def reason(state, report, page) do
    Logger.error("PyPort #{state.who}: #{report.message}; #{open(Connection.pending(state.connection))}")
    tell(state, report)
    {:shutdown, {:python_ended, report, page}}
  end

  # The reason where Python has ended by itself, or by a signal that PyPort has not sent.
  @spec died(State.t(), exit_status :: non_neg_integer() | nil) :: reason()
  def died(state, status) do
    # Its children end with it.
    Reaper.kill(self())
    # A port gives the status of a process that is dead.
    page = if status, do: Health.page(state), else: Health.last_page(state)
    reason(state, report(state, status), page)
  end

  # The same for a server that starts anew because a request was cancelled (`after_cancel: :restart`) or could not be
  # stopped. That is no failure, so a pool starts the next server at once, however often it comes.
  @spec restart(State.t()) :: reason()
  def restart(state) do
    Logger.info("PyPort #{state.who}: a request was cancelled, Python is started anew")

    # No new request comes; those that are here have the grace of a shutdown.
    Registry.delete(self())

    message =
      "the server was started anew after a request was cancelled (after_cancel: :restart, or a request that could not be stopped)"

    report = Error.new(:exited, message)
    tell(state, report)
    # Without the page: the requests on it now may yet be finished.
    {:shutdown, {:restart, report}}
  end

  defp tell(state, report) do
    measurements = %{
      duration: System.monotonic_time() - state.since,
      pending: Connection.pending(state.connection)
    }

    Events.tell(state, :server, :exit, measurements, %{error: report})
  end

  defp open(1), do: "1 request was open"
  defp open(count), do: "#{count} requests were open"

  # The exit status of a template's stub where the template has ended before its child.
  @unknown_status 255

  # The report of an end that PyPort has not brought about.
  @spec report(State.t(), exit_status :: non_neg_integer() | nil) :: Error.t()
  def report(%{options: %{preload: {:template, _pool}}} = state, @unknown_status), do: report(state, nil)

  def report(%{shutdown: %{signal: signal}} = state, status) do
    report = Error.exited(status, Stderr.last_lines(state))
    told = if signal, do: ": it was told to end by #{signal}, which PyPort has not sent"
    %{report | message: "#{report.message}#{told}", stack: Stderr.fatal_stack(state)}
  end

  # Kills the group now: the reason with which the server ends.
  @spec kill(State.t(), why :: :request | :import | :gil_held | :stuck | :lost | :unreadable) ::
          {reason(), State.t()}
  def kill(state, why) do
    pending = Connection.pending(state.connection)
    Events.tell(state, :server, :kill, %{pending: pending}, %{reason: why})

    # No new request comes; and a caller that is told so may ask for the next Python at once.
    Registry.delete(self())

    # Before the kill, since a machine that needs this may be slow with all else. Which requests have not begun is known
    # after it.
    {culprit, state} = Cancellation.before_kill(state)
    Reaper.kill(self())
    page = last_page(state, why)
    # Replies that are in the mailbox by now are answers.
    {_status, state} = await_exit(state, deadline(0))
    {stack, state} = Cancellation.after_kill(state, culprit, page)

    report = %Error{
      kind: :killed,
      signal: "SIGKILL",
      message: "the Python process was killed: " <> words(why, culprit, state.options),
      culprit: if(why == :request, do: culprit),
      stack: stack,
      stderr: Stderr.last_lines(state)
    }

    state = Stderr.log(state)
    {reason(state, report, page), state}
  end

  # Requests that the page does not show may have run: their answers did not arrive.
  defp last_page(state, :unreadable), do: StatusPage.alive(Health.page(state))
  defp last_page(state, _why), do: Health.last_page(state)

  defp words(:request, culprit, options) do
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

  defp words(:import, _culprit, %{import_grace: ms}),
    do: "an import went on for more than #{ms} ms after its request was cancelled (import_grace)"

  defp words(:lost, _culprit, %{lost_after: ms}),
    do: "it was idle, but no heartbeat was received for #{ms} ms (lost_after)"

  defp words(:unreadable, _culprit, _options),
    do:
      "it ran, but what it wrote could not be read: code has written to the file descriptor of the port, or has replaced it"

  defp words(_held, _culprit, %{gil_held_limit: ms}),
    do: "its interpreter was held for more than #{ms} ms (gil_held_limit)"

  # --- closing --------------------------------------------------------------------------------

  # An orderly end: Python finishes what it is doing, and replies go out, within the grace.
  @spec drain(State.t()) :: State.t()
  def drain(%{connection: connection, options: %{shutdown_grace: grace}} = state) do
    Connection.refuse(connection)
    Connection.command(connection, Wire.shutdown(grace))
    {_status, state} = await_exit(state, deadline(grace))
    state |> Stderr.log() |> close()
  end

  defp await_exit(%{connection: %{port: port}} = state, deadline) do
    receive do
      {^port, {:data, frame}} ->
        case frame |> Wire.route() |> Traffic.frame(frame, state) do
          {:ok, state} -> await_exit(state, deadline)
          # News of a Python that is about to be none.
          :other -> await_exit(state, deadline)
        end

      {^port, {:exit_status, status}} ->
        {status, state}

      {:EXIT, ^port, _reason} ->
        {nil, state}

      {:EXIT, worker, reason} when is_worker(state, worker) ->
        state |> Traffic.worker_ended(worker, reason) |> await_exit(deadline)

      :stderr ->
        state |> Stderr.limit() |> await_exit(deadline)
    after
      remaining(deadline) -> {nil, state}
    end
  end

  # Removes all that is left of this Python.
  @spec close(State.t()) :: State.t()
  def close(%{connection: nil} = state), do: state

  # Kill first, then close: closing a port with data queued leaves it open as long as its pipe has a reader.
  def close(%{connection: connection, delivery: delivery} = state) do
    Reaper.kill(self())
    Connection.close(connection.port)

    # The heir tells the callers of requests that are still open; it gets the table when this process has ended.
    Connection.refuse(connection)
    if Connection.pending(connection) == 0, do: :ets.delete(connection.table)
    :ets.delete(connection.calls)
    Registry.delete(self())
    File.rm_rf(connection.dir)
    Process.unlink(delivery)
    Process.exit(delivery, :kill)

    state
    |> Health.close()
    |> Stderr.close()
    |> Requests.close()
    |> Ownership.close()
    |> Map.merge(%{connection: nil, delivery: nil})
  end
end
