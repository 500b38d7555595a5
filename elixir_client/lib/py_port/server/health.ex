defmodule PyPort.Server.Health do
  # Takes the pulse of the server's Python, on each beat and whenever a request is past its deadline, and says so where
  # the verdict has changed: to Logger, to telemetry, and in the registry, where PyPort.status/1 finds it. Which verdicts
  # are an end is decided here; how one ends a Python is PyPort.Server.Shutdown's.
  @moduledoc false

  require Logger

  alias PyPort.{Registry, Telemetry}
  alias PyPort.Server.{Liveness, Probe}

  @type state :: map()

  @well [:idle, :busy]

  # Python notes on its page that it serves when it has written its hello. A port is read at once.
  @hello_ms 500

  @doc "Python is ready: from now on it beats."
  @spec begin(state()) :: state()
  def begin(state) do
    now = now()
    liveness = Liveness.new(state.options.heartbeat_interval, now)
    %{state | liveness: liveness, verdict: {:idle, now}}
  end

  @doc "The owner's own tick, which was `due` then."
  @spec tick(state(), due :: integer()) :: {:ok, state()} | {:exited, state()} | {:kill, atom(), state()}
  def tick(%{phase: :ready} = state, due) do
    now = now()
    {verdict, state} = look(%{state | liveness: Liveness.tick(state.liveness, due, now)})

    cond do
      verdict == :exited -> {:exited, state}
      over?(verdict, now, state) -> {:kill, verdict, state}
      true -> {:ok, state}
    end
  end

  # No beat comes before it is ready, but it can have died, or have said hello to no effect.
  def tick(%{phase: :starting, pulse: %Probe{} = pulse} = state, _due) do
    case {Probe.sample(pulse), Probe.page(pulse)} do
      {%{process: :absent}, _page} -> {:exited, state}
      {%{process: {:alive, ?Z, _cpu}}, _page} -> {:exited, state}
      {_alive, %{phase: :serving}} -> unheard(state, now())
      _alive -> {:ok, state}
    end
  end

  def tick(state, _due), do: {:ok, state}

  # A hello that was written before the last look is here by now.
  defp unheard(%{verdict: {:unreadable, since}} = state, now) when now - since >= @hello_ms,
    do: {:kill, :unreadable, state}

  defp unheard(%{verdict: {:unreadable, _since}} = state, _now), do: {:ok, state}
  defp unheard(state, now), do: {:ok, %{state | verdict: {:unreadable, now}}}

  # A frame that was just on its way is here by the next look.
  defp over?(:unreadable, now, %{options: options, verdict: {_verdict, since}}),
    do: now - since >= options.heartbeat_interval

  # One that was stopped, and goes on, has the time for a beat first.
  defp over?(:lost, now, %{options: options, verdict: {_verdict, since}} = state) do
    Liveness.silent_ms(state.liveness, now) >= options.lost_after and
      now - since >= options.heartbeat_interval
  end

  defp over?(verdict, now, %{options: options, verdict: {_verdict, since}})
       when verdict in [:gil_held, :stuck],
       do: options.gil_held_limit != :infinity and now - since >= options.gil_held_limit

  defp over?(_verdict, _now, _state), do: false

  @doc "A beat has been read."
  @spec beat(state(), map()) :: state()
  def beat(%{phase: :ready} = state, said) do
    said = if said[:state] == :busy, do: :busy, else: :idle
    state = %{state | liveness: Liveness.said(state.liveness, said)}
    # One that was thought ill is well again, and not only from the next tick on.
    if well?(state), do: state, else: state |> look() |> elem(1)
  end

  def beat(state, _said), do: state

  @spec look(state()) :: {Liveness.verdict(), state()}
  def look(state) do
    {verdict, liveness} = Liveness.judge(state.liveness, Probe.sample(state.pulse), now())
    {verdict, note(%{state | liveness: liveness}, verdict)}
  end

  @spec well?(state()) :: boolean()
  def well?(%{verdict: {verdict, _since}}), do: verdict in @well

  @doc "For the metadata of events."
  @spec about(state()) :: map()
  def about(%{connection: connection, options: options}),
    do: %{server: self(), name: options.name, os_pid: connection && connection.os_pid}

  # Being held and being stuck are the same illness with another face.
  @held [:gil_held, :stuck]

  defp note(%{verdict: {verdict, _since}} = state, verdict), do: state

  defp note(%{verdict: {previous, since}} = state, verdict) do
    now = now()
    silent_ms = Liveness.silent_ms(state.liveness, now)
    pending = :ets.info(state.connection.table, :size)
    Registry.put_fact(self(), :health, verdict)

    Telemetry.execute(
      [:py_port, :server, :verdict],
      %{silent_ms: silent_ms, pending: pending},
      Map.merge(about(state), %{verdict: verdict, previous: previous})
    )

    say(state, previous, verdict, silent_ms)
    %{state | verdict: {verdict, if(previous in @held and verdict in @held, do: since, else: now)}}
  end

  # Whether it is idle or busy is no news.
  defp say(_state, previous, verdict, _silent_ms) when previous in @well and verdict in @well, do: :ok

  defp say(state, previous, verdict, _silent_ms) when verdict in @well,
    do: Logger.info("PyPort #{state.who}: Python is heard of again (it was #{inspect(previous)})")

  defp say(state, _previous, :unreadable, _silent_ms) do
    Logger.warning(
      "PyPort #{state.who}: Python (process #{state.connection.os_pid}) writes, but no frame arrives: its port is written to by " <>
        "other code, or was replaced"
    )
  end

  defp say(state, _previous, verdict, silent_ms) do
    Logger.warning(
      "PyPort #{state.who}: nothing heard of Python (process #{state.connection.os_pid}) for #{silent_ms} ms: #{words(verdict)}"
    )
  end

  defp words(:gil_held), do: "something holds the interpreter and computes"
  defp words(:stuck), do: "something holds the interpreter and waits"
  defp words(:stopped), do: "the process is stopped"
  defp words(:lost), do: "it has nothing to do, and does not say so"
  defp words(:unknown), do: "there is no /proc here to see why"
  defp words(:exited), do: "the process has ended"

  defp now, do: System.monotonic_time(:millisecond)
end
