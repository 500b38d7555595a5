defmodule PyPort.Server.ProbeTest do
  # What can be seen of a process from outside: its line in /proc.
  use ExUnit.Case, async: true

  alias PyPort.Server.Probe

  defp stat(name, state, start \\ 4_711) do
    # Fields 3 to 24; user and system time are 14 and 15, the start time is 22.
    numbers = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 123, 45, 0, 0, 20, 0, 1, 0, start, 999, 888]
    "77 (#{name}) #{state} #{Enum.join(numbers, " ")}\n"
  end

  test "state and CPU time are found whatever the process calls itself" do
    # Field 4 is the first of the numbers, so the 14th is the 11th of them.
    for name <- ["python3", "a b", ") R 1 2 3", "((", "1 (x) S 2"] do
      assert Probe.process(stat(name, "S"), 4_711) == {:alive, ?S, 1_680}
    end
  end

  test "another process with the same pid is not this one" do
    assert Probe.process(stat("python3", "S", 4_712), 4_711) == :absent
    # Where the start time is not known, the file that was opened is all there is.
    assert Probe.process(stat("python3", "S", 4_712), 0) == {:alive, ?S, 1_680}
  end

  test "what cannot be read says nothing" do
    for text <- ["", "77", "77 (python3", "77 (python3)", "77 (python3) S", "77 (python3) S a b c"],
        do: assert(Probe.process(text, 1) == :unknown)
  end

  test "the BEAM itself is alive, and uses CPU" do
    {:ok, stat} = File.read("/proc/#{System.pid()}/stat")
    start_time = System.pid() |> String.to_integer() |> PyPort.Reaper.start_time()
    assert {:alive, state, cpu_ms} = Probe.process(stat, start_time)
    assert state in [?R, ?S]
    assert cpu_ms > 0
  end
end
