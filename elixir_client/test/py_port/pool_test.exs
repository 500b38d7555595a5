defmodule PyPort.PoolTest do
  # Several real Pythons behind one name: who works, who is replaced, who dies, and that each request has one outcome.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import ExUnit.CaptureLog
  import PyPort.Test.Pools
  import PyPort.Test.Processes

  alias PyPort.{Error, Pool, Status}

  doctest PyPort.Pool

  @pid "import os; os.getpid()"
  # One that lasts until the file is there, and so is under way for as long as a test wants.
  @until_file "import os, time\nwhile not os.path.exists(path): time.sleep(0.005)\nos.getpid()"

  defp until_file(pool, path, options \\ []) do
    options = [server: pool, timeout: 20_000] ++ options
    Task.async(fn -> PyPort.eval(@until_file, %{path: path}, options) end)
  end

  defp path,
    do: Path.join(System.tmp_dir!(), "py_port_pool_#{System.unique_integer([:positive])}_#{System.pid()}")

  defp release(path) do
    File.write!(path, "")
    on_exit(fn -> File.rm(path) end)
  end

  describe "a pool goes wherever a server goes" do
    test "by name and by pid, in eval, call, stream, sessions and status" do
      pool = start_pool(size: 2, init_code: "base = 40")

      for server <- [pool, Process.whereis(pool)] do
        assert PyPort.eval("base + n", %{n: 2}, server: server) == {:ok, 42}
        assert PyPort.call("math:gcd", [12, 18], %{}, server: server) == {:ok, 6}
        assert "yield base" |> PyPort.stream(%{}, server: server) |> Enum.to_list() == [40]
        assert {:ok, session} = PyPort.open_session(server: server)
        assert {:ok, nil} = PyPort.eval("x = 1", %{}, session: session)
        assert {:ok, 1} = PyPort.eval("x", %{}, session: session)
        assert [%Status{os_pid: one}, %Status{os_pid: other}] = PyPort.status(server)
        assert Enum.sort([one, other]) == Enum.sort(os_pids(pool))
      end
    end

    test "objects lead to their server, with and without the name of its pool" do
      pool = start_pool(size: 2)

      for _ <- 1..4 do
        object = PyPort.eval!("[1, 2]", %{}, server: pool, return: :object)
        assert PyPort.call({object, "__len__"}) == {:ok, 2}
        assert PyPort.call({object, "__len__"}, [], %{}, server: pool) == {:ok, 2}
        assert PyPort.eval("len(o)", %{o: object}, server: pool) == {:ok, 2}
        assert object.server in Pool.servers(pool)
      end
    end

    test "functions among the values are called, nested requests included" do
      pool = start_pool(size: 2)
      nested = fn n -> PyPort.eval!("n + 1", %{n: n}, server: pool) end
      assert PyPort.eval("[f(n) for n in range(5)]", %{f: nested}, server: pool) == {:ok, [1, 2, 3, 4, 5]}
    end

    test "an option that does not exist is told with those that do" do
      assert_raise ArgumentError,
                   ~r/unknown option :sise for PyPort.Pool. Did you mean :size\?.*:max_rss/,
                   fn ->
                     Pool.start_link(sise: 2)
                   end

      assert_raise ArgumentError, ~r/:max_age must be milliseconds/, fn -> Pool.start_link(max_age: 0) end
      assert_raise ArgumentError, ~r/size of a pool must be a number/, fn -> Pool.resize(:any, -1) end
    end

    test "its name is free again, and answered for, when it has been stopped" do
      {:ok, pool} = Pool.start_link(name: :pool_that_stops, size: 1)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: pool)
      [os_pid] = os_pids(pool)
      Supervisor.stop(pool)
      assert gone?(os_pid)
      assert {:error, %Error{kind: :unavailable, begun: false}} = PyPort.eval("1", %{}, server: pool)
      assert {:error, %Error{kind: :unavailable}} = PyPort.eval("1", %{}, server: :pool_that_stops)
      assert {:error, %Error{kind: :unavailable}} = Pool.resize(:pool_that_stops, 2)
      assert [%Status{state: :down}] = PyPort.status(:pool_that_stops)
      assert :persistent_term.get({PyPort.Registry, pool}, :gone) == :gone
    end
  end

  describe "dispatch" do
    test "requests go to servers that have nothing to do" do
      pool = start_pool(size: 3)
      file = path()
      busy = for _ <- 1..2, do: until_file(pool, file)

      assert eventually(fn ->
               pool |> PyPort.status() |> Enum.map(& &1.pending) |> Enum.sort() == [0, 1, 1]
             end)

      free = for _ <- 1..10, do: PyPort.eval!(@pid, %{}, server: pool)
      assert [one] = Enum.uniq(free)
      release(file)

      assert Enum.sort([{:ok, one} | Task.await_many(busy)]) ==
               pool |> os_pids() |> Enum.map(&{:ok, &1}) |> Enum.sort()
    end

    test "requests made while the pool starts wait for it, and init_code has run" do
      {:ok, pool} = Pool.start_link(size: 2, init_code: "import time; time.sleep(0.2); ready = True")
      assert PyPort.eval("ready", %{}, server: pool) == {:ok, true}
    end

    test "a request that finds no server within its timeout has an error" do
      {:ok, pool} = Pool.start_link(size: 1, init_code: "import time; time.sleep(20)", shutdown_grace: 0)

      assert {:error, %Error{kind: :timeout, begun: false}} =
               PyPort.eval("1", %{}, server: pool, timeout: 100)
    end

    test "a Python that cannot be started is told of at once, with the reason" do
      capture_log(fn ->
        {:ok, pool} = Pool.start_link(size: 2, python: "/nowhere/python3")

        assert {:error, %Error{kind: :unavailable, begun: false} = error} =
                 PyPort.eval("1", %{}, server: pool)

        assert Exception.message(error) =~ "/nowhere/python3"
        assert [%Status{state: :down}, %Status{state: :down}] = PyPort.status(pool)
      end)
    end
  end

  describe "replacing servers" do
    test "after max_requests another works before the old one is gone, and nothing fails meanwhile" do
      pool = start_pool(size: 2, max_requests: 50)
      before = os_pids(pool)
      # Each of these requests has an answer.
      assert eventually(fn -> PyPort.eval!(@pid, %{}, server: pool) not in before end, 1_000)

      assert eventually(
               fn -> PyPort.eval!(@pid, %{}, server: pool) && os_pids(pool) -- before == os_pids(pool) end,
               1_000
             )

      assert Enum.all?(before, &gone?/1)
      assert length(os_pids(pool)) == 2
    end

    test "by age one after the other, never all at once" do
      pool = start_pool(size: 2, max_age: 300)
      before = os_pids(pool)

      left =
        Stream.repeatedly(fn ->
          Process.sleep(5)
          Enum.count(before, &(&1 in os_pids(pool)))
        end)
        |> Enum.find_value(fn left -> if left < 2, do: left end)

      assert left == 1
      assert Enum.all?(before, &gone?/1)
    end

    test "by memory, which the code has taken and not given back" do
      pool = start_pool(size: 1, max_rss: 150_000_000, heartbeat_interval: 100)
      [before] = os_pids(pool)

      hog =
        "import builtins; builtins.hog = bytearray(200_000_000); builtins.hog[::4096] = b'x' * len(builtins.hog[::4096])"

      assert {:ok, nil} = PyPort.eval(hog, %{}, server: pool)
      assert eventually(fn -> os_pids(pool) != [before] end, 1_000)
      assert gone?(before)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: pool)
    end

    test "a request under way is finished by the server that is being replaced" do
      pool = start_pool(size: 1, max_requests: 1)
      [before] = os_pids(pool)
      file = path()
      task = until_file(pool, file)
      assert eventually(fn -> os_pids(pool) not in [[], [before]] end, 1_000)

      assert [%Status{draining: nil}, %Status{draining: :max_requests, os_pid: ^before, pending: 1}] =
               PyPort.status(pool)

      release(file)
      assert Task.await(task) == {:ok, before}
      assert gone?(before)
    end

    test "a session and an object keep their server until they are gone" do
      pool = start_pool(size: 1, max_requests: 3)
      [before] = os_pids(pool)
      {:ok, session} = PyPort.open_session(server: pool)
      {:ok, nil} = PyPort.eval("x = 7", %{}, session: session)
      object = PyPort.eval!("object()", %{}, session: session)
      assert eventually(fn -> os_pids(pool) not in [[], [before]] end, 1_000)

      assert {:ok, 7} = PyPort.eval("x", %{}, session: session)
      PyPort.close_session(session)
      assert {:ok, "object"} = PyPort.eval("type(o).__name__", %{o: object})
      assert alive?(before)
      PyPort.release(object)
      assert gone?(before)
    end

    test "what is left after drain_timeout ends, and says so" do
      log =
        capture_log(fn ->
          pool = start_pool(size: 1, max_requests: 1, drain_timeout: 100)
          [before] = os_pids(pool)
          {:ok, session} = PyPort.open_session(server: pool)
          assert eventually(fn -> not alive?(before) end, 1_000)
          assert {:error, %Error{kind: :unavailable} = error} = PyPort.eval("1", %{}, session: session)
          assert Exception.message(error) =~ "has ended"
        end)

      assert log =~ "when its drain_timeout was over"
    end

    test "a replacement that cannot start leaves the old server at work" do
      file = path()
      release(file)
      code = "import os\nif not os.path.exists(#{inspect(file)}): raise RuntimeError('gone')"

      log =
        capture_log(fn ->
          pool = start_pool(size: 1, max_age: 1_500, init_code: code)
          [before] = os_pids(pool)
          File.rm!(file)
          # It has been tried, and given up for a while.
          manager = pool |> Supervisor.which_children() |> List.keyfind(:manager, 0) |> elem(1)
          assert eventually(fn -> :sys.get_state(manager).slots[1].rest_until != nil end, 3_000)
          assert PyPort.eval(@pid, %{}, server: pool) == {:ok, before}
        end)

      assert log =~ "the old one goes on"
    end
  end

  describe "crashes" do
    @tag timeout: 120_000
    test "each server killed in turn under load costs its own requests, and every request has one outcome" do
      pool = start_pool(size: 3)
      supervisor = Process.whereis(PyPort.Supervisor)
      # Whether it is over, and how many outcomes there have been.
      over = :atomics.new(2, [])
      parent = self()

      load =
        for caller <- 1..8 do
          Task.async(fn ->
            1
            |> Stream.iterate(&(&1 + 1))
            |> Stream.take_while(fn _n -> :atomics.get(over, 1) == 0 end)
            |> Enum.map(fn n ->
              code = "import time; time.sleep(0.003); (caller, n)"
              outcome = PyPort.eval(code, %{caller: caller, n: n}, server: pool)
              :atomics.add(over, 2, 1)
              send(parent, {:outcome, caller, n, outcome})
              {caller, n, outcome}
            end)
          end)
        end

      for index <- [0, 1, 2, 0, 1, 2] do
        servers = fn -> Pool.servers(pool) end
        # A hundred between two kills, of which each costs as many as there are callers at the most.
        until = :atomics.get(over, 2) + 100
        assert eventually(fn -> :atomics.get(over, 2) >= until end, 1_000)

        assert eventually(
                 fn -> length(servers.()) == 3 and Enum.all?(os_pids(pool), &(&1 && alive?(&1))) end,
                 1_000
               )

        before = servers.()
        killed = Enum.at(before, index)
        signal(PyPort.Server.os_pid(killed), "KILL")
        assert eventually(fn -> killed not in servers.() end, 500)
        # The others are who they were.
        assert List.delete(before, killed) -- servers.() == []
      end

      :atomics.put(over, 1, 1)
      outcomes = load |> Task.await_many(60_000) |> List.flatten()

      for {caller, n, outcome} <- outcomes do
        case outcome do
          {:ok, value} -> assert value == {caller, n}
          # Where the end of the pipe is seen before the status, the signal may stay unknown.
          {:error, %Error{kind: kind}} -> assert kind in [:killed, :exited]
        end

        assert_received {:outcome, ^caller, ^n, ^outcome}
      end

      refute_received {:outcome, _caller, _n, _outcome}
      # Each kill ends what that server had, which is no more than there are callers.
      lost = Enum.count(outcomes, &match?({_, _, {:error, _}}, &1))
      assert lost <= 8 * 6 and length(outcomes) > 10 * lost
      assert Process.whereis(PyPort.Supervisor) == supervisor
      assert eventually(fn -> length(Pool.servers(pool)) == 3 end, 1_000)
      assert Enum.all?(1..30, fn _ -> PyPort.eval("1", %{}, server: pool) == {:ok, 1} end)
    end

    test "a pool whose servers keep ending backs off, tells why, and works again when they do" do
      pool = start_pool(size: 1)
      manager = pool |> Supervisor.which_children() |> List.keyfind(:manager, 0) |> elem(1)

      log =
        capture_log(fn ->
          for _ <- 1..4 do
            assert {:error, %Error{kind: :exited, exit_status: 3}} =
                     PyPort.eval("import os; os._exit(3)", %{}, server: pool, timeout: 10_000)
          end

          # 400 ms until the next try.
          assert {:error, %Error{kind: :unavailable, begun: false} = error} =
                   PyPort.eval("1", %{}, server: pool, timeout: 100)

          assert Exception.message(error) =~ "has ended 4 times in a row"
          assert Exception.message(error) =~ "exit status 3"
          assert [%Status{state: :down}] = PyPort.status(pool)
        end)

      assert length(String.split(log, "times in a row")) == 2
      assert PyPort.eval("1", %{}, server: pool) == {:ok, 1}
      assert Process.alive?(manager)
    end

    test "a server that is started anew after a cancelled request has not crashed, however often that happens" do
      pool = start_pool(size: 1, after_cancel: :restart)

      log =
        capture_log(fn ->
          for _ <- 1..4 do
            assert {:ok, 1} = PyPort.eval("1", %{}, server: pool, timeout: 20_000)
            [os_pid] = os_pids(pool)

            assert {:error, %Error{kind: :timeout}} =
                     PyPort.eval("while True: pass", %{}, server: pool, timeout: 50)

            assert gone?(os_pid)
          end
        end)

      refute log =~ "times in a row"
      assert PyPort.eval("1", %{}, server: pool) == {:ok, 1}
    end

    test "a manager that ends leaves the servers at work, and the next one finds them" do
      pool = start_pool(size: 2)
      before = os_pids(pool)
      manager = pool |> Supervisor.which_children() |> List.keyfind(:manager, 0) |> elem(1)
      Process.exit(manager, :kill)
      assert {:ok, _pid} = PyPort.eval(@pid, %{}, server: pool)
      assert eventually(fn -> Enum.sort(os_pids(pool)) == Enum.sort(before) end)
      assert eventually(fn -> Pool.resize(pool, 1) == :ok end)
      assert eventually(fn -> length(PyPort.status(pool)) == 1 end)
    end
  end

  describe "resizing" do
    test "up: new servers take work; down: what they do is finished first" do
      pool = start_pool(size: 1)
      assert :ok = Pool.resize(pool, 3)
      assert eventually(fn -> length(os_pids(pool)) == 3 end, 1_000)
      files = for _ <- 1..3, do: path()
      tasks = for file <- files, do: until_file(pool, file)
      assert eventually(fn -> pool |> PyPort.status() |> Enum.all?(&(&1.pending == 1)) end)
      all = os_pids(pool)

      assert :ok = Pool.resize(pool, 1)
      assert [kept] = os_pids(pool)
      assert pool |> PyPort.status() |> Enum.count(&(&1.draining == :resized)) == 2
      Enum.each(files, &release/1)
      assert tasks |> Task.await_many() |> Enum.sort() == all |> Enum.map(&{:ok, &1}) |> Enum.sort()
      assert Enum.all?(all -- [kept], &gone?/1)
      assert eventually(fn -> match?([%Status{os_pid: ^kept}], PyPort.status(pool)) end)
    end

    test "down to none: requests are told so; and up again" do
      pool = start_pool(size: 1)
      assert :ok = Pool.resize(pool, 0)
      assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, server: pool)
      assert message =~ "its size is 0"
      assert :ok = Pool.resize(pool, 1)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: pool)
    end

    @tag timeout: 120_000
    test "no request is lost or answered twice while servers come and go under load" do
      pool = start_pool(size: 2)

      load =
        for caller <- 1..6 do
          Task.async(fn ->
            for n <- 1..400,
                do: PyPort.eval("n + caller", %{n: n, caller: caller}, server: pool) == {:ok, n + caller}
          end)
        end

      for size <- [4, 1, 3, 2, 1, 2] do
        Pool.resize(pool, size)
        Process.sleep(150)
      end

      assert load |> Task.await_many(60_000) |> List.flatten() |> Enum.all?()
      assert eventually(fn -> length(PyPort.status(pool)) == 2 end, 1_000)
    end
  end
end
