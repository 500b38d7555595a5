defmodule PyPort.Server.Health do
  # Probes the server's Python with each look of its server, and whenever a request is past its deadline, and tells where
  # its health state has changed: Logger, telemetry, and the registry, where PyPort.status/1 finds it. Decides which states
  # are an end; PyPort.Server.Shutdown ends the Python.
  @moduledoc false

  require Logger

  import PyPort.Deadline, only: [now: 0]

  alias PyPort.{Connection, Registry, StatusPage}
  alias PyPort.Server.{Events, Liveness, Probe, State}

  # When the server's next look is due; nil parts while no Python is running. `state` is the last health state, and since
  # when it holds, in monotonic ms.
  defstruct [:due, :probe, :liveness, :state]

  @type t :: %__MODULE__{
          due: integer() | nil,
          probe: Probe.t() | nil,
          liveness: Liveness.t() | nil,
          state: {Liveness.state(), since :: integer()} | nil
        }

  @well [:idle, :busy]

  # Python notes on its status page that it serves when it has written its hello. A port is read at once.
  @hello_ms 500

  @spec new() :: t()
  def new, do: %__MODULE__{}

  # Schedules the next look.
  @spec schedule(State.t()) :: State.t()
  def schedule(%{options: %{heartbeat_interval: interval}} = state) do
    Process.send_after(self(), :tick, interval)
    update(state, due: now() + interval)
  end

  # A Python has been launched.
  @spec open(State.t()) :: State.t()
  def open(state), do: update(state, probe: Probe.open(state.connection), state: nil)

  # Its hello is here.
  @spec hold_pipe(State.t(), map()) :: State.t()
  def hold_pipe(state, info),
    do: update(state, probe: Probe.hold_pipe(state.health.probe, state.connection.os_pid, info))

  # Python is ready: from now on it sends heartbeats.
  @spec begin(State.t()) :: State.t()
  def begin(%{options: %{heartbeat_interval: interval}} = state),
    do: update(state, liveness: Liveness.new(interval, now()), state: {:idle, now()})

  @spec close(State.t()) :: State.t()
  def close(state) do
    Probe.close(state.health.probe)
    update(state, probe: nil)
  end

  # Looks after Python, and schedules the next look.
  @spec tick(State.t()) :: State.next()
  def tick(%{health: %{due: due}} = state), do: state |> schedule() |> tick(due)

  defp tick(%{phase: :ready, health: health} = state, due) do
    now = now()
    {found, state} = look(update(state, liveness: Liveness.tick(health.liveness, due, now)))

    cond do
      found == :exited -> {:exited, state}
      over?(found, now, state) -> {:kill, found, state}
      true -> {:ok, state}
    end
  end

  # No heartbeat comes before it is ready, but it can have died, or have said hello to no effect.
  defp tick(%{phase: :starting, health: %{probe: %Probe{} = probe, state: before}} = state, _due) do
    case {Probe.sample(probe), Probe.page(probe)} do
      {%{process: :absent}, _page} -> {:exited, state}
      {%{process: {:alive, ?Z, _cpu}}, _page} -> {:exited, state}
      {_alive, %{phase: :serving}} -> unheard(state, before, now())
      _alive -> {:ok, state}
    end
  end

  defp tick(state, _due), do: {:ok, state}

  # A hello that was written before the last look is here by now.
  defp unheard(state, nil, now), do: {:ok, update(state, state: {:unreadable, now})}

  defp unheard(state, {:unreadable, since}, now) when now - since >= @hello_ms,
    do: {:kill, :unreadable, state}

  defp unheard(state, _before, _now), do: {:ok, state}

  # A frame that was just on its way is here by the next look.
  defp over?(:unreadable, now, %{options: options} = state),
    do: lasting(state, now) >= options.heartbeat_interval

  # A process that was stopped, and goes on, has the time for a heartbeat first.
  defp over?(:lost, now, %{options: options, health: health} = state) do
    Liveness.silent_ms(health.liveness, now) >= options.lost_after and
      lasting(state, now) >= options.heartbeat_interval
  end

  defp over?(held, now, %{options: %{gil_held_limit: limit}} = state) when held in [:gil_held, :stuck],
    do: limit != :infinity and lasting(state, now) >= limit

  defp over?(_state, _now, _server), do: false

  defp lasting(%{health: %{state: {_state, since}}}, now), do: now - since

  # A heartbeat has been read.
  @spec heartbeat(State.t(), map()) :: State.t()
  def heartbeat(%{phase: :ready, health: health} = state, said) do
    said = if said[:state] == :busy, do: :busy, else: :idle
    state = update(state, liveness: Liveness.said(health.liveness, said))
    # A Python that was thought ill is well again, and not only from the next tick on.
    if well?(state), do: state, else: state |> look() |> elem(1)
  end

  def heartbeat(state, _said), do: state

  # Probes Python now.
  @spec look(State.t()) :: {Liveness.state(), State.t()}
  def look(%{health: health} = state) do
    {found, liveness} = Liveness.judge(health.liveness, Probe.sample(health.probe), now())
    {found, note(update(state, liveness: liveness), found)}
  end

  @spec well?(State.t()) :: boolean()
  def well?(%{health: %{state: {state, _since}}}), do: state in @well

  # Any term that differs from the last one when something has been heard of Python since.
  @spec heard(State.t()) :: term()
  def heard(%{health: %{liveness: liveness}}), do: liveness.heard

  # The status page as it is, nil where it cannot be read.
  @spec page(State.t()) :: StatusPage.t() | nil
  def page(%{health: %{probe: probe}}), do: Probe.page(probe)

  # The status page of a Python that was killed, as it leaves it.
  @spec last_page(State.t()) :: StatusPage.t() | nil
  def last_page(%{health: %{probe: probe}}), do: Probe.last_page(probe)

  # Code that holds the interpreter computes or waits: one state may follow the other without an end in between.
  @held [:gil_held, :stuck]

  defp note(%{health: %{state: {same, _since}}} = state, same), do: state

  defp note(%{health: %{state: {previous, since}, liveness: liveness}} = state, found) do
    now = now()

    measurements = %{
      silent_ms: Liveness.silent_ms(liveness, now),
      pending: Connection.pending(state.connection)
    }

    Registry.put_fact(self(), :health, found)
    Events.tell(state, :server, :health, measurements, %{state: found, previous: previous})
    # The name of the event in version 0.1.
    Events.tell(state, :server, :verdict, measurements, %{verdict: found, previous: previous})
    log(state, previous, found, measurements.silent_ms)
    update(state, state: {found, if(previous in @held and found in @held, do: since, else: now)})
  end

  # A change between idle and busy is no news.
  defp log(_state, previous, found, _silent_ms) when previous in @well and found in @well, do: :ok

  defp log(state, previous, found, _silent_ms) when found in @well,
    do: Logger.info("PyPort #{state.who}: Python is heard of again (it was #{inspect(previous)})")

  defp log(%{connection: %{os_pid: os_pid}, who: who}, _previous, :unreadable, _silent_ms) do
    Logger.warning(
      "PyPort #{who}: Python (process #{os_pid}) writes, but no frame arrives: its port is written to by " <>
        "other code, or was replaced"
    )
  end

  defp log(%{connection: %{os_pid: os_pid}, who: who}, _previous, found, silent_ms) do
    Logger.warning(
      "PyPort #{who}: no heartbeat of Python (process #{os_pid}) for #{silent_ms} ms: #{words(found)}"
    )
  end

  defp words(:gil_held), do: "something holds the interpreter and computes"
  defp words(:stuck), do: "something holds the interpreter and waits"
  defp words(:stopped), do: "the process is stopped"
  defp words(:lost), do: "idle, but no heartbeat received"
  defp words(:unknown), do: "there is no /proc here to see why"
  defp words(:exited), do: "the process has ended"

  defp update(%{health: health} = state, changes), do: %{state | health: struct!(health, changes)}
end
