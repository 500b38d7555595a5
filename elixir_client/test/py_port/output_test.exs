defmodule PyPort.OutputTest do
  # The client's half of output: what is written, and when it is acknowledged, against a Python that is told what
  # to print.
  use ExUnit.Case, async: true

  import ExUnit.{CaptureIO, CaptureLog}
  import PyPort.Test.{FakePython, Processes, Servers}

  alias PyPort.Error

  @moduletag :tmp_dir

  # A device that takes what it is sent when it is told to.
  defp start_device(test) do
    spawn(fn -> device(test) end)
  end

  defp device(test) do
    receive do
      {:io_request, from, ref, {:put_chars, :unicode, text}} ->
        send(test, {:written, self(), text})

        receive do
          :take -> send(from, {:io_reply, ref, :ok})
        end
    end

    device(test)
  end

  test "a chunk is acknowledged when the device has taken it, not before", %{tmp_dir: dir} do
    server = start_fake(dir)
    device = start_device(self())
    looked = Path.join(dir, "looked")

    code = """
    import select
    send(A("output"), id, A("stdout"), "grün".encode())
    early = bool(select.select([7], [], [], 0.1)[0])
    open(#{inspect(looked)}, "w").close()
    send(A("output"), id, A("stderr"), b"two")
    acks = [recv()[2], recv()[2]]
    send(A("ok"), id, [early, acks])
    """

    task = Task.async(fn -> PyPort.eval(code, %{}, server: server, stdout: device, stderr: device) end)
    assert_receive {:written, ^device, "grün"}, 5_000
    assert eventually(fn -> File.exists?(looked) end)
    send(device, :take)
    assert_receive {:written, ^device, "two"}, 5_000
    send(device, :take)
    assert Task.await(task) == {:ok, [false, [5, 3]]}
    assert nothing_left?(server)
  end

  test "bytes that are no UTF-8 are shown, and cost nothing of what is printed around them", %{tmp_dir: dir} do
    server = start_fake(dir)
    {:ok, device} = StringIO.open("")

    code = ~S"""
    text = b"gr\xc3\xbcn \xff\xc3"
    send(A("output"), id, A("stdout"), text)
    send(A("ok"), id, [recv()[2], len(text)])
    """

    assert {:ok, [size, size]} = PyPort.eval(code, %{}, server: server, stdout: device)
    assert StringIO.contents(device) == {"", "grün \\xff\\xc3"}
  end

  test ":stdio is the caller's group leader", %{tmp_dir: dir} do
    server = start_fake(dir)
    code = "send(A('output'), id, A('stdout'), b'here'); recv(); send(A('ok'), id, 1)"

    for name <- [:stdio, :standard_io] do
      printed = capture_io(fn -> assert {:ok, 1} = PyPort.eval(code, %{}, server: server, stdout: name) end)
      assert printed == "here"
    end
  end

  test "a device that dies, refuses, or has never been there takes everything", %{tmp_dir: dir} do
    server = start_fake(dir)
    dying = spawn(fn -> receive(do: ({:io_request, _, _, _} -> :ok)) end)

    refusing =
      spawn(fn ->
        receive do
          {:io_request, from, ref, _} -> send(from, {:io_reply, ref, {:error, :terminated}})
        end
      end)

    code = "send(A('output'), id, A('stdout'), b'four'); send(A('ok'), id, recv()[2])"

    for device <- [dying, refusing, NoSuchDevice, spawn(fn -> :ok end)] do
      assert PyPort.eval(code, %{}, server: server, stdout: device) == {:ok, 4}
    end

    assert nothing_left?(server)
  end

  test "a device that hangs costs the caller its own time only, and Python is not left waiting", %{
    tmp_dir: dir
  } do
    server = start_fake(dir)
    hung = spawn(fn -> Process.sleep(:infinity) end)
    marker = Path.join(dir, "done")
    # It prints, and waits for the acknowledgement, as the real one does behind its window.
    code = """
    send(A("output"), id, A("stdout"), b"x" * 100)
    while recv()[0] not in ("ack", "cancel"): pass
    send(A("error"), id, {A("kind"): A("cancelled"), A("message"): "cancelled", A("begun"): True})
    # What is never written is acknowledged in the end, too.
    open(#{inspect(marker)}, "w")
    """

    assert {:error, %Error{kind: :timeout}} =
             PyPort.eval(code, %{}, server: server, stdout: hung, timeout: 100)

    assert nothing_left?(server)
    assert eventually(fn -> File.exists?(marker) end)
    Process.exit(hung, :kill)
  end

  test "output comes before its answer when that comes at the last moment, and just after it", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()

    # It takes longer than what is left of the time.
    slow =
      spawn_link(fn ->
        take = fn take ->
          receive do
            {:io_request, from, ref, {:put_chars, :unicode, text}} ->
              Process.sleep(40)
              send(test, {:written, text})
              send(from, {:io_reply, ref, :ok})
              take.(take)
          end
        end

        take.(take)
      end)

    say = "\nsend(A('output'), id, A('stdout'), b'said'); send(A('ok'), id, 1)"

    for wait <- ["time.sleep(0.18)", "time.sleep(0.19)", "while recv()[0] != 'cancel': pass"] do
      assert PyPort.eval(wait <> say, %{}, server: server, stdout: slow, timeout: 200) == {:ok, 1}
      assert_received {:written, "said"}
      assert nothing_left?(server)
    end
  end

  test "a caller whose output waits for a device has its answer when the server ends", %{tmp_dir: dir} do
    server = start_fake(dir)
    device = start_device(self())
    code = "send(A('output'), id, A('stdout'), b'x'); send(A('ok'), id, 1)"

    task = Task.async(fn -> PyPort.eval(code, %{}, server: server, stdout: device, timeout: :infinity) end)

    assert_receive {:written, ^device, "x"}, 5_000
    # The answer is there, but for what comes before it.
    assert eventually(fn -> match?([%{pending: 0}], PyPort.status(server)) end)
    server |> Process.whereis() |> Process.exit(:kill)
    assert Task.await(task) == {:ok, 1}
    Process.exit(device, :kill)
  end

  test "output of a request that no process waits for goes to Logger, and is acknowledged", %{tmp_dir: dir} do
    log =
      capture_log(fn ->
        server = start_fake(dir, heartbeat_interval: 50)
        marker = Path.join(dir, "done")

        code = """
        open(#{inspect(Path.join(dir, "begun"))}, "w")
        while recv()[0] != "cancel": pass
        send(A("output"), id, A("stdout"), b"too late")
        # The server also asks after a request whose caller has died.
        while recv()[0] != "ack": pass
        send(A("ok"), id, None)
        open(#{inspect(marker)}, "w")
        """

        caller = spawn(fn -> PyPort.eval(code, %{}, server: server, timeout: :infinity) end)
        assert eventually(fn -> File.exists?(Path.join(dir, "begun")) end)
        Process.exit(caller, :kill)
        assert eventually(fn -> File.exists?(marker) end)
      end)

    assert log =~ "too late"
  end

  test "a slow device keeps the BEAM within the window", %{tmp_dir: dir} do
    server = start_fake(dir)
    device = start_device(self())

    # 20 MB in chunks of 64 KiB with a window of 256 KiB.
    code = """
    window, waiting = 262144, 0
    chunk = b"x" * 65536
    for _ in range(320):
        while waiting + len(chunk) > window:
            message = recv()
            waiting -= message[2]
        send(A("output"), id, A("stdout"), chunk)
        waiting += len(chunk)
    while waiting:
        waiting -= recv()[2]
    send(A("ok"), id, None)
    """

    task = Task.async(fn -> PyPort.eval(code, %{}, server: server, stdout: device, timeout: 60_000) end)

    most =
      Enum.reduce(1..320, 0, fn _, most ->
        assert_receive {:written, ^device, _text}, 5_000
        %{requests: %{attached: attached}} = :sys.get_state(server)

        queued =
          for {_id, %{writer: writer}} <- attached, is_pid(writer), reduce: 0 do
            sum -> sum + (writer |> Process.info(:message_queue_len) |> elem(1))
          end

        send(device, :take)
        max(most, queued)
      end)

    assert Task.await(task) == {:ok, nil}
    assert most <= 4
    assert eventually(fn -> :sys.get_state(server).requests.attached == %{} end)
  end
end
