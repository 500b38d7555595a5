defmodule PyPort.Request.ProgressTest do
  # port_server.progress and the option on_progress.
  use ExUnit.Case, async: true

  import PyPort.Test.Servers

  setup_all do
    %{server: start_server(), threads: start_server(threads: 2)}
  end

  @code "from port_server import progress\nprogress(1, 3, step='load')\nprogress(2, 3)\nprogress(3, 3)\n'done'"

  test "a function gets the maps in the caller's process, before the answer", %{
    server: server,
    threads: threads
  } do
    test = self()
    report = fn map -> send(test, {:progress, map, self()}) end

    asynchronous = "import asyncio\nawait asyncio.sleep(0)\n" <> @code

    in_thread =
      "import threading\ndef work():\n    from port_server import progress\n    progress(1, 3, step='load')\n" <>
        "    progress(3, 3)\nt = threading.Thread(target=work); t.start(); t.join()\n'done'"

    for {server, code} <- [{server, @code}, {threads, @code}, {server, asynchronous}, {server, in_thread}] do
      assert {:ok, "done"} = PyPort.eval(code, %{}, server: server, on_progress: report)
      # The second came within 50 ms, and is not the last.
      assert_received {:progress, %{"step" => "load", done: 1, total: 3} = first, ^test}
      assert map_size(first) == 3
      assert_received {:progress, %{done: 3, total: 3}, ^test}
      refute_received _more
    end
  end

  test "messages go to a process under a reference", %{server: server} do
    ref = make_ref()
    options = [server: server, on_progress: {self(), ref}]
    assert {:ok, "done"} = PyPort.eval(@code, %{}, options)
    assert_received {^ref, :progress, %{done: 1, total: 3}}
    assert_received {^ref, :progress, %{done: 3}}
    assert :ok = PyPort.cast("port_server:progress", [2, 2], %{}, options)
    assert_receive {^ref, :progress, %{done: 2, total: 2}}, 5_000
    assert {:ok, nil} = PyPort.call("port_server:progress", [5], %{}, options)
    assert_received {^ref, :progress, %{done: 5, total: nil}}
  end

  test "without the option nothing arrives, and nothing is left in the mailbox", %{server: server} do
    assert {:ok, "done"} = PyPort.eval(@code, %{}, server: server, timeout: 5_000)
    assert {:ok, "done"} = PyPort.eval(@code, %{}, server: server, stdout: self())
    assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
  end

  test "a report does not extend the timeout", %{server: server} do
    code =
      "import time\nfrom port_server import progress\nfor n in range(1000):\n    progress(n, n); time.sleep(0.02)"

    options = [server: server, timeout: 200, on_progress: fn _map -> :ok end]
    assert {:error, %PyPort.Error{kind: :timeout}} = PyPort.eval(code, %{}, options)
    assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
  end

  test "wrong values are named", %{server: server} do
    assert_raise ArgumentError,
                 ~r/option :on_progress must be a function of one argument, or {pid, reference}/,
                 fn ->
                   PyPort.eval("1", %{}, server: server, on_progress: self())
                 end

    assert_raise ArgumentError, ~r/on_progress/, fn ->
      PyPort.stream("yield 1", %{}, server: server, on_progress: fn _ -> :ok end)
    end
  end
end
