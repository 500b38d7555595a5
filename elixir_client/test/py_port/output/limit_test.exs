defmodule PyPort.Output.LimitTest do
  # Output, end to end: what Python prints, much of it, to devices of all kinds. Not beside other tests: one looks at the
  # VM's memory.
  use ExUnit.Case, async: false

  import ExUnit.CaptureIO
  import PyPort.Test.{Requests, Servers}

  alias PyPort.Error
  alias PyPort.Test.LogTo

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__, heartbeat_interval: 50})
    {:ok, server: __MODULE__}
  end

  # A device that counts, and takes its time for each chunk.
  defp start_counter(pause_ms \\ 0) do
    spawn_link(fn -> count(0, pause_ms) end)
  end

  defp count(bytes, pause_ms) do
    receive do
      {:io_request, from, ref, {:put_chars, :unicode, text}} ->
        if pause_ms > 0, do: Process.sleep(pause_ms)
        send(from, {:io_reply, ref, :ok})
        count(bytes + byte_size(text), pause_ms)

      {:count, from} ->
        send(from, {:count, bytes})
        count(bytes, pause_ms)
    end
  end

  defp counted(device) do
    send(device, {:count, self()})
    assert_receive {:count, bytes}, 5_000
    bytes
  end

  test "300 MB of prints never make the BEAM grow by more than the window", %{server: server} do
    device = start_counter()
    parent = self()
    :erlang.garbage_collect()
    before = :erlang.memory(:binary)

    watcher =
      spawn_link(fn ->
        watch = fn watch, most ->
          receive do
            :stop -> send(parent, {:most, most})
          after
            5 -> watch.(watch, max(most, :erlang.memory(:binary)))
          end
        end

        watch.(watch, 0)
      end)

    code = "line = 'x' * 99_999\nfor _ in range(3000): print(line)"
    assert PyPort.eval(code, %{}, server: server, stdout: device, timeout: 120_000) == {:ok, nil}
    # All of it was written before the answer.
    assert counted(device) == 300_000_000
    send(watcher, :stop)
    assert_receive {:most, most}, 5_000
    # The window, and the text that one device has in hand.
    assert most - before < 30_000_000
    assert nothing_left?(server)
  end

  test "a slow device makes a slow print, and all of it arrives in order", %{server: server} do
    {:ok, device} = StringIO.open("")
    slow = spawn_link(fn -> forward(device) end)
    code = "for n in range(200): print(n, 'x' * 20_000)"
    assert PyPort.eval(code, %{}, server: server, stdout: slow, timeout: 60_000) == {:ok, nil}
    {"", text} = StringIO.contents(device)
    numbers = for line <- String.split(text, "\n", trim: true), do: line |> String.split(" ") |> hd()
    assert numbers == Enum.map(0..199, &Integer.to_string/1)
  end

  defp forward(device) do
    receive do
      {:io_request, from, ref, request} ->
        Process.sleep(2)
        send(device, {:io_request, self(), ref, request})
        receive(do: ({:io_reply, ^ref, reply} -> send(from, {:io_reply, ref, reply})))
    end

    forward(device)
  end

  test "a hung device costs the caller its timeout, and the server nothing", %{server: server} do
    hung = spawn_link(fn -> Process.sleep(:infinity) end)
    code = "for _ in range(300): print('x' * 99_999)"

    assert {:error, %Error{kind: :timeout}} =
             PyPort.eval(code, %{}, server: server, stdout: hung, timeout: 300)

    # The request goes on, is not held up by a device that no process waits for, and the next is answered.
    assert PyPort.eval("1", %{}, server: server, timeout: 20_000) == {:ok, 1}
    assert nothing_left?(server)
  end

  test "stdout and stderr of a request, its threads and tasks arrive before the answer", %{server: server} do
    code = """
    import sys, threading
    print("main")
    def run(): print("thread"); print("thread err", file=sys.stderr)
    thread = threading.Thread(target=run); thread.start(); thread.join()
    print("end")
    """

    {:ok, out} = StringIO.open("")
    {:ok, err} = StringIO.open("")
    assert {:ok, nil} = PyPort.eval(code, %{}, server: server, stdout: out, stderr: err)
    assert StringIO.contents(out) == {"", "main\nthread\nend\n"}
    assert StringIO.contents(err) == {"", "thread err\n"}
    assert capture_io(fn -> PyPort.eval("print('x')", %{}, server: server) end) == "x\n"
  end

  test "what a thread prints after its request goes to Logger", %{server: server} do
    gate = new_gate()

    code = """
    import os, threading, time
    def late():
        while not os.path.exists(gate): time.sleep(0.002)
        print("printed too late")
    threading.Thread(target=late).start()
    """

    LogTo.attach(self())
    assert {:ok, nil} = PyPort.eval(code, %{gate: gate}, server: server)
    open_gate(gate)
    assert LogTo.logged?("printed too late")
  end
end
