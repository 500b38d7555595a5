defmodule PyPort.Server.ShutdownTest do
  # What the callers of a Python that has ended are told: how it ended, where it was, and whether their request had begun.
  use ExUnit.Case, async: true

  import PyPort.Test.{FakePython, Processes, Requests, Servers}

  alias PyPort.{Error, Server}

  @moduletag :tmp_dir
  @moduletag capture_log: true

  test "of those that wait together, each is told whether its own request had begun", %{tmp_dir: dir} do
    server = start_fake(dir)
    gate = new_gate()
    first = begin_eval(server, "page(id)\n" <> wait_for(gate) <> "os.kill(os.getpid(), 11)", timeout: 60_000)
    behind = for _ <- 1..3, do: spawn_eval(server, "", timeout: 60_000)
    assert open?(server, 4)
    open_gate(gate)

    assert {{:error, %Error{kind: :killed, signal: "SIGSEGV", begun: true}}, _} = Task.await(first)

    for {outcome, _ms} <- Task.await_many(behind),
        do: assert({:error, %Error{kind: :killed, begun: false}} = outcome)
  end

  test "with others that run off main it is unknown of those that are not on the page", %{tmp_dir: dir} do
    server = start_fake(dir)
    gate = new_gate()
    first = begin_eval(server, "page(id, off_main=1)\n" <> wait_for(gate) <> "os._exit(7)", timeout: 60_000)
    behind = spawn_eval(server, "", timeout: 60_000)
    assert open?(server, 2)
    open_gate(gate)
    assert {{:error, %Error{kind: :exited, exit_status: 7, begun: true}}, _} = Task.await(first)
    assert {{:error, %Error{kind: :exited, exit_status: 7, begun: nil}}, _} = Task.await(behind)
  end

  test "an answer that was given before the end is the answer, when the end is seen first" do
    server = start_server(heartbeat_interval: 60_000)
    owner = Process.whereis(server)
    os_pid = Server.os_pid(server)
    :erlang.suspend_process(owner)
    send(owner, :tick)
    task = spawn_eval(server, "1 + 1", timeout: 60_000)
    # Its reply stands in the owner's mailbox, behind the look that finds the process gone.
    assert eventually(fn -> reply_in_mailbox?(owner) end)
    signal(os_pid, "KILL")
    assert gone?(os_pid)
    :erlang.resume_process(owner)
    assert {{:ok, 2}, _} = Task.await(task)
    assert eventually(fn -> Process.whereis(server) == nil end)
  end

  test "a segfault is reported with the stack that Python wrote last" do
    server = start_server()
    code = "def crash():\n    import ctypes\n    ctypes.string_at(0)\ncrash()"
    assert {:error, %Error{kind: :killed, signal: "SIGSEGV"} = error} = PyPort.eval(code, %{}, server: server)
    assert error.stack =~ "in crash"
    assert Exception.message(error) =~ "in crash"
    assert Enum.any?(error.stderr, &(&1 =~ "Segmentation fault"))
  end

  # The port is writing when its reader ends.
  for {how, code, expected} <- [
        {"killed", "os.kill(os.getpid(), 9)", %{kind: :killed, signal: "SIGKILL"}},
        # Without the stacks, which fill all lines that are kept.
        {"crashed", "import ctypes, faulthandler; faulthandler.disable(); ctypes.string_at(0)",
         %{kind: :killed, signal: "SIGSEGV"}},
        {"left", "os._exit(3)", %{kind: :exited, exit_status: 3}}
      ] do
    test "while 50 MB are on their way to it, how it ended is known: #{how}" do
      server = start_server(heartbeat_interval: 50, shm_threshold: :infinity)
      assert {:ok, _} = PyPort.eval("import os; os.write(2, b'an old line\\n')", %{}, server: server)
      # Two looks: what was written before is no news of what follows.
      heartbeats = heartbeats(server)
      assert eventually(fn -> heartbeats(server) >= heartbeats + 2 end)
      gate = new_gate()
      code = wait_for(gate) <> "os.write(2, b'a new line\\n'); " <> unquote(code)
      first = begin_eval(server, code, timeout: 60_000)
      # Else the control thread reads them, however long the code takes.
      os_pid = Server.os_pid(server)
      signal(os_pid, "STOP")
      data = PyPort.bytes(:binary.copy(<<0>>, 25_000_000))
      behind = for _ <- 1..2, do: spawn_eval(server, "len(x)", globals: %{x: data}, timeout: 60_000)
      port = :sys.get_state(server).connection.port
      assert eventually(fn -> elem(Port.info(port, :queue_size), 1) > 45_000_000 end)
      open_gate(gate)
      signal(os_pid, "CONT")

      for {{:error, error}, _ms} <- Task.await_many([first | behind], 20_000) do
        assert unquote(Macro.escape(expected)) = Map.take(error, unquote(Map.keys(expected)))
        assert "a new line" in error.stderr
        refute "an old line" in error.stderr
        refute Exception.message(error) =~ "an old line"
      end
    end
  end

  defp heartbeats(server) do
    {:ok, page} = :sys.get_state(server).connection.dir |> PyPort.StatusPage.path() |> File.read()
    PyPort.StatusPage.parse(page).heartbeats
  end

  defp reply_in_mailbox?(owner) do
    {:messages, messages} = Process.info(owner, :messages)
    Enum.any?(messages, &match?({_port, {:data, <<131, 104, 3, 119, 2, "ok", _::binary>>}}, &1))
  end

  test "an exit in peace has no stack" do
    server = start_server()

    assert {:error, %Error{kind: :exited, stack: nil}} =
             PyPort.eval("import os; os._exit(0)", %{}, server: server)
  end

  test "a stream that was cut off says so, too", %{tmp_dir: dir} do
    server = start_fake(dir)

    stream =
      PyPort.stream("page(id)\nsend(A('yield'), id, 1)\ntime.sleep(0.2)\nos._exit(3)", %{}, server: server)

    assert %Error{kind: :exited, exit_status: 3, begun: true} = catch_error(Enum.to_list(stream))
  end

  test "a child that holds the pipe does not delay the news", %{tmp_dir: dir} do
    server = start_fake(dir, heartbeat_interval: 100)
    os_pid = Server.os_pid(server)

    # Its own session, so that no signal to the group reaches it; and it holds the pipe as it was inherited.
    code = """
    child = os.fork()
    if not child:
        os.setsid()
        time.sleep(5)
        os._exit(0)
    open(#{inspect(Path.join(dir, "child"))}, "w").write(str(child))
    os._exit(9)
    """

    {micros, outcome} = :timer.tc(fn -> PyPort.eval(code, %{}, server: server, timeout: 60_000) end)
    assert {:error, %Error{kind: :exited}} = outcome
    assert micros < 2_000_000
    assert gone?(os_pid)
    signal(File.read!(Path.join(dir, "child")), "KILL")
  end

  test "a child of the group that holds the pipe is ended, and the exit status comes", %{tmp_dir: dir} do
    server = start_fake(dir, heartbeat_interval: 100)

    code = """
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    open(#{inspect(Path.join(dir, "child"))}, "w").write(str(child))
    os._exit(9)
    """

    {micros, outcome} = :timer.tc(fn -> PyPort.eval(code, %{}, server: server, timeout: 60_000) end)
    assert {:error, %Error{kind: :exited, exit_status: 9}} = outcome
    assert micros < 1_500_000
    assert dir |> Path.join("child") |> File.read!() |> gone?()
  end

  test "a request made of a server that ends before it is ready was never sent" do
    server = start_server()
    pid = Process.whereis(server)
    GenServer.stop(pid)
    assert {:error, %Error{kind: :unavailable, begun: false}} = PyPort.eval("1", %{}, server: pid)
  end
end
