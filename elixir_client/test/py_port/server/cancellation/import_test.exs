defmodule PyPort.Server.Cancellation.ImportTest do
  # A request that is to end in the midst of an import: its caller has the answer on time, the import ends first, and the
  # module works afterwards.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import ExUnit.CaptureLog
  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.{Error, Server}

  @moduletag capture_log: true

  # A package whose import has begun when there is a file, and ends when the gate is opened. An import that was cut
  # short leaves `half.part` behind without its value.
  setup do
    directory =
      Path.join(System.tmp_dir!(), "py_port_import_#{System.pid()}_#{System.unique_integer([:positive])}")

    File.mkdir_p!(Path.join(directory, "half"))
    begun = Path.join(directory, "begun")
    gate = new_gate()

    File.write!(Path.join(directory, "half/__init__.py"), """
    import half.part
    def value(): return half.part.value
    class Kept:
        def __init__(self, n=0): self.n = n
    """)

    File.write!(Path.join(directory, "half/part.py"), """
    open(#{inspect(begun)}, 'w').close()
    #{wait_for(gate)}
    value = 7
    """)

    File.write!(Path.join(directory, "lazy.py"), """
    def __getattr__(name):
        import importlib
        return importlib.import_module("half").value
    """)

    on_exit(fn -> File.rm_rf!(directory) end)
    %{directory: directory, begun: begun, gate: gate}
  end

  defp start(directory, options \\ []),
    do: start_server([init_code: "import asyncio, sys; sys.path.insert(0, #{inspect(directory)})"] ++ options)

  defp in_import(begun, ask) do
    task = Task.async(ask)
    assert eventually(fn -> File.exists?(begun) end), "no import has begun"
    task
  end

  ways = [
    {"import", "import half"},
    {"from ... import", "from half import value"},
    {"two imports on a line", "import half, json; open('/dev/null')"},
    {"importlib.import_module", "import importlib; importlib.import_module('half')"},
    {"a lazy attribute of a module", "import lazy; lazy.something"},
    {"pickle.loads", "import pickle; pickle.loads(b'chalf\\nKept\\n(tR.')"},
    {"an import inside of a function", "def f():\n    import half\nf()"},
    {"a cleanup around an import", "try:\n    import half\nfinally:\n    kept = 1"},
    {"exec", "exec('import half')"},
    {"__import__", "__import__('half')"},
    {"code that awaits", "import asyncio\nasync def f():\n    import half\nawait f()"},
    {"a generator", "def items():\n    import half\n    yield 1\nlist(items())"}
  ]

  for {what, code} <- ways do
    test "by #{what}: the answer is on time, and the module works", context do
      server = start(context.directory)
      os_pid = Server.os_pid(server)

      assert {{:error, %Error{kind: :timeout, begun: true} = error}, ms} =
               timed_eval(server, unquote(code), timeout: 500)

      assert File.exists?(context.begun)
      # With both graces.
      assert ms in 500..2_500
      assert error.message =~ "importing "
      open_gate(context.gate)
      assert {:ok, 7} = PyPort.eval("import half; half.value()", %{}, server: server)
      assert {:ok, false} = PyPort.eval("import _imp; _imp.lock_held()", %{}, server: server)
      assert Server.os_pid(server) == os_pid
      assert nothing_left?(server)
    end
  end

  test "by a call of a function by its name", context do
    server = start(context.directory)

    assert {:error, %Error{kind: :timeout} = error} =
             PyPort.call("half:value", [], %{}, server: server, timeout: 500)

    assert error.message =~ "importing half"
    open_gate(context.gate)
    assert {:ok, 7} = PyPort.call("half:value", [], %{}, server: server)
  end

  test "the log says what is imported, and for how long it may go on", context do
    server = start(context.directory, import_grace: 20_000)

    log =
      capture_log(fn ->
        assert {:error, %Error{kind: :timeout}} =
                 PyPort.eval("import half", %{}, server: server, timeout: 300)

        open_gate(context.gate)
        assert {:ok, 7} = PyPort.eval("import half; half.value()", %{}, server: server)
      end)

    assert log =~ "while it was importing half"
    assert log =~ "20000 ms (import_grace)"
  end

  test "no line after the import runs", context do
    server = start(context.directory)
    marks = for n <- 1..2, do: Path.join(context.directory, "mark#{n}")
    code = "import half, json; open(#{inspect(hd(marks))}, 'w')\nopen(#{inspect(List.last(marks))}, 'w')"
    assert {:error, %Error{kind: :timeout}} = PyPort.eval(code, %{}, server: server, timeout: 300)
    open_gate(context.gate)
    assert {:ok, 7} = PyPort.eval("half = __import__('half'); half.value()", %{}, server: server)
    refute Enum.any?(marks, &File.exists?/1)
  end

  test "a caller that dies leaves no broken module", context do
    server = start(context.directory)
    caller = spawn(fn -> PyPort.eval("import half", %{}, server: server, timeout: 60_000) end)
    assert eventually(fn -> File.exists?(context.begun) end)
    Process.exit(caller, :kill)
    # Longer than the graces together, after which any other request would cost the process its life.
    waiting = spawn_eval(server, "import half; half.value()", timeout: 20_000)
    assert Task.yield(waiting, 4_000) == nil
    open_gate(context.gate)
    assert {{:ok, 7}, _ms} = Task.await(waiting)
    assert nothing_left?(server)
  end

  test "a request that waits behind an import is dropped on time, and harms no other", context do
    server = start(context.directory)
    os_pid = Server.os_pid(server)
    first = in_import(context.begun, fn -> PyPort.eval("import half; half.value()", %{}, server: server) end)
    assert {{:error, %Error{kind: :timeout, begun: begun}}, ms} = timed_eval(server, "1", timeout: 200)
    # On a crowded machine Python may be late to say that it has not begun.
    assert begun in [false, nil]
    assert ms in 200..1_000
    open_gate(context.gate)
    assert {:ok, 7} = Task.await(first)
    assert Server.os_pid(server) == os_pid
  end

  test "a call into Elixir in an import is ended by Elixir, and no cancel strikes in it", context do
    File.write!(Path.join(context.directory, "asks.py"), """
    import port_server
    seen = "nothing"
    open(#{inspect(context.begun)}, 'w').close()
    try:
        port_server.call("Process", "sleep", [60_000])
    except BaseException as error:
        seen = type(error).__name__
    """)

    server = start(context.directory, allow: [Process])
    assert {:error, %Error{kind: :timeout}} = PyPort.eval("import asks", %{}, server: server, timeout: 300)
    assert {:ok, "ElixirError"} = PyPort.eval("import asks; asks.seen", %{}, server: server)
    assert nothing_left?(server)
  end

  test "a thread that imports while it waits for Elixir is left alone as well", context do
    File.write!(Path.join(context.directory, "asks.py"), """
    import port_server
    seen = "nothing"
    open(#{inspect(context.begun)}, 'w').close()
    try:
        port_server.call("Process", "sleep", [60_000])
    except BaseException as error:
        seen = type(error).__name__
    """)

    server = start(context.directory, allow: [Process])

    code = """
    import threading
    def work(): import asks
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    """

    assert {:error, %Error{kind: :timeout}} = PyPort.eval(code, %{}, server: server, timeout: 300)
    assert {:ok, "ElixirError"} = PyPort.eval("import asks; asks.seen", %{}, server: server)
  end

  test "after import_grace the process is killed, and says what for", context do
    server = start(context.directory, import_grace: 700, kill_grace: 300, cancel_grace: 100)

    log =
      capture_log(fn ->
        assert {{:error, %Error{kind: :timeout} = error}, ms} =
                 timed_eval(server, "import half", timeout: 300)

        assert error.message =~ "importing half"
        assert ms in 300..1_000
        assert eventually(fn -> Process.whereis(server) == nil end)
      end)

    assert log =~ "700 ms after its request was cancelled (import_grace)"
  end

  @tag :slow
  test "an import that holds the interpreter has its grace, too", context do
    File.write!(Path.join(context.directory, "heavy.py"), """
    open(#{inspect(context.begun)}, 'w').close()
    # About four seconds in C.
    import time
    began = time.monotonic()
    sum(range(10_000_000))
    n = int(4 / max(time.monotonic() - began, 1e-3))
    sum(range(n * 10_000_000))
    value = 8
    """)

    server = start(context.directory, cancel_grace: 300, kill_grace: 700)
    os_pid = Server.os_pid(server)
    assert {{:error, %Error{kind: :timeout} = error}, ms} = timed_eval(server, "import heavy", timeout: 700)
    assert error.message =~ "importing"
    assert ms in 700..2_500
    assert {:ok, 8} = PyPort.eval("import heavy; heavy.value", %{}, server: server, timeout: 60_000)
    assert Server.os_pid(server) == os_pid
  end

  test "with after_cancel: :restart the next request is not sent to the Python that is going away", context do
    name = :"server_#{System.unique_integer([:positive])}"
    init_code = "import sys; sys.path.insert(0, #{inspect(context.directory)})"
    start_supervised!({PyPort.Pool, name: name, size: 1, after_cancel: :restart, init_code: init_code})
    {:ok, first} = PyPort.eval("import os; os.getpid()", %{}, server: name)
    assert {:error, %Error{kind: :timeout}} = PyPort.eval("import half", %{}, server: name, timeout: 300)
    asking = Task.async(fn -> PyPort.eval("import os; os.getpid()", %{}, server: name, timeout: 20_000) end)
    open_gate(context.gate)
    assert {:ok, second} = Task.await(asking, 20_000)
    assert second != first
  end

  test "with after_cancel: :restart this holds where the code ended at once, too" do
    name = :"server_#{System.unique_integer([:positive])}"
    start_supervised!({PyPort.Pool, name: name, size: 2, after_cancel: :restart})
    {:ok, _} = PyPort.eval("1", %{}, server: name)

    for _ <- 1..20 do
      assert {:error, %Error{kind: :timeout}} =
               PyPort.eval("import time; time.sleep(60)", %{}, server: name, timeout: 20)

      assert {:ok, 2} = PyPort.eval("1 + 1", %{}, server: name)
    end
  end
end
