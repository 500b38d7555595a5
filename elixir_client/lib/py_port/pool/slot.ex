defmodule PyPort.Pool.Slot do
  # One place for a server in a pool: the server in it, its successor, and its history. Times are monotonic ms and arguments.
  # Pure, but for a look into the registry.
  @moduledoc false

  alias PyPort.{Connection, Error, Registry}
  alias PyPort.Pool.Policy

  # After a replacement that could not start, the old server is good enough for this long.
  @rest_ms 30_000

  # `pid` without `connection` is starting; neither is waiting for `retry`. `successor` is a server that starts in order to
  # take over, `why` the reason; `error` is why the last start failed; `restart?` whether another server is asked for.
  defstruct [
    :pid,
    :connection,
    :ready_at,
    :retry,
    :error,
    :successor,
    :why,
    :rest_until,
    crashes: 0,
    restart?: false
  ]

  @type t :: %__MODULE__{
          pid: pid() | nil,
          connection: Connection.t() | nil,
          ready_at: integer() | nil,
          retry: reference() | nil,
          error: Error.t() | nil,
          successor: pid() | nil,
          why: Policy.reason() | nil,
          rest_until: integer() | nil,
          crashes: non_neg_integer(),
          restart?: boolean()
        }

  @type role :: :serving | :starting | {:draining, atom()} | :down

  @spec starting(t(), pid()) :: t()
  def starting(slot, pid),
    do: %{slot | pid: pid, connection: nil, ready_at: nil, retry: nil, restart?: false}

  @spec ready(t(), Connection.t(), integer()) :: t()
  def ready(slot, connection, now), do: %{slot | connection: connection, ready_at: now, error: nil}

  # The successor is ready and takes over.
  @spec succeeded(t(), Connection.t(), integer()) :: t()
  def succeeded(%{successor: pid} = slot, connection, now),
    do: ready(%{slot | pid: pid, successor: nil, why: nil, crashes: 0, restart?: false}, connection, now)

  # Another server is asked for. A successor that starts already may have begun before that.
  @spec restart(t()) :: t()
  def restart(slot), do: %{slot | successor: nil, why: nil, rest_until: nil, restart?: slot.pid != nil}

  # The successor is not going to be ready.
  @spec keep_old(t(), integer()) :: t()
  def keep_old(slot, now), do: %{slot | successor: nil, why: nil, rest_until: now + @rest_ms}

  # The server has ended before its successor was ready.
  @spec left_to_successor(t()) :: t()
  def left_to_successor(%{successor: pid} = slot), do: %{starting(slot, pid) | successor: nil, why: nil}

  # The server has ended in order to be started anew, which does not count as a crash.
  @spec left(t()) :: t()
  def left(slot), do: %{slot | pid: nil, connection: nil, ready_at: nil}

  # The server has ended by itself.
  @spec crashed(t(), integer()) :: t()
  def crashed(slot, now) do
    %{left(slot) | crashes: Policy.crashes(slot.crashes, lived(slot, now))}
  end

  # Whether the server has answered a request.
  @spec answered?(t(), integer()) :: boolean()
  def answered?(%{ready_at: nil}, _now), do: false

  def answered?(%{connection: connection} = slot, now),
    do: Connection.quiet(connection) < System.convert_time_unit(lived(slot, now), :millisecond, :native)

  # A server that has worked for a while has recovered.
  @spec settle(t(), integer()) :: t()
  def settle(%{crashes: 0} = slot, _now), do: slot
  def settle(slot, now), do: if(Policy.settled?(lived(slot, now)), do: %{slot | crashes: 0}, else: slot)

  # Why the server should be replaced, or nil.
  @spec due(t(), Policy.limits(), integer()) :: Policy.reason() | nil
  def due(%{rest_until: rest_until}, _limits, now) when rest_until != nil and now < rest_until, do: nil

  def due(%{restart?: true}, _limits, _now), do: :requested

  def due(%{connection: connection} = slot, limits, now) do
    facts = %{
      requests: Connection.requests(connection),
      age_ms: lived(slot, now),
      rss_bytes: rss_bytes(slot.pid)
    }

    Policy.due(facts, limits)
  end

  # Whether the server has nothing to do, and has had nothing for that long. A heartbeat that is younger than its last reply
  # tells of sessions and objects.
  @spec idle?(t(), timeout(), integer()) :: boolean()
  def idle?(%{connection: connection, successor: nil}, timeout, now)
      when connection != nil and timeout != :infinity do
    quiet_ms = connection |> Connection.quiet() |> System.convert_time_unit(:native, :millisecond)

    with true <- Connection.pending(connection) == 0 and quiet_ms >= timeout,
         {%{objects: 0, sessions: 0}, at} <- Registry.fact(connection.owner, :heartbeat) do
      now - at < quiet_ms
    else
      _in_use -> false
    end
  end

  def idle?(_slot, _timeout, _now), do: false

  @spec overview(t()) :: [{pid() | nil, role()}]
  def overview(%{pid: nil}), do: [{nil, :down}]

  def overview(slot) do
    role = if slot.connection, do: :serving, else: :starting
    [{slot.pid, role} | if(slot.successor, do: [{slot.successor, :starting}], else: [])]
  end

  defp lived(%{ready_at: nil}, _now), do: nil
  defp lived(%{ready_at: ready_at}, now), do: now - ready_at

  defp rss_bytes(pid) do
    case Registry.fact(pid, :heartbeat) do
      {%{rss_bytes: rss}, _at} when is_integer(rss) -> rss
      _unknown -> nil
    end
  end
end
