defmodule PyPort.Pool.Policy do
  # Decides when a server of a pool is due to be replaced, and how long to wait before a server that keeps ending is started
  # again. Pure: facts and times are arguments.
  @moduledoc false

  @type limits :: %{
          max_requests: pos_integer() | :infinity,
          max_age: pos_integer() | :infinity,
          max_rss: pos_integer() | :infinity
        }
  @type facts :: %{
          requests: non_neg_integer(),
          age_ms: non_neg_integer(),
          rss_bytes: non_neg_integer() | nil
        }
  @type reason :: :max_requests | :max_age | :max_rss | :requested

  # A crash after this long counts as the first one again.
  @settled_ms 10_000

  @free_crashes 10
  @backoff_first_ms 100
  @backoff_most_ms 30_000

  # Why a server should be replaced, or nil.
  @spec due(facts(), limits()) :: reason() | nil
  # In Elixir every number is smaller than an atom, so `:infinity` is never reached.
  def due(facts, limits) do
    cond do
      facts.requests >= limits.max_requests -> :max_requests
      facts.age_ms >= limits.max_age -> :max_age
      # A server without a request so far was started that large, and so will be the next.
      facts.requests > 0 and facts.rss_bytes != nil and facts.rss_bytes >= limits.max_rss -> :max_rss
      true -> nil
    end
  end

  # How many times in a row a server has ended, this one included; `lived_ms` is nil where it was never ready.
  @spec crashes(before :: non_neg_integer(), lived_ms :: non_neg_integer() | nil) :: pos_integer()
  def crashes(before, lived_ms), do: if(settled?(lived_ms), do: 1, else: before + 1)

  @spec settled?(non_neg_integer() | nil) :: boolean()
  def settled?(lived_ms), do: lived_ms != nil and lived_ms >= @settled_ms

  # The wait before the next start: none after the first crash, then 100 ms, doubling up to 30 s. A server that had answered
  # requests can start, so the first ten in a row cost no wait.
  @spec backoff_ms(pos_integer(), answered? :: boolean()) :: non_neg_integer()
  def backoff_ms(crashes, true), do: backoff_ms(max(crashes - @free_crashes + 1, 1), false)
  def backoff_ms(1, false), do: 0
  def backoff_ms(crashes, false), do: min(@backoff_first_ms * 2 ** min(crashes - 2, 16), @backoff_most_ms)
end
