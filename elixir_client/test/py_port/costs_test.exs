defmodule PyPort.CostsTest do
  # Promises with a number in them, held at that number.
  #
  # A promise is about a machine that has nothing else to do, and a test runs where it runs. So each is held in one of
  # two ways. Either one round of several keeps it by the clock. Or, where others take the cores meanwhile and no round
  # can, the CPU time of both sides does: what others do adds no work to ours, it only makes it slower, by cold caches
  # and shared cores, which the best of the rounds shows least of. Its limit lies below twice of what was measured, so
  # that a cost which doubles is found in either way. Not async: the CPU time of the BEAM is that of all its processes.
  use ExUnit.Case, async: false

  @moduletag timeout: 120_000
  @rounds 20

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__})
    {:ok, server: __MODULE__}
  end

  # Per one of `count`, in µs: the best by the clock, and the best CPU time of both sides.
  defp best(server, count, promise, run) do
    run.()

    Enum.reduce_while(1..@rounds, {:infinity, :infinity}, fn _round, {wall, cpu} ->
      before = cpu(server)
      {micros, _result} = :timer.tc(run)
      cpu = min(cpu, (cpu(server) - before) / count)
      wall = min(wall, micros / count)
      if wall <= promise, do: {:halt, {wall, cpu}}, else: {:cont, {wall, cpu}}
    end)
  end

  defp cpu(server) do
    {beam_ms, _since} = :erlang.statistics(:runtime)
    beam_ms * 1_000 + PyPort.eval!("import time; time.process_time_ns()", %{}, server: server) / 1_000
  end

  test "an item of a stream costs at most 3 µs at the default credit", %{server: server} do
    items = 60_000
    stream = PyPort.stream("for n in range(limit): yield n", %{limit: items}, server: server)
    {wall, cpu} = best(server, items, 3.0, fn -> ^items = Enum.count(stream) end)
    # Measured: 1.6 for Python and 1.0 for the BEAM, which work at the same time where there are two cores.
    assert wall <= 3.0 or cpu <= 4.0, "#{wall} µs an item, #{cpu} µs of CPU time"
  end

  test "1,000 prints cost at most 5 ms", %{server: server} do
    {:ok, device} = StringIO.open("")
    code = "for n in range(1000): print(n)"
    run = fn -> for _ <- 1..20, do: {:ok, nil} = PyPort.eval(code, %{}, server: server, stdout: device) end
    # Measured: 2.1. The limit lies below twice of that, and well within the promise.
    {wall, cpu} = best(server, 20_000, 4.0, run)
    assert wall <= 4.0 or cpu <= 4.0, "#{wall} ms for 1,000 prints, #{cpu} ms of CPU time"
    {_input, printed} = StringIO.contents(device)
    assert String.starts_with?(printed, "0\n1\n2\n")
  end
end
