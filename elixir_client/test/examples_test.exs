defmodule PyPort.ExamplesTest do
  # Every program in examples/ runs, here as by `mix run`, and prints what it is there to show.
  use ExUnit.Case, async: false

  import ExUnit.{CaptureIO, CaptureLog}

  @examples Path.expand("../examples", __DIR__)

  setup do
    level = Logger.level()
    on_exit(fn -> Logger.configure(level: level) end)
  end

  defp run(name, arguments \\ []) do
    before = System.argv()
    on_exit(fn -> System.argv(before) end)
    System.argv(arguments)

    {printed, _log} = with_log(fn -> capture_io(fn -> Code.eval_file(Path.join(@examples, name)) end) end)

    printed
  end

  test "none is left out" do
    tested = ~w(arrays callers demo embeddings plot progress statistics supervised tables tokens)

    assert @examples |> Path.join("*.exs") |> Path.wildcard() |> Enum.map(&Path.basename(&1, ".exs")) ==
             tested
  end

  test "demo.exs: the tour comes to its end" do
    printed = run("demo.exs")
    assert printed =~ "warmest month"
    assert printed =~ "ZeroDivisionError"
    assert printed =~ "That was PyPort."
  end

  @tag timeout: 120_000
  test "statistics.exs: pandas groups a year by months" do
    printed = run("statistics.exs")
    assert printed =~ "kept in Python as pandas"
    assert [_, _] = Regex.run(~r/^Jan +(-?\d+\.\d)/m, printed)
    assert [_, _] = Regex.run(~r/^Dec +(-?\d+\.\d)/m, printed)
    assert printed =~ ~r/^The three wettest days: \d+ \w+, \d+ \w+, \d+ \w+$/m
  end

  test "arrays.exs: a tensor of Nx goes to numpy and comes back" do
    printed = run("arrays.exs")
    assert printed =~ "12 × 2 numbers of {:f, 64}"
    assert printed =~ ~r/^The warmest month has number [678]\.$/m
    assert printed =~ "as numpy has it: float64 (12, 2)"
  end

  @tag timeout: 120_000
  test "tables.exs: pandas reads, Explorer has the rows, and Python sums them up" do
    printed = run("tables.exs")
    assert printed =~ ~s(366 rows of ["date", "temp_min_c", "temp_max_c", "rain_mm", "wind_kmh"])
    assert printed =~ ~r/^It rained \d+ mm on \d+ days\.$/m
  end

  @tag :tmp_dir
  @tag timeout: 180_000
  test "plot.exs: matplotlib's picture is a PNG in a file", %{tmp_dir: directory} do
    path = Path.join(directory, "weather.png")
    assert run("plot.exs", [path]) =~ "900 × 400 pixels"
    assert <<137, "PNG\r\n", _rest::binary>> = File.read!(path)
  end

  test "tokens.exs: tokens come one by one, and conversations at the same time" do
    printed = run("tokens.exs")
    assert printed =~ "What is six times seven? The answer is forty-two, and it comes word by word.\n"
    assert printed =~ "You asked: And in short? ...\n"
    assert printed =~ ~r/^10 more at once, 140 tokens in \d+ ms$/m
  end

  @tag timeout: 120_000
  test "callers.exs: every caller is answered, by every Python of the pool" do
    printed = run("callers.exs")
    assert printed =~ "9537 primes between 500 and 100500"
    served = for [_, n] <- Regex.scan(~r/process \d+: (\d+) requests/, printed), do: String.to_integer(n)
    assert length(served) == System.schedulers_online()
    assert Enum.sum(served) == 200
  end

  test "progress.exs: the bar fills, and the result comes last" do
    printed = run("progress.exs")
    assert printed =~ "\r" <> String.duplicate("░", 39) or printed =~ "\r█" <> String.duplicate("░", 39)
    assert printed =~ "\r" <> String.duplicate("█", 40) <> " 100 %\n"
    assert printed =~ "π is about 3.1"
  end

  test "embeddings.exs: no sentence is lost while the model changes" do
    printed = run("embeddings.exs")
    assert printed =~ "the first model: [1, 10, 3]"
    assert printed =~ "the second model: [2, 10, 3]"
    assert printed =~ ~r/^\d+ sentences of 16 callers, 0 lost$/m
  end

  test "supervised.exs: a worker that crashed is there again" do
    printed = run("supervised.exs")
    assert printed =~ "it died: kind :killed, signal SIGSEGV, begun: true"
    assert printed =~ "in careless"
    assert length(Regex.scan(~r/is ready since the start/, printed)) == 2
  end
end
