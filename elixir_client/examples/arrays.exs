# A tensor of Nx that numpy works on, and what comes back. In a project that has Nx among its dependencies:
#
#     mix run examples/arrays.exs
#
# The Python needs numpy, as the one that `make setup` builds has.

Code.ensure_loaded?(Nx) || raise "this example needs the library Nx: {:nx, \"~> 0.9\"} in mix.exs"

import PyPort.Sigils

# The lowest and the highest temperature of each month, in °C.
rows =
  __DIR__
  |> Path.join("data/weather.csv")
  |> File.stream!()
  |> Stream.drop(1)
  |> Enum.map(fn line -> line |> String.trim() |> String.split(",") end)

months =
  for {_month, days} <- rows |> Enum.group_by(fn [date | _] -> String.slice(date, 5, 2) end) |> Enum.sort() do
    [
      days |> Enum.map(fn [_, lowest | _] -> elem(Float.parse(lowest), 0) end) |> Enum.min(),
      days |> Enum.map(fn [_, _, highest | _] -> elem(Float.parse(highest), 0) end) |> Enum.max()
    ]
  end

tensor = Nx.tensor(months, type: {:f, 64})
IO.puts("12 × 2 numbers of #{inspect(Nx.type(tensor))}")

# In Python it is a numpy array over the bytes that were sent; nothing is converted.
{:ok, known} = PyPort.eval("f'{a.dtype} {a.shape}'", %{a: tensor}, timeout: 60_000)
IO.puts("as numpy has it: #{known}")

# `arrays: :nx` gives tensors back; without it an array is an object, which stays in Python.
{:ok, scaled} =
  PyPort.eval(
    ~P"""
    import numpy

    (a - a.mean(axis=0)) / numpy.ptp(a, axis=0)
    """,
    %{a: tensor},
    arrays: :nx
  )

warmest =
  scaled
  |> Nx.to_flat_list()
  |> Enum.chunk_every(2)
  |> Enum.with_index(1)
  |> Enum.max_by(fn {[_lowest, highest], _number} -> highest end)
  |> elem(1)

IO.puts("The warmest month has number #{warmest}.")
