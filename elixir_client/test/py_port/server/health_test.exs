defmodule PyPort.Server.HealthTest do
  # How a real Python is, seen from outside: computing in C, stopped, silent; and what is made of it.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import ExUnit.CaptureLog
  import PyPort.Test.{FakePython, Processes, Requests, Servers}

  alias PyPort.{Error, Server, Status}

  @moduletag capture_log: true

  # Holds the interpreter for as long as it runs.
  @hold "sum(range(10**12))"

  defp state(server) do
    [%Status{state: state}] = PyPort.status(server)
    state
  end

  @tag :slow
  test "code that holds the interpreter shows, with where it is, and is ended when its time is up" do
    server = start_server(heartbeat_interval: 100, kill_grace: 2_000)
    assert state(server) in [:idle, :busy]

    log =
      capture_log(fn ->
        task = spawn_eval(server, "def heavy():\n    return #{@hold}\nheavy()", timeout: 3_000)
        assert eventually(fn -> state(server) == :gil_held end)
        # Stacks that cannot be taken without a risk for the process are not taken.
        assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.stacks(server)
        assert message =~ "holds the interpreter"
        # It goes on all the while.
        assert Task.yield(task, 0) == nil
        assert {{:error, %Error{kind: :timeout, begun: true} = error}, _ms} = Task.await(task, 10_000)
        assert error.stack =~ "in heavy"
        assert eventually(fn -> Process.whereis(server) == nil end)
      end)

    assert log =~ "something holds the interpreter and computes"
    assert log =~ "the Python process was killed"
  end

  @tag :tmp_dir
  test "code that is merely busy is busy", %{tmp_dir: dir} do
    server = start_server(heartbeat_interval: 100)
    enough = Path.expand("enough", dir)
    code = "import os\nwhile not os.path.exists(#{inspect(enough)}): pass"
    task = spawn_eval(server, code, timeout: :infinity)
    assert eventually(fn -> state(server) == :busy end)
    states = for _ <- 1..10, do: Process.sleep(100) && state(server)
    assert Enum.uniq(states) == [:busy]
    File.touch!(enough)
    assert {{:ok, nil}, _ms} = Task.await(task)
    assert eventually(fn -> state(server) == :idle end)
  end

  test "a stopped process shows, has no stacks to give, and goes on when it is let" do
    server = start_server(heartbeat_interval: 100)
    os_pid = Server.os_pid(server)
    signal(os_pid, "STOP")
    assert eventually(fn -> state(server) == :stopped end)
    assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.stacks(server)
    assert message =~ "stopped"
    # It waits for the one who stopped it.
    Process.sleep(500)
    signal(os_pid, "CONT")
    assert eventually(fn -> state(server) == :idle end)
    assert {:ok, 2} = PyPort.eval("1 + 1", %{}, server: server)
    assert Server.os_pid(server) == os_pid
  end

  @tag :tmp_dir
  test "one that was stopped for longer than lost_after has the time for a heartbeat when it goes on", %{
    tmp_dir: dir
  } do
    # This one sends no heartbeat.
    server = start_fake(dir, heartbeat_interval: 500, lost_after: 1_300)
    os_pid = Server.os_pid(server)
    signal(os_pid, "STOP")
    assert eventually(fn -> state(server) == :stopped end)
    Process.sleep(500)
    signal(os_pid, "CONT")
    assert eventually(fn -> state(server) == :lost end)
    Process.sleep(200)
    assert Server.os_pid(server) == os_pid
    assert gone?(os_pid)
  end

  test "code that holds the interpreter is not ended for another request, which could not be told to end" do
    server = start_server(cancel_grace: 300, kill_grace: 300)
    os_pid = Server.os_pid(server)
    # What is under way elsewhere has no name on the status page: the other request might be that.
    gate = new_gate()

    sleeps =
      "import asyncio, os\nwhile not os.path.exists(#{inspect(gate)}): await asyncio.sleep(0.01)\n'slept'"

    asleep = begin_eval(server, sleeps, timeout: :infinity)
    held = begin_eval(server, "sum(range(10**8)) and 'whole'", timeout: :infinity)
    assert {:error, %Error{kind: :timeout}} = PyPort.eval("1", %{}, server: server, timeout: 100)
    assert {{:ok, "whole"}, _ms} = Task.await(held, 60_000)
    open_gate(gate)
    assert {{:ok, "slept"}, _ms} = Task.await(asleep, 60_000)
    assert Server.os_pid(server) == os_pid
  end

  test "with a gil_held_limit code that holds the interpreter is ended, and the report says where it was" do
    server = start_server(heartbeat_interval: 100, gil_held_limit: 500)
    os_pid = Server.os_pid(server)

    assert {:error, %Error{kind: :killed, begun: true} = error} =
             PyPort.eval("def heavy(): #{@hold}\nheavy()", %{}, server: server, timeout: 20_000)

    assert error.message =~ "gil_held_limit"
    assert error.stack =~ "in heavy"
    assert gone?(os_pid)
  end

  test "a Python that falls silent with nothing to do is ended after lost_after" do
    # A thread that holds the interpreter and sleeps: nothing is heard, nothing is computed, nothing is open.
    server = start_server(heartbeat_interval: 100, lost_after: 1_500, init_code: "import ctypes, threading")
    os_pid = Server.os_pid(server)
    hold = "threading.Timer(0.2, lambda: ctypes.PyDLL(None).sleep(60)).start()"
    assert {:ok, nil} = PyPort.eval(hold, %{}, server: server)

    log =
      capture_log(fn ->
        assert eventually(fn -> state(server) == :lost end)
        assert gone?(os_pid)
        assert eventually(fn -> Process.whereis(server) == nil end)
      end)

    assert log =~ "idle, but no heartbeat received"
    assert log =~ "lost_after"
  end

  test "the same with a request open is stuck, and ended for the request's sake" do
    server = start_server(heartbeat_interval: 100, cancel_grace: 500, kill_grace: 1_500)
    os_pid = Server.os_pid(server)

    # A lock that is its own owner's: no signal wakes it up, other than a sleep.
    code = """
    import ctypes
    def deadlock():
        mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
        lock(mutex)
        lock(mutex)
    deadlock()
    """

    task = spawn_eval(server, code, timeout: 1_000)
    assert eventually(fn -> state(server) == :stuck end)
    assert {{:error, %Error{kind: :timeout, begun: true} = error}, _ms} = Task.await(task)
    assert error.stack =~ "in deadlock"
    assert gone?(os_pid)
  end

  test "a server that is down says so, when asked for its stacks, too" do
    assert [%Status{state: :down, restarts: 0}] = PyPort.status(NoSuchServer)
    assert {:error, %Error{kind: :unavailable}} = PyPort.stacks(NoSuchServer)
    name = :"server_#{System.unique_integer([:positive])}"
    start_supervised!({Server, name: name, python: "/no/such/python"})
    assert {:error, %Error{kind: :unavailable}} = PyPort.stacks(name)
    assert [%Status{state: :down}] = PyPort.status(name)
  end

  test "restarts are counted by name" do
    name = :"server_#{System.unique_integer([:positive])}"
    start_supervised!({Server, name: name})
    assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
    assert [%Status{restarts: 0}] = PyPort.status(name)
    PyPort.eval("import os; os._exit(1)", %{}, server: name)
    assert eventually(fn -> match?({:ok, 1}, PyPort.eval("1", %{}, server: name)) end)
    assert [%Status{restarts: 1}] = PyPort.status(name)
  end

  test "stacks of a healthy server take a moment, and change nothing" do
    server = start_server()
    os_pid = Server.os_pid(server)
    tasks = for _ <- 1..5, do: Task.async(fn -> PyPort.stacks(server) end)
    for {:ok, stacks} <- Task.await_many(tasks), do: assert(stacks =~ "most recent call first")
    assert {:ok, 2} = PyPort.eval("1 + 1", %{}, server: server)
    assert Server.os_pid(server) == os_pid
  end

  test "beyond a memory_limit there is a MemoryError, and the server goes on" do
    server = start_server(memory_limit: 2_147_483_648)
    os_pid = Server.os_pid(server)

    assert {:error, %Error{kind: :python, type: "MemoryError"}} =
             PyPort.eval("len(bytearray(4 << 30))", %{}, server: server)

    assert {:ok, 1_048_576} = PyPort.eval("len(bytearray(1 << 20))", %{}, server: server)
    assert Server.os_pid(server) == os_pid
  end

  test "stacks of code that is busy show where it is, and harm no request" do
    server = start_server()
    os_pid = Server.os_pid(server)

    churn = """
    import threading
    def nothing(): pass
    def churn():
        while True:
            thread = threading.Thread(target=nothing)
            thread.start()
            thread.join()
    churn()
    """

    task = begin_eval(server, churn, timeout: 20_000)
    for _ <- 1..500, do: assert({:ok, _stacks} = PyPort.stacks(server))
    {:ok, stacks} = PyPort.stacks(server)
    assert stacks =~ "in churn"
    assert Task.shutdown(task, :brutal_kill) == nil
    assert {:ok, 2} = PyPort.eval("1 + 1", %{}, server: server)
    assert Server.os_pid(server) == os_pid
  end

  @tag :tmp_dir
  test "a process that does not listen to the signal is not ended by it", %{tmp_dir: dir} do
    server = PyPort.Test.FakePython.start_fake(dir)
    code = "import faulthandler, signal\nfaulthandler.unregister(signal.SIGUSR2)\nsend(A('ok'), id, None)"
    assert {:ok, nil} = PyPort.eval(code, %{}, server: server)
    {:ok, connection} = PyPort.Registry.fetch(Process.whereis(server))

    assert {:error, %Error{kind: :unavailable, message: message}} =
             PyPort.Server.Stacks.take_before_kill(connection, 10)

    assert message =~ "SIGUSR2"
    assert {:ok, 1} = PyPort.eval("1", %{}, server: server)
  end
end
