defmodule PyPort.Deadline do
  # Timeouts as points in time: milliseconds of the monotonic clock.
  @moduledoc false

  @type t :: integer() | :infinity

  @spec deadline(timeout()) :: t()
  def deadline(:infinity), do: :infinity
  def deadline(timeout), do: now() + timeout

  # The time left until then, in ms.
  @spec remaining(t()) :: timeout()
  def remaining(:infinity), do: :infinity
  def remaining(deadline), do: max(deadline - now(), 0)

  @spec now() :: integer()
  def now, do: System.monotonic_time(:millisecond)
end
