defmodule PyPort.CostsTest do
  # Promises with a number in them, held at that number.
  #
  # A promise is about a machine that has nothing else to do, and a test runs where it runs. So each is held in one of
  # two ways. Either one round of several keeps it by the clock. Or, where others take the cores meanwhile and no round
  # can, the CPU time of both sides does, in units of what Python itself takes to print a number into a StringIO in the
  # same round: what others do slows down both, by cold caches and shared cores, and adds no work to either. The limits
  # lie below twice of what was measured, so that a cost which doubles is found in either way. Not async: the CPU time
  # of the BEAM is that of all its processes.
  use ExUnit.Case, async: false

  @moduletag :nightly
  @moduletag timeout: 120_000
  @rounds 20

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__})
    {:ok, server: __MODULE__}
  end

  # Per one of `count`: the best by the clock, in µs, and the best CPU time of both sides, in prints into a StringIO.
  defp best(server, count, promise, run) do
    run.()

    Enum.reduce_while(1..@rounds, {:infinity, :infinity}, fn _round, {wall, cpu} ->
      before = cpu(server)
      {micros, _result} = :timer.tc(run)
      used = cpu(server) - before
      cpu = min(cpu, used / count / reference(server))
      wall = min(wall, micros / count)
      if wall <= promise, do: {:halt, {wall, cpu}}, else: {:cont, {wall, cpu}}
    end)
  end

  defp cpu(server) do
    {beam_ms, _since} = :erlang.statistics(:runtime)
    beam_ms * 1_000 + PyPort.eval!("import time; time.process_time_ns()", %{}, server: server) / 1_000
  end

  defp reference(server) do
    code = """
    import io, time
    text = io.StringIO()
    began = time.process_time_ns()
    for n in range(20_000): print(n, file=text)
    time.process_time_ns() - began
    """

    PyPort.eval!(code, %{}, server: server) / 1_000 / 20_000
  end

  test "an item of a stream costs at most 3 µs at the default credit", %{server: server} do
    items = 60_000
    stream = PyPort.stream("for n in range(limit): yield n", %{limit: items}, server: server)
    {wall, cpu} = best(server, items, 3.0, fn -> ^items = Enum.count(stream) end)

    # Measured: 1.6 µs of Python and 0.9 of the BEAM, side by side where there are two cores; together 3.5 to 4.5 prints.
    assert wall <= 3.0 or cpu <= 6.0, "#{wall} µs an item, or the CPU time of #{cpu} prints"
  end

  test "1,000 prints cost at most 5 ms", %{server: server} do
    {:ok, device} = StringIO.open("")
    code = "for n in range(1000): print(n)"
    run = fn -> for _ <- 1..20, do: {:ok, nil} = PyPort.eval(code, %{}, server: server, stdout: device) end
    # Measured: 2.1 ms; 3.5 to 4.5 prints. The limit lies below twice of that, and well within the promise.
    {wall, cpu} = best(server, 20_000, 4.0, run)
    assert wall <= 4.0 or cpu <= 6.0, "#{wall} ms for 1,000 prints, or the CPU time of #{cpu} prints each"
    {_input, printed} = StringIO.contents(device)
    assert String.starts_with?(printed, "0\n1\n2\n")
  end
end
