# A supervised Python that crashes, and comes back. In elixir_client/:
#
#     sh ../scripts/with-env.sh mix run examples/supervised.exs

import PyPort.Sigils

# Logger would print its lines between ours.
level = Logger.level()
Logger.configure(level: :none)

# init_code prepares a worker: it runs again in every Python that is started.
init_code = ~P"""
import os

greeting = "ready since the start of this process"
"""

{:ok, supervisor} =
  Supervisor.start_link([{PyPort.Server, name: Worker, init_code: init_code}],
    strategy: :one_for_one,
    max_restarts: 5
  )

pid = fn -> PyPort.eval("os.getpid()", %{}, server: Worker) end
{:ok, first} = pid.()
IO.puts("process #{first} is #{PyPort.eval!("greeting", %{}, server: Worker)}")

# A write to address 0: the operating system ends the process. In an embedded interpreter this would be the BEAM.
{:error, error} =
  PyPort.eval(
    ~P"""
    import ctypes

    def careless():
        ctypes.memset(0, 1, 1)

    careless()
    """,
    %{},
    server: Worker
  )

IO.puts("\nit died: kind #{inspect(error.kind)}, signal #{error.signal}, begun: #{error.begun}")
IO.puts(error.stack |> String.split("\n") |> Enum.find(&(&1 =~ "careless")) |> String.trim())

# The supervisor has started the next one. Until it is ready, requests fail with an error that says so, and may be asked again.
await = fn await, left ->
  case pid.() do
    {:ok, os_pid} ->
      os_pid

    {:error, %PyPort.Error{kind: :unavailable}} when left > 0 ->
      Process.sleep(20)
      await.(await, left - 1)
  end
end

second = await.(await, 500)
IO.puts("\nprocess #{second} is #{PyPort.eval!("greeting", %{}, server: Worker)}")
true = first != second

Supervisor.stop(supervisor)
Logger.configure(level: level)
