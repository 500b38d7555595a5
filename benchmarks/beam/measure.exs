defmodule Bench.Measure do
  # How something is measured: subjects take turns, round by round, so that whatever else the machine does hurts all of
  # them alike. Every figure is written down as it comes, `name<TAB>round<TAB>number`; what it means is for bench.py.

  @doc """
  Has every subject measured once a round. A subject is `{name, fun}`; the fun gives a number, or a list of
  `{suffix, number}`. The order turns from round to round, because who comes first after a pause pays for it.
  """
  def rounds(subjects, count, out) do
    for round <- 1..count do
      {last, first} = Enum.split(subjects, rem(round - 1, length(subjects)))
      for {name, fun} <- first ++ last, do: write(out, name, round, fun.())
    end

    :ok
  end

  def write(out, name, round, number) when is_number(number),
    do: IO.write(out, "#{name}\t#{round}\t#{number / 1}\n")

  def write(out, name, round, list) do
    for {suffix, number} <- list, do: write(out, "#{name}#{suffix}", round, number)
  end

  @doc "The median of how long `fun` takes, in ns, of `count` times."
  def p50(fun, count), do: samples(fun, count, []) |> Enum.sort() |> Enum.at(div(count, 2))

  defp samples(_fun, 0, list), do: list

  defp samples(fun, count, list) do
    began = System.monotonic_time(:nanosecond)
    fun.()
    samples(fun, count - 1, [System.monotonic_time(:nanosecond) - began | list])
  end

  @doc "As `p50/2`, with a pause before each time, in which others go to work or to sleep."
  def p50_after_pauses(fun, count) do
    samples =
      for _ <- 1..count do
        Process.sleep(1)
        once(fun, :as_it_is)
      end

    samples |> Enum.sort() |> Enum.at(div(count, 2))
  end

  @doc """
  The median of a request, and what processor time its operating-system process took for each, which tells of the
  same work however many others want the processor.
  """
  def p50_and_cpu(fun, count, os_pid) do
    before = cpu_ns(os_pid)
    median = p50(fun, count)
    [{"", median}, {".cpu", (cpu_ns(os_pid) - before) / count}]
  end

  @doc "How long it takes once, in ns."
  def once(fun, heap \\ :collected) do
    if heap == :collected, do: :erlang.garbage_collect()
    began = System.monotonic_time(:nanosecond)
    fun.()
    System.monotonic_time(:nanosecond) - began
  end

  @doc "The mean of a tight loop, in ns: for steps too short to look at the clock for each."
  def mean(fun, count) do
    began = System.monotonic_time(:nanosecond)
    loop(fun, count)
    (System.monotonic_time(:nanosecond) - began) / count
  end

  defp loop(_fun, 0), do: :ok

  defp loop(fun, count) do
    fun.()
    loop(fun, count - 1)
  end

  @doc "How many calls a second `callers` processes get through together, each `count` of them."
  def rate(fun, callers, count) do
    parent = self()

    pids =
      for _ <- 1..callers do
        spawn_link(fn ->
          receive do: (:go -> loop(fun, count))
          send(parent, :done)
        end)
      end

    began = System.monotonic_time(:nanosecond)
    for pid <- pids, do: send(pid, :go)
    for _ <- pids, do: receive(do: (:done -> :ok))
    callers * count * 1.0e9 / (System.monotonic_time(:nanosecond) - began)
  end

  def cpu_ns(os_pid) do
    # Of all its threads: the file of the process itself counts the main one only.
    for task <- Path.wildcard("/proc/#{os_pid}/task/*/schedstat"), reduce: 0 do
      sum ->
        case File.read(task) do
          {:ok, text} -> sum + (text |> String.split() |> hd() |> String.to_integer())
          {:error, _ended} -> sum
        end
    end
  end

  def rss_bytes(os_pid) do
    [_size, resident | _] = "/proc/#{os_pid}/statm" |> File.read!() |> String.split()
    String.to_integer(resident) * 4096
  end
end
