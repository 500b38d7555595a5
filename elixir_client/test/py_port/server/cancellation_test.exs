defmodule PyPort.Server.CancellationTest do
  # What becomes of requests that are to end before their answer, with a Python that behaves as each case needs it: it
  # holds on, lies low, or says too late what it has to say. Real processes, real signals.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import ExUnit.CaptureLog
  import PyPort.Test.{FakePython, Processes, Servers}
  import PyPort.Test.Requests, only: [new_gate: 0, open_gate: 1, timed_eval: 3, wait_for: 1]

  alias PyPort.{Error, Server}

  @moduletag :tmp_dir
  @moduletag capture_log: true

  @cancelled ~S"""
  def cancelled(begun=True, **more):
      fields = {"kind": A("cancelled"), "message": "cancelled", "begun": begun} | more
      send(A("error"), id, {A(name): value for name, value in fields.items()})
  """

  defp eval(server, code, options \\ []), do: timed_eval(server, @cancelled <> code, options)
  defp spawn_eval(server, code, options \\ []), do: Task.async(fn -> eval(server, code, options) end)

  # Beside the test, and at it when this returns: what is on the page then has been written.
  defp begin_eval(server, dir, page, code, options) do
    mark = Path.join(dir, "mark")
    task = spawn_eval(server, page <> mark(mark) <> code, options)
    exists!(mark)
    task
  end

  defp mark(path), do: "\nopen(#{inspect(path)}, 'w').close()\n"
  defp exists!(path), do: assert(eventually(fn -> File.exists?(path) end))

  test "a request that ends when it is told to is a timeout that says where it was", %{tmp_dir: dir} do
    server = start_fake(dir)

    code = """
    while recv()[0] != "cancel": pass
    cancelled(traceback="Traceback: in the loop", frames=[{A("file"): "a.py", A("line"): 3, A("function"): "f"}])
    """

    assert {{:error, %Error{kind: :timeout, begun: true} = error}, ms} = eval(server, code, timeout: 200)
    assert error.stack == "Traceback: in the loop"
    assert [%{file: "a.py", line: 3}] = error.frames
    assert Exception.message(error) =~ "no answer within 200 ms"
    assert Exception.message(error) =~ "in the loop"
    assert ms in 200..1_000
    assert nothing_left?(server)
    assert {{:ok, 1}, _} = eval(server, "send(A('ok'), id, 1)")
  end

  test "a real answer that comes while it is being cancelled is the answer", %{tmp_dir: dir} do
    server = start_fake(dir)

    for {reply, outcome} <- [
          {"send(A('ok'), id, 42)", {:ok, 42}},
          {"send(A('error'), id, {A('kind'): A('python'), A('message'): 'own'})",
           {:error, %Error{kind: :python, message: "own"}}}
        ] do
      code = "while recv()[0] != 'cancel': pass\ntime.sleep(0.3)\n" <> reply
      assert {^outcome, ms} = eval(server, code, timeout: 100)
      assert ms in 400..2_000
    end

    assert nothing_left?(server)
  end

  # It may begin yet: that it has not is for Python to say, which is silent here.
  @tag :slow
  test "a request that waits behind another has its timeout at once, and no process is signalled", %{
    tmp_dir: dir
  } do
    server = start_fake(dir, cancel_grace: 2_000, kill_grace: 500)
    os_pid = Server.os_pid(server)
    blocker = "time.sleep(5)\npage()\nsend(A('ok'), id, 'whole')"
    task = begin_eval(server, dir, "page(id)", blocker, timeout: :infinity)

    # It goes on longer than all graces together, with one that waits behind it all the time.
    for _ <- 1..3 do
      assert {{:error, %Error{kind: :timeout, begun: nil, stack: nil} = error}, ms} =
               eval(server, "cancelled(False)", timeout: 100)

      assert error.message =~ "busy with this request, or with others"
      assert ms in 100..1_800
    end

    assert {{:ok, "whole"}, _ms} = Task.await(task)
    assert Server.os_pid(server) == os_pid
    assert nothing_left?(server)
  end

  test "one that goes on is asked where it is, and its Python killed, all within both graces", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 300, kill_grace: 1_000)
    os_pid = Server.os_pid(server)

    code = """
    def stubborn():
        while True: pass
    stubborn()
    """

    task = begin_eval(server, dir, "page(id)", code, timeout: 200)
    waiting = spawn_eval(server, "", timeout: 60_000)

    assert {{:error, %Error{kind: :timeout, begun: true} = error}, ms} = Task.await(task)
    assert error.stack =~ "in stubborn"
    assert ms in 1_000..2_000
    assert gone?(os_pid)

    # Another one's misfortune; it may be asked again.
    assert {{:error, %Error{kind: :killed, signal: "SIGKILL", begun: false} = other}, _} = Task.await(waiting)
    assert other.message =~ "cancel_grace"
    assert other.stack =~ "in stubborn"
  end

  test "one that ends after it was asked where it is, keeps its Python", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 2_000)
    os_pid = Server.os_pid(server)
    code = "page(id)\nwhile recv()[0] != 'cancel': pass\ntime.sleep(0.7)\npage()\ncancelled(traceback='late')"

    assert {{:error, %Error{kind: :timeout, begun: true, stack: "late"}}, ms} =
             eval(server, code, timeout: 100)

    assert ms in 800..2_200
    assert {{:ok, 1}, _} = eval(server, "send(A('ok'), id, 1)")
    assert Server.os_pid(server) == os_pid
  end

  test "what blocks elsewhere than in main is ended, too", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 1_000, heartbeat_interval: 100)
    os_pid = Server.os_pid(server)

    # Beats go on: the interpreter is free.
    code = """
    page(off_main=1)
    def blocked():
        heartbeats = 0
        while True:
            heartbeats += 1
            page(off_main=1, heartbeats=heartbeats)
            time.sleep(0.05)
    blocked()
    """

    assert {{:error, %Error{kind: :timeout, begun: nil} = error}, ms} = eval(server, code, timeout: 100)
    assert error.stack =~ "in blocked"
    assert ms in 1_000..1_900
    assert gone?(os_pid)
  end

  test "a request elsewhere is no reason to kill while another one holds the interpreter", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 500, kill_grace: 200, heartbeat_interval: 100)
    os_pid = Server.os_pid(server)
    gate = new_gate()
    holds = wait_for(gate) <> "page()\nsend(A('ok'), id, 'whole')"
    task = begin_eval(server, dir, "page(id, off_main=1)", holds, timeout: :infinity)
    assert eventually(fn -> match?([%{state: :stuck}], PyPort.status(server)) end)

    assert {{:error, %Error{kind: :timeout, begun: nil, stack: nil}}, ms} =
             eval(server, "cancelled(False)", timeout: 100)

    assert ms in 600..1_200
    open_gate(gate)
    assert {{:ok, "whole"}, _} = Task.await(task)
    assert Server.os_pid(server) == os_pid
    assert nothing_left?(server)
  end

  test "a Python that takes no requests any more, and runs none, is killed for one that waits", %{
    tmp_dir: dir
  } do
    server = start_fake(dir, cancel_grace: 300, kill_grace: 200, heartbeat_interval: 100)
    os_pid = Server.os_pid(server)
    assert {{:ok, nil}, _} = eval(server, "page()\nsend(A('ok'), id, None)")
    signal(os_pid, "STOP")

    assert {{:error, %Error{kind: :timeout}}, ms} = eval(server, "", timeout: 100)
    assert ms in 350..1_000
    assert gone?(os_pid)
  end

  test "what a request leaves behind that was answered is ended for one that waits, if it does not end", %{
    tmp_dir: dir
  } do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 1_500)
    os_pid = Server.os_pid(server)
    code = "page(id)\nsend(A('ok'), id, 'mine')\nwhile True: pass"
    assert {{:ok, "mine"}, _} = eval(server, code)
    assert {{:error, %Error{kind: :timeout, begun: false}}, ms} = eval(server, "", timeout: 100)
    assert ms in 300..2_500
    assert gone?(os_pid)
  end

  test "one left-over after another is no reason to kill", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 200)
    os_pid = Server.os_pid(server)

    # Each look finds another request that has been answered, and main at it.
    code = """
    send(A("ok"), id, "mine")
    for n in range(100, 140):
        page(n.to_bytes(8, "big"))
        time.sleep(0.05)
    page()
    """

    assert {{:ok, "mine"}, _} = eval(server, code)
    # Smaller than those, larger than the one that was answered.
    assert {{:error, %Error{kind: :timeout}}, _} = eval(server, "cancelled(False)", timeout: 100)
    assert nothing_left?(server)
    assert Server.os_pid(server) == os_pid
  end

  test "without a page the oldest request is the one that runs", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 200)
    os_pid = Server.os_pid(server)
    gate = new_gate()
    task = begin_eval(server, dir, "", wait_for(gate) <> "send(A('ok'), id, 1)", timeout: :infinity)
    assert {{:error, %Error{kind: :timeout, begun: nil}}, _} = eval(server, "cancelled(False)", timeout: 50)
    open_gate(gate)
    assert {{:ok, 1}, _} = Task.await(task)
    assert Server.os_pid(server) == os_pid

    assert {{:error, %Error{kind: :timeout}}, ms} = eval(server, "while True: pass", timeout: 100)
    assert ms in 400..1_000
    assert gone?(os_pid)
  end

  test "a caller that dies cancels its request, and a request that goes on is ended for it", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 200, heartbeat_interval: 50)
    os_pid = Server.os_pid(server)
    mark = Path.join(dir, "mark")
    begin = "page(id)" <> mark(mark)

    code = begin <> "while recv()[0] != 'cancel': pass\npage()\ncancelled()"
    caller = spawn(fn -> eval(server, code, timeout: :infinity) end)
    exists!(mark)
    Process.exit(caller, :kill)
    assert nothing_left?(server)
    assert Server.os_pid(server) == os_pid

    File.rm!(mark)

    caller = spawn(fn -> eval(server, begin <> "while True: pass", timeout: :infinity) end)
    exists!(mark)
    Process.exit(caller, :kill)
    assert gone?(os_pid)
  end

  test "a stream that is too slow for its consumer says where it was", %{tmp_dir: dir} do
    server = start_fake(dir)

    code =
      @cancelled <>
        "page(id)\nsend(A('yield'), id, 1)\nwhile recv()[0] != 'cancel': pass\npage()\ncancelled(traceback='here')"

    stream = PyPort.stream(code, %{}, server: server, timeout: 200)

    error =
      assert_raise Error, ~r/no item within 200 ms/, fn ->
        Enum.each(stream, fn 1 -> :ok end)
      end

    assert %Error{kind: :timeout, begun: true, stack: "here"} = error
    assert nothing_left?(server)
  end

  test "a generator that does not end when its consumer halts is ended", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 200)
    os_pid = Server.os_pid(server)
    code = "page(id)\nsend(A('yield'), id, 1)\nwhile True: pass"
    assert [1] = PyPort.stream(code, %{}, server: server) |> Enum.take(1)
    assert gone?(os_pid)
  end

  describe "after_cancel: :restart" do
    test "a Python in which a request was interrupted finishes what it has, and is started anew", %{
      tmp_dir: dir
    } do
      server = start_fake(dir, after_cancel: :restart, cancel_grace: 20_000)
      owner = Process.whereis(server)
      monitor = Process.monitor(owner)

      # It is not told to end before it has read what is behind, and answers that when it has been told.
      code = """
      page(id)
      # In whatever order they come.
      read = {message[0]: message for message in (recv(), recv())}
      behind = read["eval"]
      assert "cancel" in read
      page()
      cancelled()
      assert recv()[0] == "shutdown"
      send(A("ok"), behind[1], "done")
      send(A("goodbye"), A("shutdown"))
      os._exit(0)
      """

      task = begin_eval(server, dir, "", code, timeout: 100)
      behind = spawn_eval(server, "")
      assert {{:error, %Error{kind: :timeout, begun: true}}, _} = Task.await(task)
      assert {{:ok, "done"}, _} = Task.await(behind)
      assert_receive {:DOWN, ^monitor, :process, ^owner, {:shutdown, _}}, 2_000
    end

    test "one that had not begun is no reason", %{tmp_dir: dir} do
      server = start_fake(dir, after_cancel: :restart)
      owner = Process.whereis(server)

      assert {{:error, %Error{kind: :timeout}}, _} =
               eval(server, "while recv()[0] != 'cancel': pass\ncancelled(False)", timeout: 50)

      assert {{:ok, 1}, _} = eval(server, "send(A('ok'), id, 1)")
      assert Process.whereis(server) == owner
    end
  end

  test "objects in an answer that comes too late are released", %{tmp_dir: dir} do
    server = start_fake(dir)
    freed = Path.join(dir, "freed")
    gate = new_gate()

    code = wait_for(gate) <> "page()\nsend(A('ok'), id, 1)"
    task = begin_eval(server, dir, "page(id)", code, timeout: :infinity)

    # It is begun all the same, as one may be whose `cancel` is still to be read.
    late = """
    send(A("ok"), id, None, [7])
    while True:
        message = recv()
        if message[0] == "release":
            open(#{inspect(freed)}, "w").write(repr(message[1]))
            break
    """

    assert {{:error, %Error{kind: :timeout, begun: nil}}, _} = eval(server, late, timeout: 50)
    open_gate(gate)
    assert {{:ok, 1}, _} = Task.await(task)
    exists!(freed)
    assert nothing_left?(server)
  end

  test "64 callers whose time is up together all have their answers at once", %{tmp_dir: dir} do
    server = start_fake(dir)
    gate = new_gate()
    code = wait_for(gate) <> "page()\nsend(A('ok'), id, 1)"
    blocker = begin_eval(server, dir, "page(id)", code, timeout: :infinity)

    tasks = for _ <- 1..64, do: spawn_eval(server, "cancelled(False)", timeout: 300)

    for {{:error, error}, ms} <- Task.await_many(tasks) do
      assert %Error{kind: :timeout, begun: nil} = error
      assert ms < 2_500
    end

    open_gate(gate)
    assert {{:ok, 1}, _} = Task.await(blocker)
    assert nothing_left?(server)
  end

  test "an owner that is held up costs a caller its graces, and no more", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 200, kill_grace: 200)
    owner = Process.whereis(server)
    # Held up before the request is made.
    :sys.suspend(owner)
    code = "while recv()[0] != 'cancel': pass\ncancelled()"
    assert {{:error, %Error{kind: :timeout, begun: nil}}, ms} = eval(server, code, timeout: 300)
    assert ms in 650..1_200
    :sys.resume(owner)
    assert nothing_left?(server)
  end

  test "each step is told to Logger", %{tmp_dir: dir} do
    log =
      capture_log(fn ->
        server = start_fake(dir, cancel_grace: 100, kill_grace: 100)
        os_pid = Server.os_pid(server)
        eval(server, "page(id)\nwhile True: pass", timeout: 100)
        assert gone?(os_pid)
        assert eventually(fn -> Process.whereis(server) == nil end)
      end)

    assert log =~ ~r/request 2 goes on \d+ ms after it was cancelled \(its timeout has passed\)/
    assert log =~ "the Python process was killed"
  end
end
