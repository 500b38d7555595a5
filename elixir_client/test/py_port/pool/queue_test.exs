defmodule PyPort.Pool.QueueTest do
  # A request of a pool is bound to a server as late as it can be.
  use ExUnit.Case, async: true

  alias PyPort.{Error, Pool}
  alias PyPort.Pool.Queue

  defp pool(options) do
    options = Keyword.put_new(options, :size, 2)
    {:ok, pool} = start_supervised({Pool, options}, id: make_ref())
    eventually(fn -> length(Pool.servers(pool)) == options[:size] end)
    pool
  end

  defp eventually(condition, left \\ 400) do
    cond do
      condition.() -> :ok
      left == 0 -> flunk("the condition did not come true")
      true -> Process.sleep(10) && eventually(condition, left - 1)
    end
  end

  # Runs until the file is there, and tells on which Python.
  @gate "import os, time\nopen(path + '.begun', 'w').close()\nwhile not os.path.exists(path): time.sleep(0.002)\nos.getpid()"

  defp block(pool, path, options \\ []) do
    task =
      Task.async(fn ->
        PyPort.eval(@gate, %{path: path}, [server: pool, timeout: 30_000] ++ options)
      end)

    eventually(fn -> File.exists?(path <> ".begun") end)
    task
  end

  defp open(path), do: File.write!(path, "")

  describe "behind a long request" do
    @describetag :tmp_dir

    test "none waits while another server is free", %{tmp_dir: dir} do
      pool = pool([])
      job = fn -> PyPort.eval("import time; time.sleep(0.02)", %{}, server: pool) end
      timed = fn -> job |> :timer.tc() |> elem(0) end
      alone = Enum.max(for _ <- 1..5, do: timed.())
      long = block(pool, Path.join(dir, "a"))

      waits =
        1..10
        |> Enum.map(fn _caller -> Task.async(fn -> for _ <- 1..10, do: timed.() end) end)
        |> Task.await_many(20_000)
        |> List.flatten()

      # 10 callers on one server: each waits for nine others.
      assert Enum.max(waits) < 20 * alone
      refute Task.yield(long, 0)
      open(Path.join(dir, "a"))
      assert {:ok, _pid} = Task.await(long)
    end

    test "one that was pipelined with it is taken back", %{tmp_dir: dir} do
      pool = pool([])
      path = Path.join(dir, "a")

      # Tiny requests keep both servers quick, so that each takes more than it can begin; then one of them becomes long.
      tiny =
        for _ <- 1..16 do
          Task.async(fn ->
            for _ <- 1..200 do
              {us, {:ok, 2}} = :timer.tc(fn -> PyPort.eval("1 + 1", %{}, server: pool, timeout: 20_000) end)
              us
            end
          end)
        end

      long = block(pool, path)
      assert tiny |> Task.await_many(20_000) |> List.flatten() |> Enum.max() < 1_000_000
      refute Task.yield(long, 0)
      open(path)
      assert {:ok, _pid} = Task.await(long)
    end

    test "requests get their turns in the order of arrival", %{tmp_dir: dir} do
      pool = pool(size: 1, init_code: "import sys; sys.seen = []")
      path = Path.join(dir, "a")
      long = block(pool, path)

      # Each takes so long that the server gives one turn at a time; of several at once the order is not kept.
      waiting =
        for n <- 1..5 do
          code = "import time; sys.seen.append(n); time.sleep(0.005)"
          task = Task.async(fn -> PyPort.eval(code, %{n: n}, server: pool) end)
          eventually(fn -> queued(pool) == n end)
          task
        end

      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Task.await_many(waiting) == List.duplicate({:ok, nil}, 5)
      assert PyPort.eval!("sys.seen", %{}, server: pool) == [1, 2, 3, 4, 5]
    end

    for {name, asked} <- [
          {"a request", quote(do: PyPort.eval!("7", %{}, server: var!(pool), timeout: 20_000))},
          {"a stream",
           quote(do: PyPort.stream("yield 7", %{}, server: var!(pool), timeout: 20_000) |> Enum.at(0))}
        ] do
      test "#{name} is taken back as often as it finds itself there", %{tmp_dir: dir} do
        pool = pool(size: 1)
        [server] = Pool.servers(pool)
        {:ok, connection} = PyPort.Registry.fetch(server)
        path = Path.join(dir, "a")
        long = block(server, path)
        {:ok, %{queue: queue}} = PyPort.Registry.fetch(pool)
        asked = Task.async(fn -> unquote(asked) end)

        for sent <- 2..4 do
          eventually(fn -> queued(pool) == 1 end)
          # A turn on a server that turns out to be busy.
          Queue.give(queue, connection, 1)
          eventually(fn -> PyPort.Connection.requests(connection) == sent end)
        end

        eventually(fn -> queued(pool) == 1 end)
        refute Task.yield(asked, 0)
        open(path)
        assert {:ok, _pid} = Task.await(long)
        assert Task.await(asked) == 7
      end
    end

    test "an error is a quick answer, and a request that was taken back is none", %{tmp_dir: dir} do
      pool = pool(size: 1)
      [server] = Pool.servers(pool)
      {:ok, connection} = PyPort.Registry.fetch(server)

      quiet_ms = fn ->
        System.convert_time_unit(PyPort.Connection.quiet(connection), :native, :millisecond)
      end

      Process.sleep(50)
      {:error, %Error{kind: :python}} = PyPort.eval("1 / 0", %{}, server: pool)
      assert quiet_ms.() < 50

      path = Path.join(dir, "a")
      long = block(server, path)
      # Quick for a moment, so that the request is sent behind the long one.
      asked =
        Task.async(fn ->
          PyPort.Connection.replied(connection)
          PyPort.eval("1", %{}, server: pool)
        end)

      eventually(fn -> queued(pool) == 1 end)
      Process.sleep(50)
      assert PyPort.Connection.requests(connection) == 3
      assert quiet_ms.() >= 50
      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Task.await(asked) == {:ok, 1}
    end

    test "a session, an object, and a session that is opened go where they must", %{tmp_dir: dir} do
      pool = pool([])
      {:ok, session} = PyPort.open_session(server: pool)
      {:ok, nil} = PyPort.eval("x = 1", %{}, session: session)
      object = PyPort.eval!("[1]", %{}, server: pool, return: :object)
      tasks = for name <- ["a", "b"], do: block(pool, Path.join(dir, name))

      {:ok, another} = PyPort.open_session(server: pool)

      asked = [
        Task.async(fn -> PyPort.eval("x", %{}, session: session) end),
        Task.async(fn -> PyPort.call("builtins:len", [object]) end),
        Task.async(fn -> PyPort.eval("5", %{}, session: another) end)
      ]

      for name <- ["a", "b"], do: open(Path.join(dir, name))
      assert Task.await_many(asked) == [{:ok, 1}, {:ok, 1}, {:ok, 5}]
      assert [{:ok, _}, {:ok, _}] = Task.await_many(tasks)
    end

    test "a request of a callback runs on the server that has called it" do
      pool = pool(size: 2)
      nested = fn n -> PyPort.eval!("n + 1", %{n: n}, server: pool) end

      # More than there are servers: each is in a callback while it is asked.
      tasks =
        for n <- 1..8 do
          Task.async(fn -> PyPort.eval("f(n)", %{f: nested, n: n}, server: pool, timeout: 10_000) end)
        end

      assert Task.await_many(tasks, 15_000) == for(n <- 1..8, do: {:ok, n + 1})
    end

    test "requests of callbacks run while others wait, and where as many wait as may", %{tmp_dir: dir} do
      pool = pool(size: 1, max_queue: 2)
      test = self()

      asking = fn n ->
        send(test, {:asking, self()})
        receive do: (:go -> PyPort.eval!("n + 1", %{n: n}, server: pool))
      end

      long = Task.async(fn -> PyPort.eval("f(1)", %{f: asking}, server: pool, timeout: 20_000) end)
      assert_receive {:asking, worker}, 5_000
      path = Path.join(dir, "ran")
      code = "open(path, 'w').close()"
      waiting = for _ <- 1..2, do: Task.async(fn -> PyPort.eval(code, %{path: path}, server: pool) end)
      eventually(fn -> queued(pool) == 2 end)
      refute File.exists?(path)
      send(worker, :go)
      assert Task.await(long) == {:ok, 2}
      assert Task.await_many(waiting) == [{:ok, nil}, {:ok, nil}]
    end

    test "what awaits keeps no other from beginning" do
      pool = pool([])

      {us, answers} =
        :timer.tc(fn ->
          1..100
          |> Enum.map(fn n ->
            Task.async(fn ->
              PyPort.eval("import asyncio; await asyncio.sleep(0.3); n", %{n: n},
                server: pool,
                timeout: 20_000
              )
            end)
          end)
          |> Task.await_many(20_000)
        end)

      assert answers == for(n <- 1..100, do: {:ok, n})
      assert us < 3_000_000
    end

    test "a stream whose consumer is slow keeps no other from beginning" do
      pool = pool(size: 1)
      stream = PyPort.stream("range(10_000)", %{}, server: pool, credit: 4)
      assert [0, 1] = Enum.take(stream, 2)

      seen =
        stream
        |> Elixir.Stream.take(3)
        |> Enum.map(fn item -> {item, PyPort.eval!("1 + 1", %{}, server: pool, timeout: 2_000)} end)

      assert seen == [{0, 2}, {1, 2}, {2, 2}]
    end

    test "threads are as many places", %{tmp_dir: dir} do
      pool = pool(size: 1, threads: 2)
      first = block(pool, Path.join(dir, "a"))
      assert PyPort.eval("1 + 1", %{}, server: pool, timeout: 2_000) == {:ok, 2}
      second = block(pool, Path.join(dir, "b"))
      third = Task.async(fn -> PyPort.eval("3", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 1 end)
      open(Path.join(dir, "b"))
      assert Task.await(third) == {:ok, 3}
      open(Path.join(dir, "a"))
      assert [{:ok, _}, {:ok, _}] = Task.await_many([first, second])
    end
  end

  describe "the end of a server" do
    @describetag :tmp_dir

    test "leaves nothing to be asked again when the time is up", %{tmp_dir: dir} do
      pool = pool([])
      path = Path.join(dir, "a")
      [one, two] = Pool.servers(pool)
      {:ok, connection} = PyPort.Registry.fetch(one)
      other = block(two, path)
      # Stopped, so that it begins nothing.
      System.cmd("kill", ["-STOP", "#{connection.os_pid}"])
      code = "open(path, 'w').close()"
      options = [server: pool, retry: 3, timeout: 100]
      asked = Task.async(fn -> PyPort.eval(code, %{path: Path.join(dir, "ran")}, options) end)
      eventually(fn -> PyPort.Connection.pending(connection) == 1 end)
      Process.sleep(150)
      open(path)
      assert {:ok, _pid} = Task.await(other)
      System.cmd("kill", ["-9", "#{connection.os_pid}"])
      assert {:error, %Error{kind: :killed, begun: false}} = Task.await(asked)
      assert {:ok, 1} = PyPort.eval("1", %{}, server: pool)
      refute File.exists?(Path.join(dir, "ran"))
    end

    test "takes with it only what it has begun", %{tmp_dir: dir} do
      pool = pool([])
      tasks = for name <- ["a", "b"], do: block(pool, Path.join(dir, name))
      waiting = for n <- 1..10, do: Task.async(fn -> PyPort.eval("n", %{n: n}, server: pool) end)
      eventually(fn -> queued(pool) == 10 end)

      [%{os_pid: os_pid} | _] = PyPort.status(pool)
      System.cmd("kill", ["-9", "#{os_pid}"])

      assert Task.await_many(waiting) == for(n <- 1..10, do: {:ok, n})
      for name <- ["a", "b"], do: open(Path.join(dir, name))
      outcomes = Task.await_many(tasks)
      assert [{:error, %Error{begun: true}}] = Enum.filter(outcomes, &match?({:error, _}, &1))
    end

    test "says of what was sent to it that it has not begun" do
      pool = pool(size: 1)
      {:ok, connection} = pool |> Pool.servers() |> hd() |> PyPort.Registry.fetch()
      System.cmd("kill", ["-STOP", "#{connection.os_pid}"])
      asked = Task.async(fn -> PyPort.eval("1", %{}, server: pool) end)
      eventually(fn -> PyPort.Connection.pending(connection) == 1 end)
      System.cmd("kill", ["-9", "#{connection.os_pid}"])
      assert {:error, %Error{kind: :killed, begun: false}} = Task.await(asked)
    end

    test "leaves what it has not begun to another, with :retry" do
      pool = pool(size: 1)
      {:ok, connection} = pool |> Pool.servers() |> hd() |> PyPort.Registry.fetch()
      os_pid = connection.os_pid
      # Stopped, so that it begins nothing.
      System.cmd("kill", ["-STOP", "#{os_pid}"])

      [with_retry, without] =
        for retry <- [1, 0] do
          task = Task.async(fn -> PyPort.eval("1 + 1", %{}, server: pool, retry: retry, timeout: 20_000) end)
          eventually(fn -> PyPort.Connection.pending(connection) == 1 or queued(pool) > 0 end)
          if retry == 1, do: :timer.sleep(1)
          task
        end

      System.cmd("kill", ["-9", "#{os_pid}"])
      assert Task.await(with_retry, 20_000) == {:ok, 2}
      assert Task.await(without, 20_000) == {:ok, 2}
    end
  end

  describe "the queue" do
    @describetag :tmp_dir

    test "has a limit, a length and a time", %{tmp_dir: dir} do
      pool = pool(size: 1, max_queue: 2)
      path = Path.join(dir, "a")
      long = block(pool, path)
      waiting = for n <- 1..2, do: Task.async(fn -> PyPort.eval("n", %{n: n}, server: pool) end)
      eventually(fn -> queued(pool) == 2 end)

      assert {:error, %Error{kind: :overloaded, begun: false, message: message}} =
               PyPort.eval("3", %{}, server: pool)

      assert message =~ "max_queue"
      Process.sleep(20)
      assert [%{pool_queue: 2, pool_wait_ms: ms}] = PyPort.status(pool)
      assert ms >= 20
      open(path)
      assert {:ok, _} = Task.await(long)
      assert waiting |> Task.await_many() |> Enum.sort() == [{:ok, 1}, {:ok, 2}]
      assert [%{pool_queue: 0, pool_wait_ms: 0}] = PyPort.status(pool)
    end

    test "tells telemetry of its length, and how long each request has waited", %{tmp_dir: dir} do
      name = :"pool_#{System.unique_integer([:positive])}"
      PyPort.Test.Telemetry.listen(name)
      pool = pool(name: name, size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      waiting = Task.async(fn -> PyPort.eval("1", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 1 end)
      late = PyPort.eval("1", %{}, server: pool, timeout: 20)
      assert {:error, %Error{kind: :timeout, begun: false}} = late
      metadata = %{pool: pool, name: name}
      error = Map.put(metadata, :result, :error)
      assert_receive {:event, [:py_port, :pool, :wait], %{queue: 1, duration: native}, ^error}
      assert System.convert_time_unit(native, :native, :millisecond) in 19..500
      assert_receive {:event, [:py_port, :pool, :queue], %{length: 1, wait: wait}, ^metadata}, 2_000
      assert wait > 0
      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Task.await(waiting) == {:ok, 1}
      ok = Map.put(metadata, :result, :ok)
      assert_receive {:event, [:py_port, :pool, :wait], %{queue: 0}, ^ok}
    end

    test "takes in what is more than max_pending" do
      pool = pool(max_pending: 2)

      outcomes =
        1..32
        |> Enum.map(fn _ ->
          Task.async(fn -> for _ <- 1..50, do: PyPort.eval("1", %{}, server: pool, timeout: 20_000) end)
        end)
        |> Task.await_many(20_000)
        |> List.flatten()

      assert Enum.frequencies(outcomes) == %{{:ok, 1} => 1600}
    end

    test "loses the callers that are dead or late, and nothing else", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)

      dead =
        for _ <- 1..3 do
          {:ok, pid} = Task.start(fn -> PyPort.eval("1", %{}, server: pool, timeout: :infinity) end)
          pid
        end

      eventually(fn -> queued(pool) == 3 end)

      assert {:error, %Error{kind: :timeout, begun: false, message: message}} =
               PyPort.eval("1", %{}, server: pool, timeout: 30)

      assert message =~ "no server of the pool was free"
      last = Task.async(fn -> PyPort.eval("4", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 4 end)
      for pid <- dead, do: Process.exit(pid, :kill)
      open(path)
      assert {:ok, _} = Task.await(long)
      assert Task.await(last) == {:ok, 4}
      assert queued(pool) == 0
    end

    test "takes no more than its limit, of callers that come together", %{tmp_dir: dir} do
      pool = pool(size: 1, max_queue: 5)
      path = Path.join(dir, "a")
      long = block(pool, path)
      test = self()

      callers =
        for n <- 1..200 do
          Task.async(fn ->
            receive do: (:go -> :ok)
            outcome = PyPort.eval("n", %{n: n}, server: pool)
            send(test, outcome)
            outcome
          end)
        end

      for %{pid: pid} <- callers, do: send(pid, :go)
      for _ <- 1..195, do: assert_receive({:error, %Error{kind: :overloaded}}, 5_000)
      assert queued(pool) == 5
      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Enum.count(Task.await_many(callers), &match?({:ok, _}, &1)) == 5
      assert counted(pool) == 0
    end

    test "counts no callers that are dead", %{tmp_dir: dir} do
      pool = pool(size: 1, max_queue: 3)
      path = Path.join(dir, "a")
      long = block(pool, path)
      # This one stays the first.
      first = Task.async(fn -> PyPort.eval("1", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 1 end)
      dead = for _ <- 1..2, do: spawn(fn -> PyPort.eval("1", %{}, server: pool, timeout: :infinity) end)
      eventually(fn -> queued(pool) == 3 end)
      assert {:error, %Error{kind: :overloaded}} = PyPort.eval("2", %{}, server: pool)
      for pid <- dead, do: Process.exit(pid, :kill)
      eventually(fn -> queued(pool) == 1 end)
      waiting = for n <- 2..3, do: Task.async(fn -> PyPort.eval("n", %{n: n}, server: pool) end)
      eventually(fn -> queued(pool) == 3 end)
      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Task.await_many([first | waiting]) == [{:ok, 1}, {:ok, 2}, {:ok, 3}]
      assert counted(pool) == 0
    end

    test "lets the living pass those that are dead", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      dead = for _ <- 1..3, do: spawn(fn -> PyPort.eval("1", %{}, server: pool, timeout: :infinity) end)
      eventually(fn -> queued(pool) == 3 end)
      for pid <- dead, do: Process.exit(pid, :kill)
      waiting = for n <- 1..20, do: Task.async(fn -> PyPort.eval("n", %{n: n}, server: pool) end)
      eventually(fn -> queued(pool) == 20 end)
      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Task.await_many(waiting) == for(n <- 1..20, do: {:ok, n})
      assert counted(pool) == 0
    end

    test "has its count right again, whatever a caller that was killed has left in it" do
      for wrong <- [1, -1] do
        queue = Queue.new()
        :ets.insert(queue.table, {{1, make_ref()}, self()})
        :atomics.put(queue.count, 1, 1 + wrong)
        # A caller may be just between its row and the count.
        assert Queue.tidy(queue, 0) == wrong
        assert :atomics.get(queue.count, 1) == 1 + wrong
        assert Queue.tidy(queue, wrong) == 0
        assert :atomics.get(queue.count, 1) == 1
      end
    end

    # A caller that is held up while it waits.
    defp suspended(pool, dir, options \\ []) do
      test = self()

      caller =
        spawn_link(fn ->
          code = "open(path, 'w').close()"
          outcome = PyPort.eval(code, %{path: Path.join(dir, "ran")}, [server: pool] ++ options)
          send(test, {outcome, Process.info(self(), :messages)})
        end)

      eventually(fn -> queued(pool) == 1 end)
      :erlang.suspend_process(caller)
      {:ok, %{queue: queue}} = PyPort.Registry.fetch(pool)
      for _ <- 1..5, do: Queue.wake(queue)
      caller
    end

    test "leaves no message with a caller whose turn comes", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      caller = suspended(pool, dir)
      open(path)
      assert {:ok, _pid} = Task.await(long)
      eventually(fn -> queued(pool) == 0 end)
      :erlang.resume_process(caller)
      assert_receive {{:ok, nil}, {:messages, []}}, 5_000
    end

    test "leaves no message with a caller that finds a server itself", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      caller = suspended(pool, dir)
      :ok = Pool.resize(pool, 2)
      eventually(fn -> length(Pool.servers(pool)) == 2 end)
      :erlang.resume_process(caller)
      assert_receive {{:ok, nil}, {:messages, []}}, 5_000
      open(path)
      assert {:ok, _pid} = Task.await(long)
    end

    test "goes on where a caller dies that has just been given its turn", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      caller = suspended(pool, dir)
      next = for n <- 1..3, do: Task.async(fn -> PyPort.eval("n", %{n: n}, server: pool) end)
      eventually(fn -> queued(pool) == 4 end)
      open(path)
      assert {:ok, _pid} = Task.await(long)
      Process.unlink(caller)
      Process.exit(caller, :kill)
      assert Task.await_many(next, 1_000) == [{:ok, 1}, {:ok, 2}, {:ok, 3}]
      refute File.exists?(Path.join(dir, "ran"))
      assert queued(pool) == 0 and counted(pool) == 0
    end

    test "passes on a turn that comes when the time is up", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      caller = suspended(pool, dir, timeout: 50)
      next = Task.async(fn -> PyPort.eval("2", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 2 end)
      Process.sleep(60)
      {:ok, connection} = pool |> Pool.servers() |> hd() |> PyPort.Registry.fetch()
      open(path)
      assert {:ok, _pid} = Task.await(long)
      eventually(fn -> queued(pool) <= 1 end)
      :erlang.resume_process(caller)
      assert_receive {{:error, %Error{kind: :timeout, begun: false}}, {:messages, []}}, 5_000
      assert Task.await(next) == {:ok, 2}
      # The one before it, and the one behind it.
      assert PyPort.Connection.requests(connection) == 2
      refute File.exists?(Path.join(dir, "ran"))
    end

    for how <- [:shutdown, :kill] do
      test "leaves no message of its end: #{how}", %{tmp_dir: dir} do
        Process.flag(:trap_exit, true)
        {:ok, pool} = Pool.start_link(size: 1, wait: true)
        long = block(pool, Path.join(dir, "a"))
        {:ok, %{queue: queue}} = PyPort.Registry.fetch(pool)
        test = self()

        for _ <- 1..3 do
          spawn_link(fn ->
            outcome = PyPort.eval("1", %{}, server: pool)
            send(test, {outcome, Process.info(self(), :messages)})
          end)
        end

        eventually(fn -> queued(pool) == 3 end)
        members = PyPort.Registry.fetch(pool) |> elem(1)
        Process.exit(pool, unquote(how))
        assert_receive {:EXIT, ^pool, _reason}, 5_000
        for _ <- 1..3, do: assert_receive({{:error, %Error{kind: :unavailable}}, {:messages, []}}, 5_000)
        # And of one that comes too late.
        assert {:error, %Error{kind: :unavailable}} = Queue.wait(members, nil, :infinity)
        assert Queue.wake(queue) == :ok
        assert {:error, %Error{}} = Task.await(long)
        refute_received {:DOWN, _, _, _, _}
        assert Queue.tidy(queue, 0) == 0
      end
    end

    test "keeps a caller whose turn was lost with the one that gave it", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      waiting = Task.async(fn -> PyPort.eval("1", %{}, server: pool, timeout: :infinity) end)
      eventually(fn -> queued(pool) == 1 end)
      {:ok, %{queue: queue}} = PyPort.Registry.fetch(pool)
      # As by a server that was killed in between.
      :ets.delete_all_objects(queue.table)
      :atomics.put(queue.count, 1, 0)
      open(path)
      assert {:ok, _pid} = Task.await(long)
      assert Task.await(waiting, 5_000) == {:ok, 1}
    end

    test "outlives the manager, and ends with the pool", %{tmp_dir: dir} do
      pool = pool(size: 1)
      path = Path.join(dir, "a")
      long = block(pool, path)
      waiting = Task.async(fn -> PyPort.eval("1", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 1 end)
      {:ok, %{manager: manager}} = PyPort.Registry.fetch(pool)
      Process.exit(manager, :kill)
      open(path)
      assert {:ok, _} = Task.await(long)
      assert Task.await(waiting) == {:ok, 1}

      long = block(pool, Path.join(dir, "b"))
      waiting = Task.async(fn -> PyPort.eval("1", %{}, server: pool) end)
      eventually(fn -> queued(pool) == 1 end)
      Supervisor.stop(pool)
      assert {:error, %Error{kind: :unavailable, begun: false}} = Task.await(waiting)
      assert {:error, %Error{}} = Task.await(long)
    end
  end

  defp queued(pool) do
    {:ok, %{queue: queue}} = PyPort.Registry.fetch(pool)
    {length, _oldest} = Queue.waiting(queue)
    length
  end

  defp counted(pool) do
    {:ok, %{queue: queue}} = PyPort.Registry.fetch(pool)
    :atomics.get(queue.count, 1)
  end
end
