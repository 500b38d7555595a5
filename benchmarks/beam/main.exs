# One BEAM of a run: `mix run --no-start main.exs OUT PHASE SETTINGS`, where the settings are an Elixir map. bench.py starts
# it, pinned or not, and reads OUT.

for file <- ~w(measure echo subjects latency values arrays life),
    do: Code.require_file(Path.join(__DIR__, file <> ".exs"))

[out, phase, settings] = System.argv()

# Servers are started where they are measured, and no other stands by.
Application.put_env(:py_port, :pool, false)
Logger.configure(level: :error)
{:ok, _started} = Application.ensure_all_started(:py_port)

{settings, []} = Code.eval_string(settings)
out = File.open!(out, [:append, :utf8])
settings = Map.put(settings, :out, out)

versions = fn %{out: out} ->
  IO.write(out, "otp\t#{System.otp_release()}\nelixir\t#{System.version()}\n")
  IO.write(out, "erts\t#{:erlang.system_info(:version)}\njit\t#{:erlang.system_info(:emu_flavor)}\n")
end

phases = %{
  "versions" => versions,
  "pinned" => &Bench.Latency.pinned/1,
  "unpinned" => &Bench.Latency.unpinned/1,
  "callers" => &Bench.Latency.callers/1,
  "spinning" => &Bench.Latency.spinning/1,
  "payloads" => &Bench.Values.payloads/1,
  "binaries" => &Bench.Values.binaries/1,
  "streams" => &Bench.Values.streams/1,
  "arrays" => &Bench.Arrays.arrays/1,
  "start" => &Bench.Life.start/1,
  "memory" => &Bench.Life.memory/1,
  "jobs" => &Bench.Life.jobs/1
}

# In a process of its own, with a heap that does not grow from the smallest at each measurement.
task = Task.async(fn -> Map.fetch!(phases, phase).(settings) end)
Task.await(task, :infinity)
File.close(out)
