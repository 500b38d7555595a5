defmodule PyPort.Server.PreloadTest do
  # A pool whose Pythons are forks of a template: what they share, how they end, and the faults of the template. Real
  # processes; each test ends only those of its own pool.
  use ExUnit.Case, async: true

  import PyPort.Test.{Faults, Pools, Processes, Requests}

  alias PyPort.{Error, Registry}
  alias PyPort.Server.Preload

  @moduletag capture_log: true

  @code "import os; template = os.getpid(); runs = []"

  defp pool(options \\ []),
    do: start_pool(Keyword.merge([size: 2, preload: @code, heartbeat_interval: 100], options))

  # One that does not get ready.
  defp failing_pool(options) do
    name = :"pool_#{System.unique_integer([:positive])}"
    start_supervised!({PyPort.Pool, [name: name, size: 1] ++ options}, id: name)
    name
  end

  defp value(pool, code), do: PyPort.eval!(code, %{}, server: pool)
  defp preload(pool), do: pool |> Process.whereis() |> Registry.fact(:template)
  defp template(pool), do: :sys.get_state(preload(pool))
  defp template_pid(pool), do: template(pool).port |> Port.info(:os_pid) |> elem(1)

  defp answer_within(pool, ms), do: :sys.replace_state(preload(pool), &%{&1 | answer_ms: ms})

  # Ends one member, and waits until the pool is whole again.
  defp replace_member(pool) do
    [one | _] = before = os_pids(pool)
    signal(one, "KILL")

    assert eventually(
             fn -> pool |> os_pids() |> then(&(length(&1) == 2 and one not in &1 and nil not in &1)) end,
             1_000
           )

    before
  end

  describe "members" do
    test "are forks of one template, see its names, and run init_code each" do
      pool = pool(init_code: "runs.append(os.getpid())")
      template = template_pid(pool)

      for os_pid <- os_pids(pool) do
        server = Enum.find(PyPort.Pool.servers(pool), &(PyPort.Server.os_pid(&1) == os_pid))

        assert {^template, ^template, ^os_pid, [^os_pid]} =
                 value(server, "(template, os.getppid(), os.getpid(), runs)")

        # Its own session, so a kill of its group reaches nothing else.
        assert value(server, "os.getsid(0) == os.getpgrp() == os.getpid()")
      end
    end

    test "that end are replaced by forks of the same template" do
      pool = pool()
      template = template_pid(pool)
      replace_member(pool)

      assert for(server <- PyPort.Pool.servers(pool), do: value(server, "os.getppid()")) == [
               template,
               template
             ]
    end

    for {name, code, fields} <- [
          {"an exit", "os._exit(7)", [kind: :exited, exit_status: 7]},
          {"a crash", "os.kill(os.getpid(), 11)", [kind: :killed, signal: "SIGSEGV"]},
          {"a kill", "os.kill(os.getpid(), 9)", [kind: :killed, signal: "SIGKILL"]}
        ] do
      test "report how they ended: #{name}" do
        {:error, error} = PyPort.eval(unquote(code), %{}, server: pool())
        for {field, value} <- unquote(fields), do: assert(Map.fetch!(error, field) == value)
        assert error.begun
      end
    end

    test "are killed where code cannot be stopped, and leave nothing" do
      pool = pool(cancel_grace: 50, kill_grace: 50)
      code = "import time\nwhile True:\n  try:\n    time.sleep(9)\n  except BaseException: pass"
      [before | _] = os_pids(pool)

      {:error, %Error{kind: :timeout}} =
        PyPort.eval(code, %{}, server: hd(PyPort.Pool.servers(pool)), timeout: 50)

      assert gone?(before)
      assert group_gone?(before)
      assert eventually(fn -> length(os_pids(pool)) == 2 end)
    end

    test "keep no fd of theirs in processes that they fork, and close none of those" do
      # The first child takes every number below 100; the second one must find them open.
      code = """
      import os
      def child(run):
          if (pid := os.fork()) == 0:
              try:
                  os._exit(run())
              finally:
                  os._exit(99)
          return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
      def first():
          while os.open(os.devnull, os.O_RDONLY) < 100: pass
          return child(second)
      def second():
          for fd in range(100): os.fstat(fd)
          return 0
      child(first)
      """

      assert value(pool(size: 1), code) == 0
    end

    test "answer as others do: output, stacks, sessions, objects" do
      pool = pool()
      assert ExUnit.CaptureIO.capture_io(fn -> value(pool, "print('printed')") end) == "printed\n"
      assert {:ok, stacks} = PyPort.stacks(pool)
      assert stacks =~ "most recent call first"
      {:ok, session} = PyPort.open_session(server: pool)
      assert PyPort.eval("x = 1", %{}, session: session) == {:ok, nil}
      assert PyPort.eval("x", %{}, session: session) == {:ok, 1}
      assert %PyPort.Object{} = value(pool, "object()")
    end

    for how <- [:restart, :reload] do
      @tag :tmp_dir
      test "are forks of another template after a #{how}, and those before go on", %{tmp_dir: dir} do
        path = Path.join(dir, "model")
        File.write!(path, "1")
        pool = pool(size: 1, preload: "model = open(#{inspect(path)}).read()")
        assert value(pool, "model") == "1"
        slow = Task.async(fn -> value(pool, "import time; time.sleep(0.3); model") end)
        assert eventually(fn -> match?([%{pending: 1}], PyPort.status(pool)) end)
        File.write!(path, "2")
        assert apply(PyPort.Pool, unquote(how), [pool]) == :ok
        assert eventually(fn -> value(pool, "model") == "2" end, 1_000)
        assert Task.await(slow) == "1"
      end
    end

    test "end with their pool, as do their stubs and the template" do
      pool = pool()
      template = template_pid(pool)
      stubs = for %{connection: %{port: port}} <- states(pool), do: port |> Port.info(:os_pid) |> elem(1)
      pids = [template | os_pids(pool)] ++ stubs
      assert length(pids) == 5 and Enum.all?(pids, &alive?/1)
      %{dir: dir} = template(pool)
      stop_supervised!(pool)
      assert Enum.all?(pids, &gone?/1)
      assert eventually(fn -> not File.exists?(dir) end)
    end
  end

  defp states(pool), do: for(server <- PyPort.Pool.servers(pool), do: :sys.get_state(server))

  describe "a template" do
    test "that is killed leaves its members, and the next member starts another" do
      pool = pool()
      first = template_pid(pool)
      members = os_pids(pool)
      signal(first, "KILL")
      assert eventually(fn -> template(pool).phase == :down end)
      assert os_pids(pool) == members
      assert value(pool, "template") == first
      replace_member(pool)
      assert template_pid(pool) != first
      assert first in for(server <- PyPort.Pool.servers(pool), do: value(server, "template"))
      # The exit status of the member that was left is known to no process.
      [orphan] = for server <- PyPort.Pool.servers(pool), value(server, "template") == first, do: server

      assert {:error, %Error{kind: :exited, exit_status: nil}} =
               PyPort.eval("os._exit(7)", %{}, server: orphan)
    end

    test "that hangs is killed, and the next one started" do
      pool = pool()
      answer_within(pool, 100)
      first = template_pid(pool)
      signal(first, "STOP")
      replace_member(pool)
      refute alive?(first)
      assert template_pid(pool) != first
    end

    test "whose socket is removed is replaced" do
      pool = pool()
      %{dir: dir} = template(pool)
      first = template_pid(pool)
      File.rm!(Path.join(dir, "template"))
      replace_member(pool)
      assert template_pid(pool) != first
      assert gone?(first)
    end

    test "goes on where members are killed while they fork" do
      pool = pool()
      first = template_pid(pool)

      for _ <- 1..2 do
        [one | _] = os_pids(pool)
        signal(one, "KILL")
        # The stub of the next member, which is just connecting, or has just got its child.
        starting = fn ->
          for %{state: :starting, os_pid: pid} when pid != nil <- PyPort.status(pool), do: pid
        end

        eventually(fn -> starting.() != [] end, 20)
        for stub <- starting.(), do: System.cmd("sh", ["-c", "kill -KILL #{stub} 2>/dev/null"])
        assert eventually(fn -> length(os_pids(pool)) == 2 end, 1_500)
      end

      assert template_pid(pool) == first
      # Zombies are reaped, and no child is left without a server.
      assert eventually(fn -> Enum.sort(children(first)) == Enum.sort(os_pids(pool)) end)
    end

    @tag skip: System.cmd("id", ["-u"]) != {"0\n", 0} && "only root may become a user without processes"
    test "that cannot fork says so, and forks when it can" do
      # The limit does not hold for root.
      code =
        @code <>
          "; import resource, threading; limit = resource.RLIMIT_NPROC; resource.setrlimit(limit, (0, 64)); os.setuid(64123)"

      pool = failing_pool(preload: code)
      assert {:error, %Error{kind: :unavailable, begun: false} = error} = PyPort.eval("1", %{}, server: pool)
      assert error.message =~ "could not fork"
      assert error.message =~ "ulimit -u"
      pid = template_pid(pool)
      # By the same user, who may raise its limit.
      prlimit =
        "import os, resource; os.setuid(64123); resource.prlimit(#{pid}, resource.RLIMIT_NPROC, (64, 64))"

      {"", 0} = System.cmd("python3", ["-c", prlimit])
      assert eventually(fn -> PyPort.eval("template", %{}, server: pool) == {:ok, pid} end, 500)
    end

    test "that has no fd left for a member takes it when it has" do
      # The socket that a member's stub connects to needs a third one.
      code =
        @code <>
          "; import resource; fd = os.dup(0); os.close(fd)" <>
          "; resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"

      pool = failing_pool(preload: code)
      assert eventually(fn -> match?(%{phase: :ready}, template(pool)) end)
      pid = template_pid(pool)
      assert {:error, %Error{}} = PyPort.eval("1", %{}, server: pool, timeout: 200)
      raise_limit = "import resource; resource.prlimit(#{pid}, resource.RLIMIT_NOFILE, (1000, 1000))"
      {"", 0} = System.cmd("python3", ["-c", raise_limit])
      assert eventually(fn -> PyPort.eval("template", %{}, server: pool) == {:ok, pid} end, 500)
    end

    for {name, code} <- [
          {"are closed", "sys.stdout.close(); sys.stderr.close()"},
          {"are none", "sys.stdout = sys.stderr = None"},
          {"cannot flush", "sys.stdout = sys.stderr = object()"},
          {"lead elsewhere", "[os.dup2(os.open(os.devnull, os.O_WRONLY), fd) for fd in (1, 2)]"}
        ] do
      test "forks where sys.stdout and sys.stderr #{name}" do
        pool = pool(size: 1, preload: @code <> "; import sys; " <> unquote(code))
        assert value(pool, "template") == template_pid(pool)
        assert eventually(fn -> match?(%{phase: :ready}, template(pool)) end)
      end
    end

    test "whose code raises is an error with the code's traceback, and is tried again" do
      mark = new_gate()
      code = "import os\nif not os.path.exists(#{inspect(mark)}): raise ValueError('no model')"
      pool = failing_pool(preload: code)
      assert {:error, %Error{kind: :unavailable, begun: false} = error} = PyPort.eval("1", %{}, server: pool)
      assert error.message =~ "preload failed:"
      assert error.message =~ ~s(File "<preload>", line 2)
      assert error.message =~ "ValueError: no model"
      open_gate(mark)
      assert eventually(fn -> PyPort.eval("1", %{}, server: pool) == {:ok, 1} end, 500)
    end

    test "is one, also where its code forks" do
      for code <- ["os.fork()", "os.fork() or 1 / 0", "os.fork() or exit(3)"] do
        pool = pool(preload: @code <> "; " <> code)
        running = fn -> template_pid(pool) |> children() |> Enum.filter(&alive?/1) |> Enum.sort() end
        assert eventually(fn -> running.() == Enum.sort(os_pids(pool)) end)
      end
    end

    test "whose code never ends is killed after init_timeout" do
      gate = new_gate()
      pool = failing_pool(preload: wait_for(gate), init_timeout: 400)
      assert eventually(fn -> match?(%{phase: :loading}, template(pool)) end)
      pid = template_pid(pool)
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: pool)
      assert Exception.message(error) =~ ~r/init_timeout|template/
      assert gone?(pid)
      open_gate(gate)
      assert eventually(fn -> PyPort.eval("1", %{}, server: pool) == {:ok, 1} end, 500)
    end

    test "that cannot be launched leaves no directory" do
      pool = failing_pool(preload: @code, python: "/no/such/python")
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: pool)
      assert error.message =~ "/no/such/python"
      assert template(pool) |> Map.take([:phase, :dir, :port]) == %{phase: :down, dir: nil, port: nil}
      owner = preload(pool)
      :erlang.trace(owner, true, [:call])
      :erlang.trace_pattern({PyPort.Reaper, :watch, 2}, true, [])
      assert {:error, _} = Preload.member(Process.whereis(pool))
      assert_receive {:trace, ^owner, :call, {PyPort.Reaper, :watch, [^owner, dir]}}
      :erlang.trace(owner, false, [:call])
      refute File.exists?(dir)
    end

    test "whose port ends without an exit status is replaced" do
      pool = pool()
      first = template_pid(pool)
      # As it does where a write fails.
      Process.exit(template(pool).port, :epipe)
      assert eventually(fn -> template(pool).phase == :down end)
      assert gone?(first)
      replace_member(pool)
      assert template_pid(pool) != first
    end

    test "that ends before it is given its code is an error" do
      python = new_gate()
      File.write!(python, "#!/bin/sh\nexec <&-\nexit 5\n")
      File.chmod!(python, 0o700)
      pool = failing_pool(preload: String.duplicate("# ", 200_000), python: python)
      owner = preload(pool)
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: pool)
      assert error.message =~ "the template of preload: ended with"
      assert preload(pool) == owner
    end

    test "prints to Logger, and names the threads that its code has left" do
      PyPort.Test.LogTo.attach(self())

      pool(
        preload:
          "import threading, time; print('loading the model')\n" <>
            "threading.Thread(target=time.sleep, args=(60,), name='refresher', daemon=True).start()"
      )

      assert PyPort.Test.LogTo.logged?("preload: loading the model")
      assert PyPort.Test.LogTo.logged?("has left threads, which do not exist in the members: refresher")
    end

    test "can be a function, called at each start, and is in no crash report" do
      pool = pool(preload: fn -> @code end)
      refute inspect(:sys.get_state(preload(pool)).options) =~ "getpid"
      assert value(pool, "runs") == []
    end
  end

  test "nothing is left a second after the BEAM was killed with -9" do
    beam = {_port, os_pid} = PyPort.Test.Beam.start()

    [template | members] =
      PyPort.Test.Beam.ask(beam, """
      {:ok, pool} = PyPort.Pool.start_link(size: 2, preload: "import os; template = os.getpid()")
      {:ok, template} = PyPort.eval("template", %{}, server: pool, timeout: 30_000)
      wait = fn wait -> if length(PyPort.Pool.servers(pool)) < 2, do: wait.(wait) end
      wait.(wait)
      [template | Enum.map(PyPort.Pool.servers(pool), &PyPort.Server.os_pid/1)]
      """)

    stubs = for pid <- children(os_pid), pid not in members, do: pid
    signal(os_pid, "KILL")
    assert Enum.all?([template | members] ++ stubs, fn pid -> eventually(fn -> not alive?(pid) end, 100) end)
  end

  @tag :tmp_dir
  test "a path that is too long for the socket is an error that says what to do", %{tmp_dir: dir} do
    beam = PyPort.Test.Beam.start()
    long = Path.join(dir, String.duplicate("x", 100))
    File.mkdir_p!(long)

    {:error, error} =
      PyPort.Test.Beam.ask(beam, """
      System.put_env("TMPDIR", #{inspect(long)})
      {:ok, pool} = PyPort.Pool.start_link(size: 1, preload: "1")
      outcome = PyPort.eval("1", %{}, server: pool, timeout: 5_000)
      Supervisor.stop(pool)
      outcome
      """)

    assert error.message =~ ~r/socket .*xxx\/py_port-.*\/template, whose path has \d+ bytes/
    assert error.message =~ "Set TMPDIR"
  end

  @tag :tmp_dir
  test "without the stub each member runs the code, and Logger says so once", %{tmp_dir: dir} do
    File.cp_r!(Path.expand("../port_server"), Path.join(dir, "port_server"))
    File.rm!(Path.join(dir, "port_server/server/_stub"))
    PyPort.Test.LogTo.attach(self())
    pool = pool(env: [{"PYTHONPATH", dir}], init_code: "runs.append(1)")

    for server <- PyPort.Pool.servers(pool),
        do: assert(value(server, "(template == os.getpid(), runs)") == {true, [1]})

    assert PyPort.Test.LogTo.logged?("_stub is missing")
    replace_member(pool)
    refute_received {:logged, %{msg: {:string, [_, _, " is missing" | _]}}}
  end

  test "a server by itself runs the code before init_code" do
    server = PyPort.Test.Servers.start_server(preload: "a = 1", init_code: "b = a + 1")
    assert value(server, "(a, b)") == {1, 2}
  end

  test "options of the wrong type are refused" do
    assert_raise ArgumentError, ~r/option :preload must be Python source/, fn ->
      PyPort.Pool.start_link(preload: 1)
    end
  end

  defp children(of) do
    for entry <- File.ls!("/proc"),
        entry =~ ~r/^\d+$/,
        {:ok, stat} <- [File.read("/proc/#{entry}/stat")],
        [_state, parent | _] = stat |> String.split(") ") |> List.last() |> String.split(),
        parent == "#{of}",
        do: String.to_integer(entry)
  end
end
