defmodule PyPort.ThreadsTest do
  # `threads:`: requests of one Python at once, and what happens to a thread that cannot be stopped.
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog
  import PyPort.Test.{Pools, Processes, Requests, Servers}

  alias PyPort.{Error, Server}

  @moduletag capture_log: true

  # Nothing that Python can raise ends a wait for a lock that is never released.
  @stuck "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()"

  defp at_once(server, count, code) do
    1..count
    |> Task.async_stream(&PyPort.eval!(code, %{n: &1}, server: server), max_concurrency: count)
    |> Enum.map(fn {:ok, value} -> value end)
  end

  # A server that its supervisor starts again.
  defp start_named(options) do
    name = :"threads_#{System.unique_integer([:positive])}"
    start_supervised!({Server, [name: name, threads: 4] ++ options})
    # An import is not interrupted, so these come first.
    assert PyPort.eval!("import asyncio, re\nawait asyncio.sleep(0)\n1", %{}, server: name) == 1
    name
  end

  test "fifty callers that wait 200 ms have their answers within 500 ms, of one small Python" do
    server = start_server(threads: 64)
    PyPort.eval!("import time", %{}, server: server)
    {us, values} = :timer.tc(fn -> at_once(server, 50, "import time; time.sleep(0.2); n") end)
    assert values == Enum.to_list(1..50)
    assert us < 500_000

    rss =
      "import os, resource\nint(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()"
      |> PyPort.eval!(%{}, server: server)

    assert rss < 60 * 1_048_576
  end

  test "a timeout stops code in a thread, and its Python goes on" do
    server = start_server(threads: 4)
    os_pid = Server.os_pid(server)

    for code <- ["while True: pass", "import time\nwhile True: time.sleep(0.01)"] do
      assert {:error, %Error{kind: :timeout, begun: true}} =
               PyPort.eval(code, %{}, server: server, timeout: 100)
    end

    assert PyPort.eval!("1 + 1", %{}, server: server) == 2
    assert Server.os_pid(server) == os_pid
    assert nothing_left?(server)
  end

  test "a caller that dies ends its request" do
    server = start_server(threads: 4)
    %Task{pid: pid} = task = begin_eval(server, "while True: pass", timeout: :infinity)
    Process.unlink(pid)
    Process.exit(pid, :kill)
    Process.demonitor(task.ref, [:flush])
    assert open?(server, 0)
    assert nothing_left?(server)
  end

  test "a thread that cannot be stopped: its caller, the other requests, the next Python" do
    name = start_named(cancel_grace: 150, kill_grace: 150)
    os_pid = Server.os_pid(name)
    gate = new_gate()
    other = begin_eval(name, wait_for(gate) <> "'whole'", timeout: 30_000)

    log =
      capture_log(fn ->
        {result, ms} = timed_eval(name, @stuck, timeout: 100)
        assert {:error, %Error{kind: :timeout, begun: true}} = result
        assert ms < 100 + 150 + 150 + 100
        # Longer than any grace: the other request is still there, and has its answer.
        Process.sleep(600)
        assert alive?(os_pid)
        open_gate(gate)
        assert {{:ok, "whole"}, _ms} = Task.await(other)
        assert gone?(os_pid)
      end)

    assert log =~ "cannot be stopped"
    # Until its server has ended, a request gets the error of that.
    assert eventually(fn -> PyPort.eval("1 + 1", %{}, server: name) == {:ok, 2} end)
    refute Server.os_pid(name) == os_pid
  end

  # In the way of the other requests: code that holds the interpreter, or keeps the event loop from running.
  for {what, code, message} <- [
        {"holds the interpreter", "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
         "its interpreter was held"},
        {"blocks the event loop",
         "import asyncio, time\nawait asyncio.sleep(0)\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
         "kept the event loop from running"}
      ] do
    test "a Python whose request #{what} is killed, and the next one starts" do
      name = start_named(cancel_grace: 150, kill_grace: 150)
      os_pid = Server.os_pid(name)

      log =
        capture_log(fn ->
          assert {{:error, error}, ms} = timed_eval(name, unquote(code), timeout: 200)
          assert %Error{kind: :timeout} = error
          assert ms < 200 + 150 + 150 + 500
          assert gone?(os_pid)
          # The server logs it before its supervisor starts the next.
          assert eventually(fn -> PyPort.eval("1 + 1", %{}, server: name) == {:ok, 2} end)
        end)

      assert log =~ unquote(message)
      refute log =~ "cannot be stopped"
    end
  end

  test "a coroutine that goes on is in the way of no other request" do
    name = start_named(cancel_grace: 150, kill_grace: 150)
    os_pid = Server.os_pid(name)
    gate = new_gate()
    other = begin_eval(name, wait_for(gate) <> "'whole'", timeout: 30_000)

    code = """
    import asyncio
    while True:
        try: await asyncio.sleep(60)
        except asyncio.CancelledError: pass
    """

    log =
      capture_log(fn ->
        assert {:error, %Error{kind: :timeout}} = PyPort.eval(code, %{}, server: name, timeout: 100)
        open_gate(gate)
        assert {{:ok, "whole"}, _ms} = Task.await(other)
        assert gone?(os_pid)
      end)

    assert log =~ "cannot be stopped"
    refute log =~ "in its thread"
    assert eventually(fn -> PyPort.eval("1 + 1", %{}, server: name) == {:ok, 2} end)
  end

  @tag :tmp_dir
  test "an import that never ends, where the server takes no requests already", %{tmp_dir: dir} do
    File.write!(Path.join(dir, "endless.py"), @stuck)

    name = start_named(cd: dir, after_cancel: :restart, cancel_grace: 100, kill_grace: 100, import_grace: 300)
    os_pid = Server.os_pid(name)

    log =
      capture_log(fn ->
        assert {:error, %Error{kind: :timeout}} =
                 PyPort.eval("import endless", %{}, server: name, timeout: 100)

        assert gone?(os_pid)
      end)

    assert log =~ "importing endless"
    assert log =~ "cannot be stopped"
    assert eventually(fn -> PyPort.eval("1 + 1", %{}, server: name) == {:ok, 2} end)
  end

  test "requests that come meanwhile go to another Python of the pool" do
    pool = start_pool(size: 2, threads: 4, cancel_grace: 100, kill_grace: 100)
    assert {:error, %Error{kind: :timeout}} = PyPort.eval(@stuck, %{}, server: pool, timeout: 50)
    assert at_once(pool, 16, "n") == Enum.to_list(1..16)
    assert eventually(fn -> length(PyPort.Pool.servers(pool)) == 2 end)
  end

  test "futures and gathered coroutines are awaited" do
    server = start_server()

    assert PyPort.eval!(
             "from concurrent.futures import ThreadPoolExecutor\nThreadPoolExecutor(2).submit(pow, 2, 10)",
             %{},
             server: server
           ) == 1024

    code = "import asyncio\nasync def f(n): await asyncio.sleep(0.01); return n\nasyncio.gather(f(1), f(2))"
    assert PyPort.eval!(code, %{}, server: server) == [1, 2]
  end

  test "a function of Elixir is awaited in asyncio.run()" do
    for options <- [[], [threads: 4]] do
      server = start_server(options)

      code = """
      import asyncio
      async def main():
          return await asyncio.gather(double(1), double(2))
      asyncio.run(main())
      """

      assert PyPort.eval!(code, %{double: fn n -> n * 2 end}, server: server) == [2, 4]
    end
  end

  test "forty functions wait at once in asyncio.to_thread" do
    server = start_server(async_threads: 40)

    code =
      "import asyncio, time\nawait asyncio.gather(*(asyncio.to_thread(time.sleep, 0.2) for _ in range(40)))\n1"

    PyPort.eval!("import asyncio\nawait asyncio.sleep(0)", %{}, server: server)
    {us, 1} = :timer.tc(fn -> PyPort.eval!(code, %{}, server: server) end)
    assert us < 700_000
  end

  test "wrong numbers are refused" do
    for {name, value} <- [threads: -1, threads: :many, async_threads: 0] do
      assert_raise ArgumentError, ~r/#{name}.*a number of threads/s, fn ->
        Server.start_link([{name, value}])
      end
    end
  end
end
