defmodule PyPort.Server.Liveness do
  # The health state of a Python, from samples that are taken without asking it. No process, no file, no clock: the time is
  # an argument, in milliseconds of a monotonic clock.
  #
  # | heard of | CPU, state of the process | state |
  # | --- | --- | --- |
  # | lately | any | `:idle` or `:busy`, as the heartbeat says |
  # | not lately | rising | `:gil_held` |
  # | not lately | state T | `:stopped` |
  # | not lately | flat, a request open | `:stuck` |
  # | not lately | flat, none open | `:lost` |
  # | not lately | not to be seen (no /proc) | `:unknown` |
  # | any | absent, or a zombie | `:exited` |
  # | no frame, but Python has written some heartbeats | any | `:unreadable` |
  #
  # PyPort.Server.Health acts on a state.
  @moduledoc false

  @type state :: :idle | :busy | :gil_held | :stopped | :stuck | :lost | :unknown | :unreadable | :exited

  # One probe. `heard` is any term that differs from the last one when bytes have come from Python since; `received` changes
  # with every whole frame, `sent` is how many heartbeats Python has written. `process` is the state of the process by /proc.
  @type sample :: %{
          heard: term(),
          received: term(),
          sent: non_neg_integer(),
          process: {:alive, state :: char(), cpu_ms :: non_neg_integer()} | :absent | :unknown,
          open?: boolean()
        }

  @type t :: %__MODULE__{
          interval: pos_integer(),
          said: :idle | :busy | nil,
          heard: term(),
          heard_at: integer(),
          # At the last whole frame: the term of the sample, the time, and how many heartbeats had been sent.
          frame: {received :: term(), at :: integer(), sent :: non_neg_integer()} | nil,
          grace_until: integer() | nil,
          cpu: {at :: integer(), cpu_ms :: non_neg_integer()} | nil,
          rising?: boolean()
        }

  @enforce_keys [:interval, :heard_at]
  defstruct [:interval, :heard_at, :said, :heard, :frame, :grace_until, :cpu, rising?: false]

  # A tick that comes later than this was not late: its BEAM was paused.
  @late_ms 500

  # A process that waits for the interpreter wakes up now and then, which takes a few percent of a core; a process that
  # computes takes most of a core, on a crowded machine a fair part of it.
  @rising_percent 10

  # So many heartbeats are not on their way any more: each is written in one piece, and a port is read at once.
  @lost_beats 3

  # And for so long at least, however short the interval is.
  @unreadable_ms 1_000

  # The system counts CPU time in steps of 10 ms: a shorter interval has no meaning.
  @cpu_window_ms 150

  @spec new(interval :: pos_integer(), now :: integer()) :: t()
  def new(interval, now), do: %__MODULE__{interval: interval, heard_at: now}

  # The state that the last heartbeat reported.
  @spec said(t(), :idle | :busy) :: t()
  def said(liveness, state), do: %{liveness | said: state}

  # The owner's own tick, which was `due` then and comes `now`. A tick that comes more than half a second late means that the
  # BEAM was paused: frames that Python sent meanwhile may not have been read, so one interval of grace follows.
  @spec tick(t(), due :: integer(), now :: integer()) :: t()
  def tick(liveness, due, now) when now - due > @late_ms,
    do: %{liveness | grace_until: now + liveness.interval}

  def tick(liveness, _due, _now), do: liveness

  # A longer silence counts: two heartbeats and a half, and a moment for a crowded machine.
  @spec stale_ms(t()) :: pos_integer()
  def stale_ms(%{interval: interval}), do: max(div(interval * 5, 2), interval + 300)

  # For how long no byte has been received.
  @spec silent_ms(t(), now :: integer()) :: non_neg_integer()
  def silent_ms(%{heard_at: heard_at}, now), do: max(now - heard_at, 0)

  @spec judge(t(), sample(), now :: integer()) :: {state(), t()}
  def judge(liveness, sample, now) do
    liveness = liveness |> listen(sample, now) |> read(sample, now) |> measure(sample.process, now)
    {state(liveness, sample, now), liveness}
  end

  defp state(_liveness, %{process: :absent}, _now), do: :exited
  defp state(_liveness, %{process: {:alive, state, _cpu}}, _now) when state in [?Z, ?X], do: :exited

  defp state(liveness, sample, now) do
    cond do
      unreadable?(liveness, sample, now) -> :unreadable
      fresh?(liveness, now) -> well(liveness, sample)
      true -> silent(liveness, sample)
    end
  end

  defp unreadable?(%{frame: {_received, at, sent}} = liveness, sample, now) do
    sample.sent - sent >= @lost_beats and now - at >= max(@unreadable_ms, @lost_beats * liveness.interval) and
      not grace?(liveness, now)
  end

  # Until the first heartbeat its requests decide.
  defp well(%{said: nil}, sample), do: if(sample.open?, do: :busy, else: :idle)
  defp well(%{said: said}, _sample), do: said

  defp silent(_liveness, %{process: :unknown}), do: :unknown
  defp silent(_liveness, %{process: {:alive, state, _cpu}}) when state in [?T, ?t], do: :stopped
  defp silent(%{rising?: true}, _sample), do: :gil_held
  defp silent(_liveness, %{open?: true}), do: :stuck
  defp silent(_liveness, _sample), do: :lost

  defp fresh?(liveness, now) do
    silent_ms(liveness, now) < stale_ms(liveness) or grace?(liveness, now)
  end

  defp grace?(%{grace_until: until}, now), do: until != nil and now < until

  defp listen(%{heard: heard} = liveness, %{heard: heard}, _now), do: liveness
  defp listen(liveness, %{heard: heard}, now), do: %{liveness | heard: heard, heard_at: now}

  defp read(%{frame: {received, _at, _sent}} = liveness, %{received: received}, _now), do: liveness
  defp read(liveness, sample, now), do: %{liveness | frame: {sample.received, now, sample.sent}}

  defp measure(liveness, {:alive, _state, cpu_ms}, now) do
    case liveness.cpu do
      nil ->
        %{liveness | cpu: {now, cpu_ms}}

      {at, before} when now - at >= @cpu_window_ms ->
        rising? = (cpu_ms - before) * 100 >= (now - at) * @rising_percent
        %{liveness | cpu: {now, cpu_ms}, rising?: rising?}

      # Too soon to tell: the last measurement holds.
      _recent ->
        liveness
    end
  end

  defp measure(liveness, _not_seen, _now), do: liveness
end
