defmodule Bench.Values do
  # Large values there and back, streams and output.

  alias Bench.{Echo, Measure, Subjects}

  @payloads [:ints, :floats, :maps, :document, :datetimes, :dates]

  @doc """
  Structured values. The reference is what the BEAM itself has to do for them, with the bytes going through a bare
  port in between: term_to_binary, echo, binary_to_term.
  """
  def payloads(%{rounds: rounds, out: out}) do
    echo = Echo.open(:python)
    tuned = Echo.open(:python_tuned)
    server = Subjects.server()

    subjects =
      for name <- @payloads,
          value = Subjects.payload(name),
          {kind, fun} <- kinds(value, echo, tuned, server) do
        {"#{name}/#{kind}", fn -> Measure.once(fun) end}
      end

    for name <- @payloads do
      bytes = byte_size(:erlang.term_to_binary(Subjects.payload(name)))
      Measure.write(out, "#{name}/bytes", 0, bytes)
    end

    for {_name, fun} <- subjects, do: fun.()
    Measure.rounds(subjects, rounds, out)
    Enum.each([echo, tuned], &Echo.close/1)
    Subjects.stop(server)
  end

  defp kinds(value, echo, tuned, server) do
    [
      {"codec", fn -> :erlang.binary_to_term(:erlang.term_to_binary(value)) end},
      {"codec_and_echo", fn -> through(echo, value) end},
      {"codec_and_tuned_echo", fn -> through(tuned, value) end},
      {"eval", fn -> Subjects.there_and_back(server, value) end}
    ]
  end

  defp through(port, value), do: :erlang.binary_to_term(Echo.direct(port, :erlang.term_to_binary(value)))

  @doc "One binary of each size, as bytes."
  def binaries(%{rounds: rounds, sizes: sizes, out: out}) do
    ports = for command <- [:c_tuned, :python, :python_tuned], do: {command, Echo.open(command)}
    routed = Echo.start(:python_tuned)
    server = Subjects.server()

    for size <- sizes do
      binary = :binary.copy(<<0, 1, 2, 3, 4, 5, 6, 255>>, div(size, 8))
      times = max(1, min(500, div(4_000_000, size)))

      subjects =
        for({command, port} <- ports, do: {"echo_#{command}", fn -> Echo.direct(port, binary) end}) ++
          [
            {"routed_python_tuned", fn -> Echo.call(routed, binary) end},
            {"eval", fn -> Subjects.there_and_back(server, binary) end}
          ]

      subjects =
        for {name, fun} <- subjects do
          {"binary_#{size}/#{name}",
           fn ->
             :erlang.garbage_collect()
             Measure.p50(fun, times)
           end}
        end

      for {_name, fun} <- subjects, do: fun.()
      Measure.rounds(subjects, rounds, out)
    end

    for {_command, port} <- ports, do: Echo.close(port)
    Echo.close(routed)
    Subjects.stop(server)
  end

  @doc "A stream, and prints; beside a bare port that writes as many frames."
  def streams(%{rounds: rounds, items: items, prints: prints, out: out}) do
    flood = Echo.open(:flood)
    server = Subjects.server()
    {:ok, device} = StringIO.open("")
    printing = "for i in range(#{prints}): print(i)"

    subjects = [
      {"stream/flood", fn -> Measure.once(fn -> flood(flood, items) end) / items end},
      {"stream/items", fn -> Measure.once(fn -> stream(server, items) end) / items end},
      {"prints/flood", fn -> Measure.once(fn -> flood(flood, prints) end) / prints end},
      {"prints/eval",
       fn ->
         spent =
           Measure.once(fn ->
             {:ok, nil} = PyPort.eval(printing, %{}, server: server, stdout: device)
           end)

         # A device that keeps everything gets slower by itself.
         StringIO.flush(device)
         spent / prints
       end}
    ]

    for {_name, fun} <- subjects, do: fun.()
    Measure.rounds(subjects, rounds, out)
    Echo.close(flood)
    Subjects.stop(server)
  end

  defp stream(server, items) do
    stream = PyPort.stream("for i in range(n): yield i", %{n: items}, server: server)
    ^items = Enum.reduce(stream, 0, fn _item, count -> count + 1 end)
  end

  defp flood(port, items) do
    Port.command(port, Integer.to_string(items))
    take(port, items)
  end

  defp take(_port, 0), do: :ok

  defp take(port, left) do
    receive do: ({^port, {:data, _frame}} -> take(port, left - 1))
  end
end
