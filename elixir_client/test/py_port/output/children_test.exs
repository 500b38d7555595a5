defmodule PyPort.Output.ChildrenTest do
  # Text on fds 1 and 2, which children and C code write: to the device of the one request that runs, else to Logger.
  use ExUnit.Case, async: false

  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.Test.LogTo

  @moduletag :capture_log

  defp device do
    {:ok, device} = StringIO.open("")
    device
  end

  defp text(device), do: device |> StringIO.contents() |> elem(1)

  test "the text is at the device when the answer is there" do
    server = start_server()

    for {code, text} <- [
          {"import subprocess; subprocess.run(['echo', 'from a child'])", "from a child\n"},
          {"import subprocess; subprocess.run('echo err >&2; echo; echo out', shell=True)", "err\n\nout\n"},
          {"import os; os.system('printf \"no end of line\"')", "no end of line"},
          {"import os; os.write(1, b'by number\\n')", "by number\n"},
          {"import ctypes; libc = ctypes.CDLL(None); libc.dprintf(1, b'from C\\n')", "from C\n"},
          {"import os, sys\nif (pid := os.fork()) == 0: os.write(1, b'forked\\n'); os._exit(0)\nos.waitpid(pid, 0)",
           "forked\n"},
          {"import asyncio\nprocess = await asyncio.create_subprocess_shell('echo awaited')\nawait process.wait()",
           "awaited\n"},
          {"import os; os.write(1, b'before'); 1 / 0", "before"}
        ] do
      # The second time the code is known to Python.
      for _ <- 1..2 do
        device = device()
        _ = PyPort.eval(code, %{}, server: server, stderr: device)
        assert text(device) == text
      end
    end
  end

  test "the text of a stream and of a request in a thread, too" do
    for options <- [[], [threads: 2]] do
      server = start_server(options)
      device = device()
      code = "import os\nfor n in range(2):\n    os.system(f'echo {n}')\n    yield n"
      stream = PyPort.stream(code, %{}, server: server, stderr: device)
      assert Enum.to_list(stream) == [0, 1]
      assert eventually(fn -> text(device) == "0\n1\n" end)
    end
  end

  test "while a request runs, its text is at the device with each heartbeat" do
    server = start_server(heartbeat_interval: 20)
    {device, gate} = {device(), new_gate()}
    code = "import os; os.system('echo early')\n" <> wait_for(gate)
    task = Task.async(fn -> PyPort.eval(code, %{}, server: server, stderr: device) end)
    assert eventually(fn -> text(device) == "early\n" end)
    open_gate(gate)
    assert {:ok, nil} = Task.await(task)
    assert text(device) == "early\n"
  end

  test "with several requests under way it goes to Logger, which names them" do
    LogTo.attach(self())
    server = start_server(threads: 2)
    gate = new_gate()
    first = begin_eval(server, wait_for(gate))
    device = device()
    assert {:ok, 0} = PyPort.eval("import os; os.system('echo whose')", %{}, server: server, stderr: device)
    assert LogTo.logged?(~r/stderr \(of one of the requests \d+, \d+\): whose/)
    assert text(device) == ""
    open_gate(gate)
    Task.await(first)
  end

  test "a device that does not keep up leaves the rest to Logger, and holds up no answer" do
    LogTo.attach(self())
    server = start_server(heartbeat_interval: 10)
    device = spawn(fn -> Process.sleep(:infinity) end)
    code = "import os, time\nfor n in range(100):\n    os.write(1, b'line\\n'); time.sleep(0.02)"
    task = Task.async(fn -> PyPort.eval(code, %{}, server: server, stderr: device) end)
    assert LogTo.logged?("stderr (request ")
    Process.exit(device, :kill)
    assert {:ok, nil} = Task.await(task)
  end

  test "a child that is flooding does not fill anything" do
    server = start_server(max_stderr_bytes: 100_000, heartbeat_interval: 20)
    code = "import subprocess; subprocess.run('yes | head -c 3000000', shell=True).returncode"
    assert {:ok, 0} = PyPort.eval(code, %{}, server: server, stderr: device())
    assert {:ok, 1} = PyPort.eval("1", %{}, server: server)
  end
end
