# A first walk through PyPort. `make demo` runs it; so does, in elixir_client/:
#
#     mix run examples/demo.exs

import PyPort.Sigils

# Logger would print its lines between ours; the demo shows what it wants to show by itself.
Logger.configure(level: :none)

title = fn number, text ->
  IO.puts("\n#{IO.ANSI.format([:bright, "#{number}. #{text}"])}")
end

show = fn label, value -> IO.puts("   #{label} #{inspect(value, limit: 12, width: 90)}") end

title.(1, "Elixir evaluates Python")

{:ok, version} = PyPort.eval("import sys; sys.version.split()[0]")
show.("a real Python, in a process of its own:", version)
[status] = PyPort.status()
show.("its process id:", status.os_pid)
show.("the value of the last expression comes back:", PyPort.eval("sum(n * n for n in range(10))"))
show.("globals go in, with atom or string keys:", PyPort.eval("name.title()", %{name: "ada lovelace"}))
show.("functions can be called by name:", PyPort.call("math:gcd", [1071, 462]))

title.(2, "Statistics over real data: a year of weather, read by Elixir, reckoned by Python")

csv = Path.join(__DIR__, "data/weather.csv")
[header | rows] = csv |> File.read!() |> String.split("\n", trim: true) |> Enum.map(&String.split(&1, ","))
show.("columns:", header)

days =
  for [date, low, high, rain, _wind] <- rows do
    %{
      date: Date.from_iso8601!(date),
      mean: (String.to_float(low) + String.to_float(high)) / 2,
      rain: String.to_float(rain)
    }
  end

summary =
  PyPort.eval!(
    ~P"""
    import statistics
    from collections import defaultdict

    by_month = defaultdict(list)
    for day in days:
        by_month[day["date"].month].append(day)   # an Elixir Date is a datetime.date here

    warmest = max(by_month, key=lambda month: statistics.mean(d["mean"] for d in by_month[month]))
    {
        "days": len(days),
        "mean temperature": round(statistics.mean(d["mean"] for d in days), 2),
        "standard deviation": round(statistics.stdev(d["mean"] for d in days), 2),
        "warmest month": warmest,
        "wettest day": max(days, key=lambda d: d["rain"])["date"],
    }
    """,
    %{days: days}
  )

for {name, value} <- Enum.sort(summary), do: show.(String.pad_trailing(name, 19), value)
IO.puts("   (the wettest day went in as an Elixir Date and came back as one)")

title.(3, "A value too rich for Elixir stays in Python, and is used again by its handle")

{:ok, normal} =
  PyPort.eval("from statistics import NormalDist; NormalDist.from_samples(means)", %{
    means: Enum.map(days, & &1.mean)
  })

show.("a distribution, as Elixir holds it:", normal)
show.("one of its methods:", PyPort.call({normal, "quantiles"}))
show.("the very same object in other code:", PyPort.eval("round(normal.cdf(0), 3)", %{normal: normal}))
IO.puts("   (that is how likely a day below freezing is here)")

title.(4, "Prints of Python arrive where the caller prints")

PyPort.eval!(~P"""
for name in ("Grace", "Joe", "Robert"):
    print(f"   hello {name}, from Python's own print()")
""")

title.(5, "An error is a value, and its traceback points into this file")

{:error, error} =
  PyPort.eval(
    ~P"""
    def mean(values):
        return sum(values) / len(values)

    mean(readings)
    """,
    %{readings: []}
  )

show.("kind and type:", {error.kind, error.type})
IO.puts(error |> Exception.message() |> String.split("\n") |> Enum.map_join("\n", &("   | " <> &1)))

title.(6, "Python dies; Elixir does not")

[before] = PyPort.status()
{:error, death} = PyPort.eval("import os; os._exit(3)")
show.("kind and exit status:", {death.kind, death.exit_status})
IO.puts("   #{Exception.message(death)}")

# The pool has a new one up within a moment, and the next request waits for it. The one that died is never sent twice
# behind its caller's back.
show.("the next request:", PyPort.eval("6 * 7"))
[now] = PyPort.status()
show.("served by another process:", {before.os_pid, now.os_pid})

IO.puts("\nThat was PyPort. The README shows where to go from here.")
