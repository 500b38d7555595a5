# A plot by matplotlib, as the bytes of a PNG that Elixir writes to a file. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/plot.exs weather.png
#
# The Python needs matplotlib, as the one that `make setup` builds has.

import PyPort.Sigils

path = List.first(System.argv()) || Path.join(System.tmp_dir!(), "weather.png")

[_header | rows] = __DIR__ |> Path.join("data/weather.csv") |> File.read!() |> String.split("\n", trim: true)

days =
  for row <- rows do
    [date, low, high, _rain, _wind] = String.split(row, ",")
    {Date.from_iso8601!(date), String.to_float(low), String.to_float(high)}
  end

png =
  PyPort.eval!(
    ~P"""
    import io

    import matplotlib
    matplotlib.use("Agg")    # draws into memory; no display is needed
    from matplotlib import pyplot

    dates, lows, highs = zip(*days)
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    axes.fill_between(dates, lows, highs, alpha=0.4)
    axes.plot(dates, [(low + high) / 2 for low, high in zip(lows, highs)], linewidth=1)
    axes.set_title("A year of weather")
    axes.set_ylabel("°C")

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    pyplot.close(figure)
    file.getvalue()
    """,
    %{days: days},
    timeout: 120_000
  )

File.write!(path, png)
<<137, "PNG\r\n", 26, "\n", _length::32, "IHDR", width::32, height::32, _rest::binary>> = png
IO.puts("#{path}: #{width} × #{height} pixels, #{byte_size(png)} bytes")
