defmodule PyPort.Server.Cancellation.CallerDownTest do
  # A request ends with its caller, at once: no heartbeat of the server's is waited for.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Servers}

  @moduletag :tmp_dir

  @code """
  import time
  open(path + ".begun", "w").close()
  try:
      while True: time.sleep(0.001)
  finally:
      open(path, "w").close()
  """

  for {name, options} <- [{"in the main thread", []}, {"in a thread", [threads: 2]}] do
    test name, %{tmp_dir: dir} do
      server = start_server([heartbeat_interval: 60_000] ++ unquote(options))
      path = Path.join(dir, "ended")

      caller = spawn(fn -> PyPort.eval(@code, %{path: path}, server: server, timeout: :infinity) end)

      assert eventually(fn -> File.exists?(path <> ".begun") end)
      Process.exit(caller, :kill)
      assert eventually(fn -> File.exists?(path) end, 200)
      assert nothing_left?(server)
      assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    end
  end
end
