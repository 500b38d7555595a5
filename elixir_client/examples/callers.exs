# A pool of Pythons under many callers. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/callers.exs
#
# Each request goes to the Python with the fewest requests open; no process stands between a caller and its Python.

import PyPort.Sigils

# `init_code` runs once in each Python, before it takes work; what it defines, every request sees.
init_code = ~P"""
import os

def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))
"""

pool = {PyPort.Pool, name: Primes, size: System.schedulers_online(), init_code: init_code}
{:ok, supervisor} = Supervisor.start_link([pool], strategy: :one_for_one)

# A pool answers as soon as one of its Pythons is ready. The clock here starts when all of them are.
all_ready = fn all_ready ->
  length(PyPort.Pool.servers(Primes)) == System.schedulers_online() or
    (Process.sleep(20) && all_ready.(all_ready))
end

all_ready.(all_ready)

callers = 200
count = "(os.getpid(), sum(map(is_prime, range(first, first + 500))))"

{micros, answers} =
  :timer.tc(fn ->
    1..callers
    |> Task.async_stream(
      fn n -> PyPort.eval!(count, %{first: n * 500}, server: Primes, timeout: 60_000) end,
      max_concurrency: 50,
      timeout: 60_000
    )
    |> Enum.map(fn {:ok, answer} -> answer end)
  end)

primes = answers |> Enum.map(&elem(&1, 1)) |> Enum.sum()
IO.puts("#{primes} primes between 500 and #{(callers + 1) * 500}")
IO.puts("#{callers} callers, up to 50 at once, answered after #{div(micros, 1000)} ms, by:")

for {os_pid, answered} <- answers |> Enum.frequencies_by(&elem(&1, 0)) |> Enum.sort() do
  IO.puts("  process #{os_pid}: #{answered} requests")
end

Supervisor.stop(supervisor)
