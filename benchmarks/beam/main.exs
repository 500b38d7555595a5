# One BEAM of a run: `mix run --no-start main.exs OUT PHASE SETTINGS`, where the settings are an Elixir map. bench.py starts
# it, pinned or not, and reads OUT.

for file <- ~w(measure echo subjects latency values life profile) do
  path = Path.join(__DIR__, file <> ".exs")
  if File.exists?(path), do: Code.require_file(path)
end

[out, phase, settings] = System.argv()

# Servers are started where they are measured, and no other stands by.
Application.put_env(:py_port, :server, false)
Application.put_env(:py_port, :pool, false)
Logger.configure(level: :error)
{:ok, _started} = Application.ensure_all_started(:py_port)

{settings, []} = Code.eval_string(settings)
out = File.open!(out, [:append, :utf8])
settings = Map.put(settings, :out, out)

# In a process of its own, with a heap that does not grow from the smallest at each measurement.
task =
  Task.async(fn ->
    case phase do
      "versions" ->
        IO.write(out, "otp\t#{System.otp_release()}\nelixir\t#{System.version()}\n")
        IO.write(out, "erts\t#{:erlang.system_info(:version)}\njit\t#{:erlang.system_info(:emu_flavor)}\n")

      "pinned" ->
        Bench.Latency.pinned(settings)

      "unpinned" ->
        Bench.Latency.unpinned(settings)

      "callers" ->
        Bench.Latency.callers(settings)

      "spinning" ->
        Bench.Latency.spinning(settings)

      "payloads" ->
        Bench.Values.payloads(settings)

      "binaries" ->
        Bench.Values.binaries(settings)

      "streams" ->
        Bench.Values.streams(settings)

      "start" ->
        Bench.Life.start(settings)

      "memory" ->
        Bench.Life.memory(settings)

      "jobs" ->
        Bench.Life.jobs(settings)

      "profile" ->
        apply(Bench.Profile, :run, [settings])
    end
  end)

Task.await(task, :infinity)
File.close(out)
