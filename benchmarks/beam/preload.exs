# The figures of `preload:` in docs/performance.md; needs numpy and pandas. `make bench` ends with it; alone, in elixir_client/:
#
#     MIX_ENV=prod sh ../scripts/with-env.sh mix run ../benchmarks/beam/preload.exs

Logger.configure(level: :error)

wait = fn wait, pool, n, not_pid ->
  pids = for s <- PyPort.Pool.servers(pool), do: PyPort.Server.os_pid(s)

  if length(pids) == n and nil not in pids and not_pid not in pids,
    do: :ok,
    else:
      (
        Process.sleep(1)
        wait.(wait, pool, n, not_pid)
      )
end

back = fn options ->
  {:ok, pool} = PyPort.Pool.start_link([size: 1] ++ options)
  wait.(wait, pool, 1, nil)

  ms =
    for _ <- 1..2 do
      {:ok, pid} = PyPort.eval("import os; os.getpid()", %{}, server: pool, timeout: 60_000)
      t = System.monotonic_time(:microsecond)
      System.cmd("sh", ["-c", "kill -KILL #{pid}"])

      ask = fn ask ->
        case PyPort.eval("'pandas' in __import__('sys').modules", %{}, server: pool, timeout: 30_000) do
          {:ok, v} -> v
          _ -> ask.(ask)
        end
      end

      ask.(ask)
      (System.monotonic_time(:microsecond) - t) / 1000
    end

  Supervisor.stop(pool)
  Enum.min(ms)
end

for {name, options} <- [
      {"a bare fork", [preload: "1"]},
      {"a fork with pandas", [preload: "import pandas"]},
      {"init_code with pandas", [init_code: "import pandas"]},
      {"a plain start", []}
    ],
    do: IO.puts("from a kill to the next answer, #{name}: #{back.(options)} ms")

mem = fn options ->
  {:ok, pool} = PyPort.Pool.start_link([size: 8, init_timeout: 120_000] ++ options)
  t = System.monotonic_time(:millisecond)
  wait.(wait, pool, 8, nil)
  ms = System.monotonic_time(:millisecond) - t

  pss =
    for s <- PyPort.Pool.servers(pool) do
      {:ok, _} = PyPort.eval("float(array.sum())", %{}, server: s, timeout: 60_000)
      [_, kb] = Regex.run(~r/Pss: +(\d+)/, File.read!("/proc/#{PyPort.Server.os_pid(s)}/smaps_rollup"))
      String.to_integer(kb) / 1024
    end

  Supervisor.stop(pool)
  IO.puts("8 members: ready after #{ms} ms, PSS sum #{round(Enum.sum(pss))} MiB")
end

mem.(preload: "import numpy; array = numpy.ones(500 * 131072)")
