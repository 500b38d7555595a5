# A year of weather, read and grouped by pandas; the table stays in Python, the figures come back. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/statistics.exs
#
# The Python needs pandas, as the one that `make setup` builds has.

import PyPort.Sigils

csv = Path.join(__DIR__, "data/weather.csv")

# A DataFrame has no counterpart in Elixir: what comes back is a handle of it.
{:ok, weather} =
  PyPort.eval(
    ~P"""
    import pandas

    pandas.read_csv(path, parse_dates=["date"])
    """,
    %{path: csv},
    timeout: 60_000
  )

{days, columns} = PyPort.eval!("weather.shape", %{weather: weather})
IO.puts("#{days} days, #{columns} columns, kept in Python as #{weather.type}\n")

months =
  PyPort.eval!(
    ~P"""
    month = weather["date"].dt.month_name().str[:3]
    weather["mean"] = (weather["temp_min_c"] + weather["temp_max_c"]) / 2
    table = weather.groupby(month, sort=False).agg(
        mean=("mean", "mean"),
        coldest=("temp_min_c", "min"),
        warmest=("temp_max_c", "max"),
        rain=("rain_mm", "sum"),
    )
    table.round(1).reset_index(names="month").to_dict("records")
    """,
    %{weather: weather}
  )

IO.puts("month    mean  coldest  warmest    rain")

for %{"month" => month} = row <- months do
  figures =
    for name <- ["mean", "coldest", "warmest", "rain"], do: :erlang.float_to_binary(row[name], decimals: 1)

  [mean, coldest, warmest, rain] = Enum.map(figures, &String.pad_leading(&1, 7))
  IO.puts("#{month}   #{mean}  #{coldest}  #{warmest} #{rain}")
end

# Methods of the object can be called from here, with Elixir values.
{:ok, wettest} = PyPort.call({weather, "nlargest"}, [3, "rain_mm"])
dates = PyPort.eval!("[day.date() for day in wettest['date']]", %{wettest: wettest})
IO.puts("\nThe three wettest days: #{Enum.map_join(dates, ", ", &Calendar.strftime(&1, "%-d %B"))}")

PyPort.release([weather, wettest])
