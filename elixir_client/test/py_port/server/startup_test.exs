defmodule PyPort.Server.StartupTest do
  # The time before a Python says hello: code that prints and reads, programs in between, files that hide the
  # standard library, init_code that awaits.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import PyPort.Test.LogTo
  import PyPort.Test.Processes, only: [eventually: 1]

  alias PyPort.{Error, Server}

  @moduletag :tmp_dir
  @python System.get_env("PYPORT_PYTHON") || "python3"

  defp start(options) do
    {:ok, server} = Server.start_link([init_timeout: 10_000] ++ options)
    server
  end

  defp script(dir, text) do
    path = Path.join(dir, "python")
    File.write!(path, "#!/bin/sh\n" <> text)
    File.chmod!(path, 0o755)
    path
  end

  defp python_path(dir, name, text) do
    File.write!(Path.join(dir, name), text)
    [env: [{"PYTHONPATH", dir}]]
  end

  describe "before the handshake" do
    # Each would have been the length of a first frame, or have taken the first frame away.
    for {name, text} <- [
          {"a wrapper script that prints", ~S(echo hello; exec PYTHON "$@")},
          {"a wrapper script that prints much", ~S(head -c 3000000 /dev/zero; echo; exec PYTHON "$@")},
          {"a wrapper script that reads", ~S(cat; head -c 4; exec PYTHON "$@")},
          {"a wrapper script that starts Python as a child", ~S(echo hello; PYTHON "$@"; exit $?)},
          {"a wrapper script that gives the port as stdin and stdout",
           ~S(echo hello; exec PYTHON "$@" <&7 >&8 7<&- 8>&-)},
          {"a wrapper in Python",
           ~S|exec PYTHON -c 'import os, sys; print("hello", flush=True); os.execv(sys.argv[1], sys.argv[1:])' PYTHON "$@"|},
          {"a wrapper in Python that starts a child",
           ~S|exec PYTHON -c 'import subprocess as s, sys; s.run(sys.argv[1:], pass_fds=(7, 8))' PYTHON "$@"|}
        ] do
      test name <> " does not disturb it", %{tmp_dir: dir} do
        server = start(python: script(dir, String.replace(unquote(text), "PYTHON", @python)))
        assert PyPort.eval("1 + 1", %{}, server: server) == {:ok, 2}
        assert PyPort.eval("open(0).read()", %{}, server: server) == {:ok, ""}
        GenServer.stop(server)
      end
    end

    for {name, text} <- [
          {"sitecustomize.py", "print('hello'); import os; os.write(1, b'raw'); os.system('echo child')"},
          {"usercustomize.py", "print('hello' * 100_000)"},
          {"sitecustomize.py", "import os, sys\nos.read(0, 4)\nsys.stdin.read()"},
          {"sitecustomize.py", "import sys\nsys.stdout.write('kept in a buffer')"}
        ] do
      test "#{name} may say #{inspect(text)}", %{tmp_dir: dir} do
        server = start(python_path(dir, unquote(name), unquote(text)))
        assert PyPort.eval("1 + 1", %{}, server: server) == {:ok, 2}
        GenServer.stop(server)
      end
    end

    test "what is printed there goes to Logger", %{tmp_dir: dir} do
      attach(self())
      server = start([label: "Talks"] ++ python_path(dir, "sitecustomize.py", "print('hello from site')"))
      {:ok, 1} = PyPort.eval("1", %{}, server: server)
      GenServer.stop(server)
      assert logged?("PyPort Talks stderr: hello from site")
    end

    test "a program that does not pass the port on is told so, with what to do", %{tmp_dir: dir} do
      child = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
      wrapper = script(dir, ~s(exec #{@python} -c '#{child}' #{@python} "$@"))
      server = start(python: wrapper)
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: server)
      assert Exception.message(error) =~ "fds 7 and 8, on which Elixir and Python talk, did not reach Python"
      assert Exception.message(error) =~ "pass_fds=(7, 8)"
    end

    test "no child inherits the port", %{tmp_dir: dir} do
      # Started before the server is there: what it holds open is all that it has from Elixir.
      text = "import subprocess; child = subprocess.Popen(['sleep', '600'], close_fds=False)"
      server = start(python_path(dir, "sitecustomize.py", text))
      code = "import os\nsorted(os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2))"
      assert {:ok, ["/dev/null", stderr, stderr]} = PyPort.eval(code, %{}, server: server)
      refute PyPort.eval("import os; os.path.exists('/proc/self/fd/7')", %{}, server: server) == {:ok, true}
      GenServer.stop(server)
    end
  end

  describe "a file that hides a module of the standard library" do
    for name <- ~w(asyncio logging), where <- [:cd, :path] do
      test "#{name}.py (#{where}) is named where code awaits", %{tmp_dir: dir} do
        file = Path.join(dir, unquote(name) <> ".py")
        File.write!(file, "")
        server = start(if unquote(where) == :cd, do: [cd: dir], else: [env: [{"PYTHONPATH", dir}]])
        code = "await __import__('asyncio').sleep(0)"

        # By main, and by the thread that reads while main is at something else.
        for _ <- 1..2 do
          busy = Task.async(fn -> PyPort.eval("import time; time.sleep(0.2)", %{}, server: server) end)
          assert {:error, %Error{kind: :python} = error} = PyPort.eval(code, %{}, server: server)
          assert Exception.message(error) =~ "#{file} hides Python's own module #{unquote(name)}: rename it"
          assert {:ok, nil} = Task.await(busy)
        end

        GenServer.stop(server)
      end
    end

    for name <- ~w(traceback token) do
      test "#{name}.py is named where a failure is described", %{tmp_dir: dir} do
        file = Path.join(dir, unquote(name) <> ".py")
        File.write!(file, "")
        server = start(cd: dir)
        assert {:error, error} = PyPort.eval("1 / 0", %{}, server: server)
        assert error.type == "ZeroDivisionError"
        # A traceback needs no tokens from Python 3.13 on.
        whole? = unquote(name) == "token" and error.traceback != nil
        assert whole? or Exception.message(error) =~ "#{file} hides Python's own module #{unquote(name)}"
        GenServer.stop(server)
      end
    end

    # Python itself, or the server, needs these to start.
    for name <- ~w(types enum select) do
      test "#{name}.py is named where it keeps Python from starting", %{tmp_dir: dir} do
        file = Path.join(dir, unquote(name) <> ".py")
        server = start(python_path(dir, Path.basename(file), ""))

        case PyPort.eval("1", %{}, server: server) do
          {:error, %Error{kind: :unavailable} = error} ->
            assert Exception.message(error) =~ "#{file} hides Python's own module #{unquote(name)}"

          # A Python that has it built in, or does not need it, starts.
          {:ok, 1} ->
            :ok
        end
      end
    end

    test "a module of one's own of another name is none of them", %{tmp_dir: dir} do
      File.write!(Path.join(dir, "mine.py"), "")
      server = start(cd: dir)
      assert {:error, error} = PyPort.eval("import mine; mine.nothing", %{}, server: server)
      refute Exception.message(error) =~ "hides"
      GenServer.stop(server)
    end
  end

  describe "init_code" do
    defp init(code, options \\ []), do: start([init_code: code] ++ options)

    test "may await" do
      server = init("import asyncio\nawait asyncio.sleep(0)\nx = 5")
      assert PyPort.eval("x", %{}, server: server) == {:ok, 5}
      GenServer.stop(server)
    end

    test "that gives an awaitable is awaited" do
      server =
        init("""
        import asyncio

        async def start():
            global queue
            queue = asyncio.Queue()
            await queue.put(3)

        start()
        """)

      # On the loop of requests, to which the queue belongs.
      assert PyPort.eval("await queue.get()", %{}, server: server) == {:ok, 3}
      GenServer.stop(server)
    end

    test "may create tasks, which go on" do
      server =
        init("""
        import asyncio
        ticks = []

        async def tick():
            while True:
                ticks.append(len(ticks))
                await asyncio.sleep(0.001)

        task = None
        async def start():
            global task
            task = asyncio.create_task(tick())

        await start()
        """)

      code =
        "n = len(ticks)\nimport asyncio\nwhile len(ticks) < n + 10: await asyncio.sleep(0.001)\ntask.done()"

      assert PyPort.eval(code, %{}, server: server) == {:ok, false}
      GenServer.stop(server)
    end

    test "that fails after it has awaited says where" do
      server = init("import asyncio\nawait asyncio.sleep(0)\n1 / 0")
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: server)
      assert Exception.message(error) =~ ~s(File "<init_code>", line 3, in <module>)
      assert Exception.message(error) =~ "ZeroDivisionError"
    end

    test "is told of a task on a loop that nothing runs" do
      server =
        init("""
        import asyncio
        async def lost(): pass
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.create_task(lost())
        """)

      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: server)
      assert Exception.message(error) =~ "lost()"
      assert Exception.message(error) =~ "on a loop that does not run, so it would never begin"
    end

    test "may have run a loop of its own" do
      code = """
      import asyncio
      async def three(): return 3
      loop = asyncio.new_event_loop()
      asyncio.set_event_loop(loop)
      a = loop.run_until_complete(three())
      """

      server = init(code)
      assert PyPort.eval("a + loop.run_until_complete(three())", %{}, server: server) == {:ok, 6}
      GenServer.stop(server)
    end

    test "cannot wait for Elixir, and its tasks can" do
      call = "port_server.call('Enum', 'sum', [[1, 2]])"
      server = init("import port_server\nawait #{call}", allow: [Enum])
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: server)
      assert Exception.message(error) =~ "init_code cannot wait for a call into the BEAM"

      server =
        init(
          """
          import asyncio, port_server
          sums = []
          async def ask(): sums.append(await #{call})
          async def start():
              global task
              task = asyncio.create_task(ask())
          await start()
          """,
          allow: [Enum]
        )

      assert eventually(fn -> PyPort.eval("sums", %{}, server: server) == {:ok, [3]} end)
      GenServer.stop(server)
    end

    test "is no generator" do
      server = init("yield 1")
      assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, server: server)
      assert Exception.message(error) =~ "without a top-level yield"
    end
  end
end
