# A long job with a progress bar, driven by a stream. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/progress.exs
#
# The job yields how far it is and, last of all, what it has found. It never gets further ahead of the bar than
# `credit:` items.

import PyPort.Sigils

job = ~P"""
import random

generator = random.Random(7)
inside = 0
for step in range(1, steps + 1):
    for _ in range(size):
        x, y = generator.random(), generator.random()
        inside += x * x + y * y <= 1
    yield ("done", step / steps)
yield ("result", 4 * inside / (steps * size))
"""

width = 40

draw = fn share ->
  filled = round(share * width)
  bar = String.duplicate("█", filled) <> String.duplicate("░", width - filled)
  # A carriage return: the next bar is drawn over this one.
  IO.write("\r#{bar} #{String.pad_leading("#{round(share * 100)}", 3)} %")
end

result =
  job
  |> PyPort.stream(%{steps: 50, size: 4_000}, credit: 8, timeout: :infinity)
  |> Enum.reduce(nil, fn
    {"done", share}, result ->
      draw.(share)
      result

    {"result", result}, _none ->
      result
  end)

IO.puts("\nπ is about #{Float.round(result, 3)}, says a sample of 200000 points")
