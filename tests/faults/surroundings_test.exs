defmodule PyPort.Faults.SurroundingsTest do
  # Code that reaches beyond its request: threads, children, file descriptors, the state of the whole process.
  use ExUnit.Case, async: true

  import PyPort.Test.{Faults, Processes}

  alias PyPort.{Error, Server}

  test "threads left running" do
    tidy =
      "import builtins, threading\ngate.set()\nfor t in threading.enumerate()[1:]:\n    if not t.daemon: t.join()"

    {:ok, device} = StringIO.open("")

    report =
      fault("threads left running", [tidy: tidy, logger: false, saw: "its answer"], fn server ->
        assert {:ok, nil} = run(server, "threads_left", stdout: device)
        # They print meanwhile, for a request that is over.
        for n <- 1..20, do: assert({:ok, ^n} = PyPort.eval("n", %{n: n}, server: server))
        :ok
      end)

    assert report.server == :goes_on
  end

  test "a server with threads that never end can be stopped" do
    {:ok, device} = StringIO.open("")

    report =
      fault("threads left running, and a stop", [quiet: true, logger: false], fn server ->
        assert {:ok, nil} = run(server, "threads_left", stdout: device)
        GenServer.stop(server, :normal, 4_000)
      end)

    assert report.outcome == :ok
    assert report.server == :replaced
  end

  test "a spinning thread beside requests" do
    tidy = "import builtins; builtins.spinning = False"

    report =
      fault("a spinning thread beside requests", [tidy: tidy, within: 10_000], fn server ->
        assert {:ok, nil} = run(server, "spinning_thread")
        for n <- 1..50, do: assert({:ok, ^n} = PyPort.eval("n", %{n: n}, server: server))
        PyPort.eval("'between'", %{}, server: server)
      end)

    # Fifty-two requests beside it: each waits for its turn of the interpreter, none for the thread's end.
    assert report.outcome == {:ok, "between"}
    assert report.server == :goes_on
  end

  test "a child that keeps stdout open" do
    options = [saw: "its answer, then `:killed` at once", within: 3_000]

    report =
      fault("a child that keeps stdout open", options, fn server ->
        assert {:ok, child} = run(server, "child_keeps_stdout")
        assert alive?(child)
        task = Task.async(fn -> run(server, "sleep", timeout: 60_000) end)
        assert eventually(fn -> match?([%{running: id}] when id != nil, PyPort.status(server)) end)
        signal(Server.os_pid(server), "KILL")
        outcome = Task.await(task)
        # It is in a session of its own, where no signal to the group finds it: code that wants that has it.
        signal(child, "KILL")
        outcome
      end)

    assert {:error, %Error{kind: :killed, signal: "SIGKILL", begun: true}} = report.outcome
    assert report.server == :replaced
  end

  test "os.fork without exec" do
    report = fault("`os.fork` without exec", &run(&1, "forks"))
    assert report.outcome == {:ok, true}
    assert report.server == :goes_on
  end

  test "multiprocessing" do
    # Its semaphores and its tracker of resources come with the first use, and stay.
    warm =
      "import multiprocessing\nc = multiprocessing.get_context('fork')\nwith c.Pool(1) as p: p.map(abs, [1])\np.join()"

    # Its pools are parts of cycles.
    options = [within: 10_000, warm: warm, tidy: "import gc; gc.collect(); None"]
    report = fault("multiprocessing", options, &run(&1, "pools", timeout: 10_000))
    assert report.outcome == {:ok, 24}
    assert report.server == :goes_on
  end

  test "print, os.write, C printf and a subprocess writing to fd 1" do
    {:ok, device} = StringIO.open("")
    name = "print, os.write, C printf and a subprocess writing to fd 1"
    report = fault(name, [logger: false], &run(&1, "stray_writes", stdout: device))
    assert report.outcome == {:ok, "done"}
    assert report.server == :goes_on
    # What Python prints is the caller's, what goes to the fd itself is stderr's.
    assert StringIO.contents(device) == {"", "printed\n"}
  end

  test "chdir, environ, sys.path changed" do
    report = fault("chdir, environ, sys.path changed", &run(&1, "surroundings"))
    assert report.outcome == {:ok, "changed"}
    assert report.server == :goes_on
  end
end
