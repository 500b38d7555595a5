defmodule PyPort.Faults.DeathTest do
  # Pythons that end, or never begin: how their callers are told, and what takes their place.
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog
  import PyPort.Test.{Faults, Processes}

  alias PyPort.{Error, Server}

  test "the server killed" do
    report =
      fault("the server killed", fn server ->
        task = Task.async(fn -> run(server, "sleep", timeout: 60_000) end)
        assert eventually(fn -> match?([%{running: id}] when id != nil, PyPort.status(server)) end)
        signal(Server.os_pid(server), "KILL")
        Task.await(task)
      end)

    assert {:error, %Error{kind: :killed, signal: "SIGKILL", begun: true}} = report.outcome
    assert report.server == :replaced
  end

  test "a leader that died leaving children" do
    report = fault("a leader that died leaving children", &run(&1, "leaves_children"))
    assert {:error, %Error{kind: :exited, exit_status: 9, begun: true}} = report.outcome
    assert report.server == :replaced
  end

  test "segfault" do
    report = fault("segfault", &run(&1, "segfault"))
    assert {:error, %Error{kind: :killed, signal: "SIGSEGV", begun: true} = error} = report.outcome
    assert error.stack =~ "segfault.py"
    assert error.stack =~ "in crash"
    assert report.server == :replaced
  end

  test "abort" do
    report = fault("abort", &run(&1, "abort"))
    assert {:error, %Error{kind: :killed, signal: "SIGABRT", begun: true} = error} = report.outcome
    assert error.stack =~ "abort.py"
    assert report.server == :replaced
  end

  test "os._exit" do
    report = fault("`os._exit`", &run(&1, "os_exit"))
    assert {:error, %Error{kind: :exited, exit_status: 3, begun: true, stack: nil} = error} = report.outcome
    assert "farewell" in error.stderr
    assert report.server == :replaced
  end

  test "sys.exit" do
    report = fault("`sys.exit`", &run(&1, "sys_exit"))
    assert {:error, %Error{kind: :python, type: "SystemExit"} = error} = report.outcome
    assert error.message =~ "that was all"
    assert report.server == :goes_on
  end

  test "out of memory under a limit" do
    limit = 512 * 1_048_576

    report =
      fault("out of memory under a limit", [memory_limit: limit], fn server ->
        outcome = run(server, "memory_hog", timeout: 20_000)
        # Known from the first heartbeat on.
        assert eventually(fn -> match?([%{rss_bytes: rss}] when rss != nil, PyPort.status(server)) end)
        [%{rss_bytes: rss}] = PyPort.status(server)
        assert rss < limit
        outcome
      end)

    assert {:error, %Error{kind: :python, type: "MemoryError"}} = report.outcome
    assert report.server == :goes_on
  end

  test "code that closes every fd" do
    report = fault("code that closes every fd", &run(&1, "closes_fds"))
    assert {:error, %Error{kind: :exited, begun: begun}} = report.outcome
    # It had run to its end; all that is missing is a way to say so.
    assert begun != false
    assert report.server == :replaced
  end

  test "SIGTERM during a request" do
    report =
      fault("SIGTERM during a request", fn server ->
        mark = Path.join(System.tmp_dir!(), "#{server}.mark")
        code = "open(mark, 'w').close()\nimport time\nfor _ in range(40): time.sleep(0.01)\n'whole'"

        task = Task.async(fn -> PyPort.eval(code, %{mark: mark}, server: server, timeout: 60_000) end)

        assert eventually(fn -> File.exists?(mark) end)
        File.rm!(mark)
        os_pid = Server.os_pid(server)
        signal(os_pid, "TERM")
        outcome = Task.await(task)
        assert gone?(os_pid)
        outcome
      end)

    assert report.outcome == {:ok, "whole"}
    assert report.server == :replaced
  end

  test "SIGTERM while a stream waits for its consumer, and code for a callback" do
    report =
      fault(
        "SIGTERM while a stream waits for its consumer, and code for a callback",
        [saw: "`:exited` and a `RuntimeError` that name the signal"],
        fn server ->
          test = self()

          stream =
            Task.async(fn ->
              stream =
                PyPort.stream("for n in range(10): yield n", %{}, server: server, credit: 1, timeout: 20_000)

              try do
                Enum.each(stream, fn _n -> send(test, {:item, self()}) && receive(do: (:go_on -> :ok)) end)
              rescue
                error in Error -> error
              end
            end)

          assert_receive {:item, consumer}
          wait = fn -> send(test, :called) && Process.sleep(:infinity) end
          call = Task.async(fn -> PyPort.eval("f()", %{f: wait}, server: server, timeout: 20_000) end)
          assert_receive :called
          signal(Server.os_pid(server), "TERM")
          {:error, called} = Task.await(call)
          send(consumer, :go_on)
          {called, Task.await(stream)}
        end
      )

    {called, streamed} = report.outcome
    assert %Error{kind: :python, type: "RuntimeError"} = called
    assert %Error{kind: :exited, begun: true} = streamed
    for error <- [called, streamed], do: assert(error.message =~ "told to end by SIGTERM")
    assert report.server == :replaced
  end

  test "a request that comes too late for a Python that was told to end is told that" do
    report =
      fault("a request after SIGTERM", [quiet: true], fn server ->
        gate = PyPort.Test.Requests.new_gate()

        first =
          PyPort.Test.Requests.begin_eval(server, PyPort.Test.Requests.wait_for(gate) <> "'whole'",
            timeout: 20_000
          )

        signal(Server.os_pid(server), "TERM")
        # It reads no further from here on.
        Process.sleep(50)
        second = Task.async(fn -> PyPort.eval("2", %{}, server: server, timeout: 20_000) end)
        assert eventually(fn -> match?([%{pending: 2}], PyPort.status(server)) end)
        PyPort.Test.Requests.open_gate(gate)
        assert {{:ok, "whole"}, _ms} = Task.await(first)
        Task.await(second)
      end)

    assert {:error, %Error{kind: :exited, begun: false} = error} = report.outcome
    assert error.message =~ "told to end by SIGTERM, which PyPort has not sent"
  end

  test "the owner killed" do
    report =
      fault("the owner killed", fn server ->
        os_pid = Server.os_pid(server)
        task = Task.async(fn -> run(server, "c_loop", timeout: 60_000) end)
        assert eventually(fn -> match?([%{state: :gil_held}], PyPort.status(server)) end, 1_000)
        {ms, _} = timed(fn -> Process.exit(Process.whereis(server), :kill) && group_gone?(os_pid) end)
        assert ms < 1_500
        Task.await(task)
      end)

    assert {:error, %Error{kind: :exited} = error} = report.outcome
    assert error.message =~ "the process that owns the port ended: killed"
    assert report.server == :replaced
  end

  test "its supervisor killed" do
    Process.flag(:trap_exit, true)
    name = :"fault_#{System.unique_integer([:positive])}"
    {:ok, supervisor} = Supervisor.start_link([{Server, name: name}], strategy: :one_for_one)
    assert {:ok, 1} = PyPort.eval("1", %{}, server: name, timeout: 60_000)
    %{os_pid: os_pid, owner: owner} = look(name)
    task = Task.async(fn -> run(name, "catches_everything", timeout: 60_000) end)
    assert eventually(fn -> match?([%{pending: 1}], PyPort.status(name)) end)

    {ms, _} =
      timed(fn ->
        Process.exit(supervisor, :kill)
        # It has a shutdown's grace to end what it is doing.
        assert eventually(fn -> not Process.alive?(owner) end, 500)
      end)

    assert ms < 3_500
    assert group_gone?(os_pid)
    assert {:error, %Error{kind: :exited} = error} = Task.await(task)
    assert {:error, %Error{kind: :unavailable}} = PyPort.eval("1", %{}, server: name)
    record_row("its supervisor killed", "`:exited` (#{error.message})", "gone, like its owner", ms)
  end

  test "a boot failure in a loop" do
    name = :"fault_#{System.unique_integer([:positive])}"

    log =
      capture_log(fn ->
        start_supervised!({Server, name: name, init_code: "import no_such_module"})

        # The first caller waits for the first try, the others are told at once, try after try.
        {ms, outcome} = timed(fn -> PyPort.eval("1", %{}, server: name, timeout: 30_000) end)
        assert {:error, %Error{kind: :unavailable, begun: false} = error} = outcome
        assert error.message =~ "no_such_module"

        for _ <- 1..100 do
          assert {:error, %Error{kind: :unavailable, begun: false} = error} =
                   PyPort.eval("1", %{}, server: name, timeout: 30_000)

          assert error.message =~ "no_such_module"
          Process.sleep(10)
        end

        saw = "`:unavailable` with Python's report, `begun: false`"
        record_row("a boot failure in a loop", saw, "tried again, at growing intervals", ms)
      end)

    # Said once, not as often as it was tried.
    assert length(String.split(log, "ModuleNotFoundError")) - 1 <= 2
    # The next owner may have more luck, and nothing of all these tries is in the way.
    owner = Process.whereis(name)
    stop_supervised!(name)
    refute Process.alive?(owner)
    assert Enum.filter(Port.list(), &(Port.info(&1, :connected) == {:connected, owner})) == []
  end
end
