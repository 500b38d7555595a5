# A table that pandas reads, as a frame of Explorer, and back. In a project that has Explorer among its dependencies:
#
#     mix run examples/tables.exs
#
# The Python needs pandas and pyarrow, as the one that `make setup` builds has.

Code.ensure_loaded?(Explorer.DataFrame) ||
  raise "this example needs the library Explorer: {:explorer, \"~> 0.10\"} in mix.exs"

import PyPort.Sigils
alias Explorer.DataFrame

csv = Path.join(__DIR__, "data/weather.csv")

# The rows cross as one Arrow stream, whatever their number.
{:ok, weather} =
  PyPort.eval(
    ~P"""
    import pandas

    pandas.read_csv(path, parse_dates=["date"])
    """,
    %{path: csv},
    tables: :explorer,
    timeout: 60_000
  )

IO.puts("#{DataFrame.n_rows(weather)} rows of #{inspect(DataFrame.names(weather))}")

# A frame of Explorer's among the values goes the same way; all libraries import it that know Arrow.
{:ok, %{"rain" => rain, "days" => days}} =
  PyPort.eval(
    ~P"""
    import pandas

    rain = pandas.DataFrame.from_arrow(weather)["rain_mm"]
    {"rain": float(rain.sum()), "days": int((rain > 0).sum())}
    """,
    %{weather: weather}
  )

IO.puts("It rained #{round(rain)} mm on #{days} days.")
