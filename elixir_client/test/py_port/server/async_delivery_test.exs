defmodule PyPort.Server.AsyncDeliveryTest do
  # The client's half of log records, messages and heartbeats, against a Python that is told what to send.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import PyPort.Test.{FakePython, Processes, Servers}

  require Logger

  alias PyPort.Status

  @moduletag :tmp_dir

  defp logged(server, code) do
    capture_log([format: "[$level] $message $metadata|", metadata: :all], fn ->
      {:ok, nil} = PyPort.eval(code <> "\nsend(A('ok'), id, None)", %{}, server: server)
      # Mail is handled in order: what was sent before this message has been.
      code = "send(A('send'), globals_[A('to')], A('ok')); send(A('ok'), id, None)"
      {:ok, nil} = PyPort.eval(code, %{to: self()}, server: server)
      assert_receive :ok
    end)
  end

  test "log records arrive with level, metadata, and the metadata of the caller", %{tmp_dir: dir} do
    server = start_fake(dir)
    Logger.metadata(user: 17)

    log =
      logged(server, """
      send(A("log"), A("warning"), "schön".encode(), {A("logger"): b"a.b", A("line"): 7, A("file"): b"x.py",
           A("function"): b"f", A("request"): id, "answer": 42})
      """)

    assert log =~ "schön"
    assert log =~ "[warn"
    for text <- ["logger=a.b", "line=7", "file=x.py", "user=17"], do: assert(log =~ text)
  end

  test "what cannot be read is said to be so, and the next record is logged", %{tmp_dir: dir} do
    server = start_fake(dir)
    name = "never_met_#{System.unique_integer([:positive])}"

    log =
      logged(server, """
      send(A("log"), A("info"), b"bad", {A("#{name}"): 1})
      send(A("log"), A("error"), b"good", {})
      send(A("log"), 1, 2, 3)
      send(A("send"), b"no pid", 1)
      """)

    assert log =~ "cannot be read"
    assert log =~ "good"
    assert log =~ "unknown shape"
    assert log =~ "no process of this node has the name no pid"
  end

  test "logger: false switches records off", %{tmp_dir: dir} do
    server = start_fake(dir, logger: false)
    log = logged(server, "send(A('log'), A('error'), b'not to be seen', {})")
    refute log =~ "not to be seen"
  end

  test "messages arrive in the order in which they were sent", %{tmp_dir: dir} do
    server = start_fake(dir)

    code = """
    for n in range(1000):
        send(A("send"), globals_[A("to")], (A("message"), n))
    send(A("ok"), id, None)
    """

    assert {:ok, nil} = PyPort.eval(code, %{to: self()}, server: server)

    for n <- 0..999 do
      assert_receive {:message, number}
      assert number == n
    end

    refute_received _anything
  end

  describe "log records and messages that are passed on slowly" do
    for {what, code} <- [
          {"records", "import logging\nfor n in range(200): logging.warning('x' * 100_000)"},
          {"messages", "import port_server\nfor n in range(200): port_server.send(to, (n, b'x' * 100_000))"}
        ] do
      test "#{what}: the code waits, and the mailbox holds a window of them" do
        server = start_server()
        delivery = :sys.get_state(server).delivery
        :erlang.suspend_process(delivery)

        task =
          Task.async(fn -> PyPort.eval(unquote(code), %{to: self()}, server: server, timeout: 30_000) end)

        assert eventually(fn -> queued(delivery) > 1_000_000 end)
        # While none is taken, no more come.
        for _ <- 1..10, do: Process.sleep(10) && assert(queued(delivery) < 1_500_000)
        assert Task.yield(task, 0) == nil
        :erlang.resume_process(delivery)
        assert Task.await(task, 30_000) == {:ok, nil}
        assert delivered?(server)
      end
    end

    test "a process for them that ends takes what it had with it, and the window is open again" do
      server = start_server()
      delivery = :sys.get_state(server).delivery
      :erlang.suspend_process(delivery)
      code = "import port_server\nfor n in range(100): port_server.send(to, (n, b'x' * 100_000))\n'all'"
      task = Task.async(fn -> PyPort.eval(code, %{to: self()}, server: server, timeout: 30_000) end)
      assert eventually(fn -> queued(delivery) > 1_000_000 end)
      capture_log(fn -> Process.exit(delivery, :kill) && assert(Task.await(task, 30_000) == {:ok, "all"}) end)
      assert PyPort.eval(code, %{to: self()}, server: server, timeout: 30_000) == {:ok, "all"}
    end
  end

  # Frames are binaries of their own: counted by their sizes.
  defp queued(pid) do
    {:messages, letters} = Process.info(pid, :messages)
    for letter <- letters, reduce: 0, do: (bytes -> bytes + byte_size(elem(letter, 1)))
  end

  @tag :slow
  test "status/1 tells what the last heartbeat said, and what is known without one", %{tmp_dir: dir} do
    server = start_fake(dir)
    owner = Process.whereis(server)
    assert [%Status{server: ^owner, state: :idle, beat_age_ms: nil, pending: 0}] = PyPort.status(server)

    code = """
    heartbeat = {A("sequence"): 1, A("monotonic_ms"): 5, A("state"): A("busy"), A("running"): id, A("running_ms"): 3,
            A("queue"): 2, A("rss_bytes"): 9_000_000, A("requests"): 4, A("objects"): 5, A("sessions"): 6,
            A("tasks"): 7, A("calls"): 8}
    send(A("heartbeat"), heartbeat)
    recv()
    send(A("ok"), id, None)
    """

    task = Task.async(fn -> PyPort.eval(code, %{}, server: server) end)
    assert eventually(fn -> match?([%Status{requests: 4}], PyPort.status(server)) end)
    [status] = PyPort.status(owner)
    os_pid = PyPort.Server.os_pid(server)

    assert %Status{server: ^owner, state: :busy, running_ms: 3, queue: 2, objects: 5, os_pid: ^os_pid} =
             status

    assert %Status{sessions: 6, tasks: 7, calls: 8, rss_bytes: 9_000_000, pending: 1} = status
    assert is_integer(status.running)
    assert status.beat_age_ms in 0..5_000
    {:ok, connection} = PyPort.Registry.fetch(owner)
    # The dialogue goes on with any frame but a ping.
    PyPort.Connection.command(connection, PyPort.Wire.credit(<<0::64>>, 1))
    assert Task.await(task) == {:ok, nil}
  end

  test "status/1 of a server that is not there is :down" do
    assert PyPort.status(NoSuchServer) == [%Status{server: NoSuchServer, state: :down}]
  end
end
