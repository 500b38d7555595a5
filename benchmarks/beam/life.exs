defmodule Bench.Life do
  # Starting, memory, and work that takes its time, on one server and on several.

  alias Bench.{Echo, Measure, Subjects}

  @large 100 * 1024 * 1024

  @doc "From nothing to the first answer; beside a Python that starts and ends."
  def start(%{rounds: rounds, numpy: numpy?, out: out}) do
    numpy = [
      {"start/python_numpy", fn -> Measure.once(fn -> run("import numpy") end) end},
      {"start/server_numpy",
       fn -> first_answer("int(np.arange(3).sum())", 3, init_code: "import numpy as np") end}
    ]

    subjects =
      [
        {"start/python", fn -> Measure.once(fn -> run("pass") end) end},
        {"start/server", fn -> first_answer("1 + 1", 2, []) end}
      ] ++ if(numpy?, do: numpy, else: [])

    # The first time compiles and reads from disk.
    for {_name, fun} <- subjects, do: fun.()
    Measure.rounds(subjects, rounds, out)
  end

  defp run(code) do
    port = Echo.open({:python, code})
    receive do: ({^port, {:exit_status, 0}} -> :ok)
  end

  defp first_answer(code, value, options) do
    parent = self()

    # A process of its own, so that what is left of the server is over before the next subject begins.
    pid =
      spawn_link(fn ->
        spent =
          Measure.once(fn ->
            {:ok, server} = PyPort.Server.start_link(options)
            {:ok, ^value} = PyPort.eval(code, %{}, server: server, timeout: 60_000)
            Process.put(:server, server)
          end)

        Subjects.stop(Process.get(:server))
        send(parent, {self(), spent})
      end)

    receive do: ({^pid, spent} -> spent)
  end

  @doc "Resident memory: of a server that waits, and of one that has had 100 MiB in its hands."
  def memory(%{rounds: rounds, large: large?, out: out}) do
    for round <- 1..rounds do
      idle = Echo.open({:python, "import sys; sys.stdin.read()"})
      server = Subjects.server()
      Subjects.eval(server)
      Process.sleep(200)
      Measure.write(out, "memory/python", round, Measure.rss_bytes(Echo.os_pid(idle)))
      Measure.write(out, "memory/server", round, Measure.rss_bytes(Subjects.os_pid(server)))
      Echo.close(idle)
      if large?, do: memory_after_large(server, round, out)
      Subjects.stop(server)
    end
  end

  defp memory_after_large(server, round, out) do
    echo = Echo.open(:python_tuned)
    binary = :binary.copy(<<0>>, @large)
    Echo.direct(echo, binary)
    Subjects.there_and_back(server, binary)
    Subjects.eval(server)
    Process.sleep(200)
    Measure.write(out, "memory/echo_after_large", round, Measure.rss_bytes(Echo.os_pid(echo)))
    Measure.write(out, "memory/server_after_large", round, Measure.rss_bytes(Subjects.os_pid(server)))
    Echo.close(echo)
  end

  # Some 300 ms of one core.
  @job "sum(i * i for i in range(4_000_000))"

  @doc "Two jobs that compute, on one Python and on two; and a short request while one of two computes."
  def jobs(%{rounds: rounds, requests: requests, out: out}) do
    one = Subjects.server()
    {pool, stop} = pool(2)

    subjects = [
      {"jobs/one", fn -> Measure.once(fn -> together([one]) end) end},
      {"jobs/two_on_one", fn -> Measure.once(fn -> together([one, one]) end) end},
      {"jobs/two_on_two", fn -> Measure.once(fn -> together([pool.(0), pool.(1)]) end) end},
      {"jobs/short_alone", fn -> Measure.p50(fn -> Subjects.eval(pool.(1)) end, requests) end},
      {"jobs/short_beside", fn -> beside(pool, requests) end}
    ]

    Measure.rounds(subjects, rounds, out)
    Subjects.stop(one)
    stop.()
  end

  defp beside(pool, requests) do
    job =
      Task.async(fn ->
        compute(pool.(0), "import time\nend = time.monotonic() + 0.4\nwhile time.monotonic() < end: pass")
      end)

    # It is begun by then.
    Process.sleep(50)
    spent = Measure.p50(fn -> Subjects.eval(pool.(1)) end, requests)
    Task.await(job, :infinity)
    spent
  end

  defp together(servers) do
    servers |> Enum.map(&Task.async(fn -> compute(&1, @job) end)) |> Task.await_many(:infinity)
  end

  defp compute(server, code), do: {:ok, _} = PyPort.eval(code, %{}, server: server, timeout: 120_000)

  # A pool chooses by itself; which one was asked for is for those that have none.
  defp pool(size) do
    if Code.ensure_loaded?(PyPort.Pool) do
      {:ok, pool} = apply(PyPort.Pool, :start_link, [[size: size]])
      for _ <- 1..size, do: Subjects.eval(pool)
      {fn _which -> pool end, fn -> Supervisor.stop(pool) end}
    else
      servers = for _ <- 1..size, do: Subjects.server()
      {&Enum.at(servers, &1), fn -> Enum.each(servers, fn pid -> Subjects.stop(pid) end) end}
    end
  end
end
