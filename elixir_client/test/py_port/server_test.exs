defmodule PyPort.ServerTest do
  # Startup, life and shutdown of one server: a real Python, real signals.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import ExUnit.CaptureLog
  import PyPort.Sigils
  import PyPort.Test.{Leftovers, Processes, Requests}

  alias PyPort.{Error, Server}
  alias PyPort.Test.{LogTo, Telemetry}

  doctest Server

  defp start(options \\ []) do
    name = options[:name] || :"server_#{System.unique_integer([:positive])}"
    # A supervisor of its own: a Python that dies is part of the test, not of its supervisor's patience.
    children = [{Server, Keyword.put(options, :name, name)}]
    start = {Supervisor, :start_link, [children, [strategy: :one_for_one, max_restarts: 100]]}
    start_supervised!(%{id: name, start: start, type: :supervisor})
    {name, fn -> stop_supervised!(name) end}
  end

  # The next request, asked until the supervisor has a new server up.
  defp eventually_eval(name, code, tries \\ 300) do
    case PyPort.eval(code, %{}, server: name) do
      {:error, %Error{kind: :unavailable}} when tries > 0 ->
        Process.sleep(10)
        eventually_eval(name, code, tries - 1)

      answer ->
        answer
    end
  end

  describe "startup" do
    test "requests made while Python starts wait for it" do
      {name, _} = start()
      assert PyPort.eval("1 + 1", %{}, server: name) == {:ok, 2}
    end

    test "names that init_code defines are seen by every request" do
      {name, _} = start(init_code: "import math\nbase = 40")
      assert PyPort.eval("base + math.floor(2.5)", %{}, server: name) == {:ok, 42}
      assert PyPort.eval("base", %{base: 1}, server: name) == {:ok, 1}
      assert PyPort.eval("base", %{}, server: name) == {:ok, 40}
    end

    test "init_code that raises is told to every caller, with its traceback" do
      log =
        capture_log(fn ->
          {name, _} = start(init_code: ~P"import no_such_module_at_all")

          assert {:error, %Error{kind: :unavailable, begun: false} = error} =
                   PyPort.eval("1", %{}, server: name)

          assert Exception.message(error) =~ "init_code failed"
          assert Exception.message(error) =~ "No module named 'no_such_module_at_all'"
          assert Exception.message(error) =~ Path.relative_to_cwd(__ENV__.file)
        end)

      assert log =~ "init_code failed"
    end

    test "a Python that does not exist is named, at once, and logged once" do
      log =
        capture_log(fn ->
          name = :"server_#{System.unique_integer([:positive])}"
          Telemetry.listen(name)
          start(name: name, python: "/no/such/python3.once")
          assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, server: name)
          assert message =~ "/no/such/python3.once"
          assert message =~ ":python"
          assert_receive {:event, [:py_port, :server, :boot_failure], %{failures: 2}, _metadata}, 5_000
          assert {:error, %Error{kind: :unavailable}} = PyPort.eval("1", %{}, server: name)
        end)

      # Others run meanwhile, and are logged as well.
      assert log
             |> String.split(~s("/no/such/python3.once" does not exist, or may not be executed))
             |> length() == 2
    end

    test "a Python that ends at once says how, with its last words" do
      capture_log(fn ->
        {name, _} = start(python: "/bin/false")
        assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, server: name)
        assert message =~ "Python did not start"
      end)
    end

    test "a Python that never gets ready is killed when init_timeout has passed" do
      capture_log(fn ->
        {name, _} = start(init_code: "import time; time.sleep(60)", init_timeout: 500)
        assert eventually(fn -> Server.os_pid(name) != nil end)
        os_pid = Server.os_pid(name)
        assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, server: name)
        assert message =~ "not ready within 500 ms"
        assert gone?(os_pid)
      end)
    end

    test "environment and directory are what was asked for" do
      dir = System.tmp_dir!() |> Path.expand()
      {name, _} = start(cd: dir, env: [{"PYPORT_TEST_VARIABLE", "grün"}, {"HOME", nil}])
      code = "import os; [os.getcwd(), os.environ['PYPORT_TEST_VARIABLE'], 'HOME' in os.environ]"
      assert {:ok, [cwd, "grün", false]} = PyPort.eval(code, %{}, server: name)
      assert Path.basename(cwd) == Path.basename(dir)
    end

    test "of the BEAM's environment Python inherits what it may" do
      System.put_env("RELEASE_COOKIE", "secret")
      System.put_env("PYPORT_TEST_INHERITED", "yes")
      on_exit(fn -> Enum.each(["RELEASE_COOKIE", "PYPORT_TEST_INHERITED"], &System.delete_env/1) end)
      python = System.get_env("PYPORT_PYTHON") || System.find_executable("python3")

      # Of a child as well.
      code = """
      import os, subprocess
      names = ["RELEASE_COOKIE", "PYPORT_TEST_INHERITED", "HOME", "MINE"]
      child = subprocess.run(["/bin/sh", "-c", "env"], capture_output=True, text=True).stdout
      assert all((name in os.environ) == (name + "=" in child) for name in names)
      [name for name in names if name in os.environ]
      """

      for {options, expected} <- [
            {[], ["PYPORT_TEST_INHERITED", "HOME"]},
            {[inherit_env: true], ["PYPORT_TEST_INHERITED", "HOME"]},
            {[inherit_env: false], []},
            {[inherit_env: false, env: [{"MINE", "1"}]], ["MINE"]},
            {[inherit_env: ["HOME"]], ["HOME"]},
            {[inherit_env: ["RELEASE_COOKIE", "NOT_THERE"]], ["RELEASE_COOKIE"]},
            {[env: [{"RELEASE_COOKIE", "mine"}, {"HOME", nil}]], ["RELEASE_COOKIE", "PYPORT_TEST_INHERITED"]},
            {[env: fn -> [{"MINE", "1"}] end, inherit_env: []], ["MINE"]}
          ] do
        {name, _} = start([python: python] ++ options)
        assert {options, PyPort.eval(code, %{}, server: name)} == {options, {:ok, expected}}
      end
    end

    test "a function of :env or :init_code that gives no such thing is a failure to start that says so" do
      for {option, words} <- [
            {[env: fn -> %{"TOKEN" => "hush"} end], ":env must give a list such as"},
            {[init_code: fn -> 17 end], ":init_code must give Python source"},
            {[env: fn -> raise "no vault" end], ":env raised: no vault"}
          ] do
        capture_log(fn ->
          {name, _} = start(option)
          assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, server: name)
          assert message =~ words
          refute message =~ "hush"
        end)
      end
    end

    @tag :tmp_dir
    test "modules of the working directory can be imported, but never stop the server", %{tmp_dir: dir} do
      File.write!(Path.join(dir, "mine.py"), "answer = 42")
      # The server itself imports this one.
      File.write!(Path.join(dir, "select.py"), "raise RuntimeError('shadowed')")
      {name, _} = start(cd: dir)
      assert PyPort.eval("import mine; mine.answer", %{}, server: name) == {:ok, 42}
    end

    test "an unknown option raises in start_link/1 and names the known ones" do
      assert_raise ArgumentError, ~r/unknown option :pyton.*Did you mean :python\?/, fn ->
        Server.start_link(pyton: "x")
      end
    end
  end

  describe "shutdown" do
    test "every caller gets the exit status; the supervisor has a new one up" do
      {name, _} = start()
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)

      waiting =
        for n <- 1..5,
            do: Task.async(fn -> PyPort.eval("#{n}; import time; time.sleep(30)", %{}, server: name) end)

      assert open?(name, 5)
      # The queue is behind a sleeper, so it is a signal that ends it.
      os_pid = Server.os_pid(name)
      signal(os_pid, "SEGV")

      for {:error, error} <- Task.await_many(waiting) do
        assert %Error{kind: :killed, signal: "SIGSEGV"} = error
      end

      assert eventually_eval(name, "6 * 7") == {:ok, 42}
      refute Server.os_pid(name) == os_pid
    end

    test "os._exit is reported with its status and the last lines of stderr" do
      {name, _} = start()

      assert {:error, %Error{kind: :exited, exit_status: 3} = error} =
               PyPort.eval("import os; os.write(2, b'farewell\\n'); os._exit(3)", %{}, server: name)

      assert "farewell" in error.stderr
      assert Exception.message(error) =~ "exit status 3"
      assert Exception.message(error) =~ "farewell"
      assert eventually_eval(name, "1") == {:ok, 1}
    end

    test "a killed owner leaves no Python behind, and a new server comes up" do
      {name, _} = start()
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      os_pid = Server.os_pid(name)
      task = begin_eval(name, "import time; time.sleep(30)")
      Process.exit(Process.whereis(name), :kill)
      assert {{:error, %Error{kind: :exited}}, _ms} = Task.await(task)
      assert gone?(os_pid)
      assert eventually_eval(name, "1") == {:ok, 1}
    end

    @tag :slow
    test "owners killed while their Python is only just being born leave nothing behind" do
      Process.flag(:trap_exit, true)

      os_pids =
        for _ <- 1..40 do
          {:ok, server} = Server.start_link(init_code: "while True: pass")
          assert eventually(fn -> Server.os_pid(server) != nil end)
          os_pid = Server.os_pid(server)
          Process.exit(server, :kill)
          assert_receive {:EXIT, ^server, :killed}
          os_pid
        end

      for os_pid <- os_pids, do: assert(gone?(os_pid))
    end

    test "a linked process that ends in peace does not end the server" do
      {name, _} = start()
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      os_pid = Server.os_pid(name)
      server = Process.whereis(name)
      {linked, monitor} = spawn_monitor(fn -> Process.link(server) end)
      assert_receive {:DOWN, ^monitor, :process, ^linked, _reason}
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      assert Server.os_pid(name) == os_pid
    end

    test "children of a Python that died are ended with it" do
      {name, _} = start()

      assert {:ok, child} =
               PyPort.eval("import subprocess; subprocess.Popen(['sleep', '60']).pid", %{}, server: name)

      assert alive?(child)
      PyPort.eval("import os; os._exit(1)", %{}, server: name)
      assert gone?(child)
    end

    test "a server that is stopped stops its Python and leaves no file" do
      {name, stop} = start()
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      os_pid = Server.os_pid(name)
      {:ok, %{dir: dir}} = PyPort.Registry.fetch(Process.whereis(name))
      assert File.dir?(dir)
      stop.()
      assert gone?(os_pid)
      refute File.exists?(dir)
      assert {:error, %Error{kind: :unavailable}} = PyPort.eval("1", %{}, server: name)
    end

    for how <- [:supervisor, :sigterm] do
      test "an orderly end (#{how}) runs atexit functions, and leaves nothing in /dev/shm" do
        {name, stop} = start()
        {ended, files} = leave_things(&PyPort.eval(&1, &2, server: name, timeout: 20_000))
        os_pid = Server.os_pid(name)

        case unquote(how) do
          :supervisor -> stop.()
          :sigterm -> signal(os_pid, "TERM")
        end

        assert gone?(os_pid)
        assert File.exists?(ended)
        assert Enum.filter(files, &File.exists?/1) == []
      end
    end

    test "a stop lets a short request finish, and ends a long one after the grace" do
      {name, stop} = start(shutdown_grace: 500)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      short = begin_eval(name, "import time; time.sleep(0.2); 'done'")
      long = spawn_eval(name, "import time; time.sleep(60)")
      assert open?(name, 2)
      os_pid = Server.os_pid(name)
      {micros, :ok} = :timer.tc(fn -> stop.() end)
      assert {{:ok, "done"}, _ms} = Task.await(short)
      assert {{:error, %Error{kind: :exited}}, _ms} = Task.await(long)
      assert micros < 3_000_000
      assert gone?(os_pid)
    end
  end

  describe "limits" do
    test "a caller's time is kept, and what comes later is dropped" do
      {name, _} = start()
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)

      {micros, answer} =
        :timer.tc(fn ->
          PyPort.eval("import time; time.sleep(0.5); 'late'", %{}, server: name, timeout: 100)
        end)

      assert {:error, %Error{kind: :timeout}} = answer
      assert micros in 100_000..400_000
      assert PyPort.eval("'next'", %{}, server: name) == {:ok, "next"}
      refute_received _anything
    end

    test "a request whose time passes in the queue is never run" do
      {name, _} = start()
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      marker = Path.join(System.tmp_dir!(), "pyport_never_#{System.unique_integer([:positive])}")
      gate = new_gate()
      blocker = begin_eval(name, wait_for(gate))

      assert {:error, %Error{kind: :timeout}} =
               PyPort.eval("open(marker, 'w')", %{marker: marker}, server: name, timeout: 50)

      open_gate(gate)
      assert {{:ok, nil}, _ms} = Task.await(blocker)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      refute File.exists?(marker)
    end

    test "more than max_pending requests are refused, and nothing is sent" do
      {name, _} = start(max_pending: 2)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)

      gate = new_gate()
      tasks = for _ <- 1..2, do: spawn_eval(name, wait_for(gate))
      assert open?(name, 2)

      assert {:error, %Error{kind: :overloaded, begun: false, message: message}} =
               PyPort.eval("1", %{}, server: name)

      assert message =~ "max_pending"
      open_gate(gate)
      assert [{{:ok, nil}, _}, {{:ok, nil}, _}] = Task.await_many(tasks)
      assert PyPort.eval("1", %{}, server: name) == {:ok, 1}
    end

    test "a request above max_frame_bytes is refused here, a reply above it there" do
      {name, _} = start(max_frame_bytes: 100_000)
      large = String.duplicate("x", 200_000)
      assert {:error, %Error{kind: :encode, message: message}} = PyPort.eval("1", %{x: large}, server: name)
      assert message =~ "max_frame_bytes"

      assert {:error, %Error{kind: :encode, message: message}} =
               PyPort.eval("'x' * 200_000", %{}, server: name)

      assert message =~ "max_frame_bytes"
      assert PyPort.eval("1", %{}, server: name) == {:ok, 1}
    end

    test "a full port refuses the next caller; one frame of any size passes" do
      {name, _} = start(max_queued_bytes: 1_000, shm_threshold: :infinity)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      os_pid = Server.os_pid(name)
      # A Python that runs code still reads what comes; a stopped one does not.
      signal(os_pid, "STOP")
      large = PyPort.bytes(:binary.copy(<<0>>, 8_000_000))
      first = Task.async(fn -> PyPort.eval("len(x)", %{x: large}, server: name) end)
      {:ok, connection} = PyPort.Registry.fetch(Process.whereis(name))
      assert eventually(fn -> Port.info(connection.port, :queue_size) > {:queue_size, 1_000} end)
      assert {:error, %Error{kind: :overloaded, message: message}} = PyPort.eval("1", %{}, server: name)
      assert message =~ "max_queued_bytes"
      signal(os_pid, "CONT")
      assert Task.await(first) == {:ok, 8_000_000}
    end

    test "requests of callers that died are forgotten" do
      {name, _} = start(heartbeat_interval: 50)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
      gate = new_gate()
      blocker = begin_eval(name, wait_for(gate))
      callers = for _ <- 1..10, do: spawn(fn -> PyPort.eval("1", %{}, server: name) end)
      assert open?(name, 11)
      Enum.each(callers, &Process.exit(&1, :kill))
      assert open?(name, 1)
      open_gate(gate)
      assert {{:ok, nil}, _ms} = Task.await(blocker)
    end
  end

  test "a server that does not exist is :unavailable, and says its name" do
    assert {:error, %Error{kind: :unavailable, message: message}} =
             PyPort.eval("1", %{}, server: NoSuchServer)

    assert message =~ "NoSuchServer"
    {dead, monitor} = spawn_monitor(fn -> :ok end)
    assert_receive {:DOWN, ^monitor, :process, ^dead, _reason}
    assert {:error, %Error{kind: :unavailable}} = PyPort.eval("1", %{}, server: dead)
  end

  test "a process that is no server is named, and not harmed" do
    assert_raise ArgumentError, ~r/must be a PyPort.Server/, fn ->
      PyPort.eval("1", %{}, server: PyPort.Supervisor)
    end

    assert_raise ArgumentError, ~r/must be a PyPort.Server/, fn -> PyPort.eval("1", %{}, server: self()) end
    assert_raise ArgumentError, ~r/must be a PyPort.Server/, fn -> PyPort.eval("1", %{}, server: :logger) end
    assert Process.whereis(:logger)
  end

  test "what Python writes to stderr arrives in Logger" do
    LogTo.attach(self())
    {name, _} = start(heartbeat_interval: 20)
    # A child that outlives its request.
    code = "import subprocess; child = subprocess.Popen('sleep 0.1; echo to the log', shell=True)"
    assert {:ok, _} = PyPort.eval(code, %{}, server: name)
    assert LogTo.logged?("to the log")
  end
end
