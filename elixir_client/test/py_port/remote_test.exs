defmodule PyPort.RemoteTest do
  # Servers and pools of other nodes, over Erlang's own distribution: real nodes, real Pythons, nodes that go down.
  use ExUnit.Case, async: false

  import PyPort.Test.Nodes
  import PyPort.Test.Processes, only: [alive?: 1, eventually: 2, gone?: 1]

  alias PyPort.Error

  case PyPort.Test.Nodes.available() do
    :ok -> @moduletag timeout: 120_000
    {:error, why} -> @moduletag skip: why
  end

  # A pool that outlives the call that starts it.
  defp start_pool(node, name, options) do
    on node, name: name, options: options do
      {:ok, pool} = PyPort.Pool.start_link([name: name] ++ options)
      Process.unlink(pool)

      ready? = fn ready? ->
        length(PyPort.Pool.servers(pool)) == options[:size] or (Process.sleep(10) && ready?.(ready?))
      end

      ready?.(ready?)
      pool
    end
  end

  # `here` has no Python at all, `there` has the pool Far.
  defp pair(options \\ [size: 1]) do
    here = start_node(config: [pool: false])
    there = start_node(config: [pool: false])
    connect(here, there)
    start_pool(there, Far, options)
    {here, there, [far: {Far, there.node}]}
  end

  describe "server: {name, node}" do
    test "evaluates and calls there, with the pid of a pool or of a server as well" do
      {here, there, far} = pair()
      assert on(here, far, do: PyPort.eval("n + 1", %{n: 1}, server: far)) == {:ok, 2}
      assert on(here, far, do: PyPort.call("math:gcd", [12, 18], %{}, server: far)) == {:ok, 6}
      pool = on(there, do: Process.whereis(Far))
      [server] = on(there, do: PyPort.Pool.servers(Far))

      assert on(here, [pool: pool], do: PyPort.eval("[n] * 2", %{n: [1, 2]}, server: pool)) ==
               {:ok, [[1, 2], [1, 2]]}

      assert on(here, [server: server], do: PyPort.eval("1", %{}, server: server)) == {:ok, 1}
      assert [%PyPort.Status{server: ^server}] = on(here, far, do: PyPort.status(far))

      assert {:error, %Error{kind: :python, type: "ZeroDivisionError"}} =
               on(here, far, do: PyPort.eval("1 / 0", %{}, server: far))

      assert {:error, %Error{kind: :unavailable, begun: false}} =
               on(here, [nobody: {Nobody, there.node}], do: PyPort.eval("1", %{}, server: nobody))
    end

    test "keeps the timeout" do
      {here, _there, far} = pair()

      {ms, outcome} =
        on here, far do
          {micros, outcome} =
            :timer.tc(fn -> PyPort.eval("import time; time.sleep(3)", %{}, server: far, timeout: 300) end)

          {div(micros, 1000), outcome}
        end

      assert {:error, %Error{kind: :timeout}} = outcome
      assert ms in 300..2_500
    end

    test "keeps the bounds of the server there, however long they are" do
      {here, _there, far} = pair(size: 1, cancel_grace: 100, kill_grace: 1_200)

      {ms, outcome} =
        on here, far do
          {micros, outcome} =
            :timer.tc(fn -> PyPort.eval("sum(range(10**12))", %{}, server: far, timeout: 300) end)

          {div(micros, 1000), outcome}
        end

      assert {:error, %Error{kind: :timeout, begun: true, stack: stack}} = outcome
      assert stack =~ "<module>"
      assert ms in 1_300..2_600
    end

    @tag :slow
    test "is on time when the other node is stopped: an eval, large values, sessions, streams, status" do
      {here, there, far} = pair(size: 1)
      os_pid = on(there, do: System.pid())

      timed =
        on here, [os_pid: os_pid] ++ far do
          {:ok, object} = PyPort.eval("object()", %{}, server: far)
          test = self()

          consumer =
            spawn(fn ->
              stream =
                PyPort.stream("import asyncio\nyield 1\nawait asyncio.sleep(60)", %{},
                  server: far,
                  timeout: 500
                )

              result =
                try do
                  Enum.each(stream, fn 1 -> send(test, {:first, System.monotonic_time(:millisecond)}) end)
                rescue
                  error in PyPort.Error -> {:error, error}
                end

              send(test, {:stream, System.monotonic_time(:millisecond), result})
            end)

          started = receive do: ({:first, at} -> at)
          System.cmd("kill", ["-STOP", os_pid])
          {at, streamed} = receive do: ({:stream, at, result} -> {at, result})
          false = Process.alive?(consumer)

          timed = fn fun ->
            {micros, outcome} = :timer.tc(fun)
            {div(micros, 1000), outcome}
          end

          # More than the connection holds.
          large = Enum.to_list(1..3_000_000)

          outcomes = [
            stream: {at - started, streamed},
            eval: timed.(fn -> PyPort.eval("1", %{}, server: far, timeout: 500) end),
            object: timed.(fn -> PyPort.call({object, "__hash__"}, [], %{}, timeout: 500) end),
            large: timed.(fn -> PyPort.eval("len(x)", %{x: large}, server: far, timeout: 500) end),
            again: timed.(fn -> PyPort.eval("1", %{}, server: far, timeout: 500) end),
            session: timed.(fn -> PyPort.open_session(server: far, timeout: 500) end),
            status: timed.(fn -> PyPort.status(far) end)
          ]

          System.cmd("kill", ["-CONT", os_pid])
          outcomes
        end

      {status, requests} = Keyword.pop!(timed, :status)
      assert {status_ms, [%PyPort.Status{state: :down}]} = status
      assert status_ms < 2_500

      for {what, {ms, outcome}} <- requests do
        assert {:error, %Error{kind: :timeout, begun: nil}} = outcome
        # timeout, cancel_grace and kill_grace: and of a node that says nothing only the first.
        assert ms in 500..if(what == :stream, do: 3_000, else: 1_500), "#{what}: #{ms} ms"
      end

      assert on(here, far, do: PyPort.eval("6 * 7", %{}, server: far, timeout: 20_000)) == {:ok, 42}
    end

    test "a wrong use raises here as it would there" do
      {here, there, far} = pair()
      init = on(there, do: Process.whereis(:init))

      message =
        on here, [init: init] ++ far do
          try do
            PyPort.eval("1", %{}, server: init)
          rescue
            error in ArgumentError -> error.message
          end
        end

      assert message =~ "must be a PyPort.Server"
    end

    test "what is printed there reaches the device of the caller, before the answer" do
      {here, _there, far} = pair()

      printed =
        on here, far do
          ExUnit.CaptureIO.capture_io(fn -> {:ok, nil} = PyPort.eval("print('hello')", %{}, server: far) end)
        end

      assert printed == "hello\n"

      answer =
        on here, far do
          {:ok, device} = StringIO.open("")
          {:ok, nil} = PyPort.eval("print(1)", %{}, server: far, stdout: device)
          StringIO.contents(device)
        end

      assert answer == {"", "1\n"}
    end

    test "functions among the values run on the caller's node, with its $callers, and may ask again" do
      {here, there, far} = pair()
      node = here.node

      assert on(here, far, do: PyPort.eval("f(2)", %{f: fn n -> {node(), n * 2} end}, server: far)) ==
               {:ok, {node, 4}}

      # A function of a module, which would do there as well, is no exception.
      assert on(here, far, do: PyPort.eval("f()", %{f: &:erlang.node/0}, server: far)) == {:ok, node}

      answer =
        on here, far do
          {:ok, callers} = PyPort.eval("f()", %{f: fn -> Process.get(:"$callers") end}, server: far)
          self() == hd(callers)
        end

      assert answer

      # There is one server: the inner request runs on top of the outer one, or never.
      answer =
        on here, far do
          factorial = fn n -> Enum.reduce(1..n, 1, &PyPort.eval!("a * b", %{a: &1, b: &2}, server: far)) end
          PyPort.eval("n * again(n - 1)", %{n: 5, again: factorial}, server: far)
        end

      assert answer == {:ok, 120}

      assert {:error, %Error{kind: :python} = error} =
               on(here, far, do: PyPort.eval("f()", %{f: fn -> raise ArgumentError, "bad" end}, server: far))

      assert Exception.message(error) =~ "** (ArgumentError) bad"
      assert on(there, do: PyPort.status(Far)) |> hd() |> Map.get(:pending) == 0
    end

    test "objects lead back to where they live, and go with their owner" do
      {here, there, far} = pair()

      answer =
        on here, far do
          object = PyPort.eval!("[1, 2, 3]", %{}, server: far, return: :object)
          3 = PyPort.call!({object, "__len__"})
          6 = PyPort.eval!("sum(o)", %{o: object})
          6 = PyPort.eval!("sum(o)", %{o: object}, server: far)
          :ok = PyPort.release(object)
          {:error, %PyPort.Error{}} = PyPort.call({object, "__len__"})

          inside = PyPort.with_objects(fn -> PyPort.eval!("object()", %{}, server: far) end)
          {:error, %PyPort.Error{}} = PyPort.getattr(inside, "__class__")

          # A task's is for whom it works.
          from_task = Task.await(Task.async(fn -> PyPort.eval!("object()", %{}, server: far) end))
          {:ok, "object"} = PyPort.eval("type(o).__name__", %{o: from_task})
          PyPort.transfer(from_task, Process.whereis(PyPort.Supervisor))
        end

      assert answer == :ok

      held = fn -> on(there, do: PyPort.Pool.servers(Far) |> hd() |> PyPort.Test.Servers.held()) end
      assert eventually(fn -> held.() == 1 end, 200)

      # The caller of the next one ends at once.
      on(here, far, do: PyPort.eval!("object()", %{}, server: far))
      assert eventually(fn -> held.() == 1 end, 200)

      stop_node(here)
      assert eventually(fn -> held.() == 0 end, 500)
    end

    test "sessions lead back to where they live, and end with their opener" do
      {here, there, far} = pair()

      answer =
        on here, far do
          {:ok, session} = PyPort.open_session(server: far)
          {:ok, nil} = PyPort.eval("x = 1", %{}, session: session)
          {:ok, 1} = PyPort.eval("x", %{}, session: session)
          :ok = PyPort.close_session(session)
          {:error, %PyPort.Error{kind: kind}} = PyPort.eval("x", %{}, session: session)
          {:ok, _left_open} = PyPort.open_session(server: far)
          # Its end there would not be known here.
          {:error, %PyPort.Error{kind: ^kind}} = PyPort.open_session(server: far, name: :far_away)
          {:error, %PyPort.Error{kind: ^kind}} = PyPort.eval("1", %{}, session: :far_away)
          kind
        end

      assert answer == :unavailable

      assert eventually(
               fn -> on(there, do: PyPort.Pool.servers(Far) |> hd() |> PyPort.Test.Servers.held()) == 0 end,
               200
             )
    end

    test "streams come item by item, call back, and end where the consumer stops" do
      {here, there, far} = pair()

      answers =
        on here, far do
          numbers = PyPort.stream("for n in range(2000): yield n", %{}, server: far)
          endless = PyPort.stream("import itertools; itertools.count()", %{}, server: far)
          calling = PyPort.stream("for n in range(2): yield f(n)", %{f: &{node(), &1}}, server: far)
          objects = PyPort.stream("yield object()", %{}, server: far)
          names = Enum.map(objects, &PyPort.eval!("type(o).__name__", %{o: &1}))
          {Enum.sum(numbers), Enum.take(endless, 3), Enum.to_list(calling), names}
        end

      assert answers == {1_999_000, [0, 1, 2], [{here.node, 0}, {here.node, 1}], ["object"]}
      assert eventually(fn -> on(there, do: hd(PyPort.status(Far)).pending) == 0 end, 200)
    end

    test "functions in the items of a stream are those of the caller again" do
      {here, there, far} = pair()

      answers =
        on here, far do
          {two, twice} = {fn _n -> 2 end, fn -> fn _n -> 2 end end}
          give = fn -> two end
          # The last one came with an answer, so only the other node knows it.
          code = "yield [f]; g = give(); yield {'g': g}; yield g(1)"
          items = PyPort.stream(code, %{f: twice, give: give}, server: far, timeout: 20_000)
          for _again <- 1..2, do: Enum.to_list(items) == [[twice], %{"g" => two}, 2]
        end

      assert answers == [true, true]
      assert eventually(fn -> on(there, do: hd(PyPort.status(Far)).pending) == 0 end, 200)
    end

    test "structs are encoded on the caller's node: globals, arguments and what functions give" do
      {here, _there, far} = pair()

      answers =
        on here, far do
          tensor = PyPort.Test.DeviceBackend.hold(Nx.tensor([1, 2], type: {:s, 32}))
          options = [server: far, timeout: 20_000]
          double = fn n -> n * 2 end

          [
            PyPort.eval("f(len(bytes(x[0])))", %{x: [tensor], f: double}, options),
            PyPort.call("builtins:len", [tensor], %{}, options),
            PyPort.eval("len(f())", %{f: fn -> tensor end}, options),
            PyPort.eval("f()['g'](1)", %{f: fn -> %{g: double} end}, options),
            {:ok, Enum.to_list(PyPort.stream("yield len(x)", %{x: tensor}, options))}
          ]
        end

      assert answers == [ok: 16, ok: 2, ok: 2, ok: 2, ok: [2]]

      # Once, and not there again. This one counts.
      answers =
        on here, far do
          counted = struct(PyPort.Test.Encoded.Same, value: 1)
          options = [server: far, timeout: 20_000]

          [
            PyPort.eval!("x", %{x: counted}, options),
            PyPort.call!("builtins:max", [[counted]], %{key: fn counted -> counted.value end}, options),
            PyPort.eval!("f()", %{f: fn -> counted end}, options)
          ] ++ Enum.to_list(PyPort.stream("yield x", %{x: counted}, options))
        end

      assert Enum.map(answers, & &1.value) == [2, 2, 2, 2]
    end

    test "a caller that dies leaves no request behind" do
      {here, there, far} = pair(size: 1, heartbeat_interval: 100)

      on here, far do
        caller =
          spawn(fn ->
            PyPort.eval("import asyncio; await asyncio.sleep(60)", %{}, server: far, timeout: :infinity)
          end)

        PyPort.Test.Processes.eventually(fn -> match?([%{pending: 1}], PyPort.status(far)) end, 500) ||
          raise "nothing was asked"

        Process.exit(caller, :kill)
      end

      assert eventually(fn -> on(there, do: hd(PyPort.status(Far)).pending) == 0 end, 300)
    end
  end

  describe "nodes that are not what one hopes" do
    test "one that goes down is an error for the callers that wait, and for no other" do
      {here, there, far} = pair(size: 2)
      other = start_node(config: [pool: false])
      connect(here, other)
      start_pool(other, Far, size: 1)
      os_pids = on(there, do: for(server <- PyPort.Pool.servers(Far), do: PyPort.Server.os_pid(server)))

      {ms, [stream | asked], elsewhere} =
        on here, [other: {Far, other.node}] ++ far do
          asked =
            for n <- 1..4 do
              Task.async(fn ->
                {n, PyPort.eval("import asyncio; await asyncio.sleep(60)", %{}, server: far, timeout: 60_000)}
              end)
            end

          stream =
            Task.async(fn ->
              try do
                PyPort.stream("import asyncio\nyield 1\nawait asyncio.sleep(60)", %{},
                  server: far,
                  timeout: 60_000
                )
                |> Enum.to_list()
              rescue
                error in PyPort.Error -> {:error, error}
              end
            end)

          PyPort.Test.Processes.eventually(
            fn -> far |> PyPort.status() |> Enum.map(& &1.pending) |> Enum.sum() == 5 end,
            500
          ) || raise "not all have asked"

          {_name, node} = far
          :rpc.cast(node, :erlang, :halt, [0])
          started = System.monotonic_time(:millisecond)
          outcomes = Task.await_many([stream | asked], 20_000)
          {System.monotonic_time(:millisecond) - started, outcomes, PyPort.eval("1", %{}, server: other)}
        end

      assert {:error, %Error{kind: :unavailable, begun: nil}} = stream
      for {_n, outcome} <- asked, do: assert({:error, %Error{kind: :unavailable, begun: nil}} = outcome)
      assert length(asked) == 4
      assert ms < 5_000
      assert elsewhere == {:ok, 1}
      assert Enum.all?(os_pids, &gone?/1)

      assert {:error, %Error{kind: :unavailable}} = on(here, far, do: PyPort.eval("1", %{}, server: far))
      assert [%PyPort.Status{state: :down}] = on(here, far, do: PyPort.status(far))
    end

    test "one without PyPort, one where it is not started, and one that is not there say so" do
      here = start_node(config: [pool: false])
      bare = start_node(py_port: false)
      connect(here, bare)

      assert {:error, %Error{kind: :unavailable, begun: false} = error} =
               on(here, [to: {Far, bare.node}], do: PyPort.eval("1", %{}, server: to))

      assert Exception.message(error) =~ "there is no PyPort on the node #{bare.node}"

      stopped = start_node(config: [pool: false])
      connect(here, stopped)
      on(stopped, do: Application.stop(:py_port))

      assert {:error, %Error{kind: :unavailable, begun: false}} =
               on(here, [to: {Far, stopped.node}], do: PyPort.eval("1", %{}, server: to))

      assert {:error, %Error{kind: :unavailable} = error} =
               on(here, do: PyPort.eval("1", %{}, server: {Far, :"nobody@127.0.0.1"}))

      assert Exception.message(error) =~ "nobody@127.0.0.1"

      # The suite's own VM has no name.
      assert {:error, %Error{kind: :unavailable, begun: false} = error} =
               PyPort.eval("1", %{}, server: {Far, :"nobody@127.0.0.1"})

      assert Exception.message(error) =~ "not part of a cluster"
    end
  end

  test "objects made before their node had a name are of use after it, and released" do
    node = start_node(name: :none)

    answer =
      on node, name: String.to_atom(new_name() <> "@127.0.0.1") do
        before = PyPort.eval!("object()")
        {:ok, _pid} = :net_kernel.start([name, :longnames])
        later = PyPort.eval!("object()")
        true = later.server != hd(PyPort.Pool.servers(PyPort.Default))
        {:ok, "object"} = PyPort.eval("type(o).__name__", %{o: later})
        {:ok, false} = PyPort.eval("a is b", %{a: before, b: later})
        {:ok, true} = PyPort.call("operator:is_", [later, later], %{}, server: PyPort.Default)
        :ok = PyPort.transfer(before, self())
        :ok = PyPort.release([before, later])
        {:error, %PyPort.Error{}} = PyPort.getattr(later, "__class__")
        {node(), PyPort.Pool.servers(PyPort.Default) |> hd() |> PyPort.Test.Servers.held()}
      end

    assert {named, 0} = answer
    assert named != :nonode@nohost
  end

  describe "a pool that spans nodes" do
    @where "import os; os.getpid()"

    defp cluster(count, options) do
      nodes = for _ <- 1..count, do: start_node(config: [pool: false])
      for one <- nodes, other <- nodes, one.node < other.node, do: connect(one, other)

      for {node, options} <- Enum.zip(nodes, options),
          options,
          do: start_pool(node, Wide, [cluster: true] ++ options)

      nodes
    end

    defp os_pids(node),
      do: on(node, do: for(server <- PyPort.Pool.servers(Wide), do: PyPort.Server.os_pid(server)))

    defp where(node), do: on(node, [where: @where], do: PyPort.eval(where, %{}, server: Wide))

    defp knows(node, count),
      do:
        eventually(
          fn ->
            on(node, do: length(:pg.get_members(PyPort.Cluster, {PyPort.Pool.Members, Wide}))) == count
          end,
          500
        )

    test "takes local servers first, others when there are none, and those that are left when a node goes down" do
      [one, two, three] = cluster(3, [[size: 1], [size: 1], [size: 0]])
      assert knows(three, 2) and knows(one, 2)
      [of_one] = os_pids(one)
      [of_two] = os_pids(two)

      assert Enum.uniq(for _ <- 1..10, do: where(one)) == [{:ok, of_one}]
      assert Enum.uniq(for _ <- 1..10, do: where(two)) == [{:ok, of_two}]

      assert Enum.sort(Enum.uniq(for _ <- 1..40, do: where(three))) ==
               Enum.sort([{:ok, of_one}, {:ok, of_two}])

      # What a request made there leads back there.
      answer =
        on three do
          {:ok, session} = PyPort.open_session(server: Wide)
          {:ok, nil} = PyPort.eval("x = 2", %{}, session: session)
          PyPort.eval("x", %{}, session: session)
        end

      assert answer == {:ok, 2}

      stop_node(one)
      assert gone?(of_one)
      assert knows(three, 1)
      assert Enum.uniq(for _ <- 1..10, do: where(three)) == [{:ok, of_two}]
    end

    test "serves a node that has no pool of its own, and none once the last is gone" do
      [one, two] = cluster(2, [[size: 1], nil])
      assert knows(two, 1)
      assert where(two) == {:ok, hd(os_pids(one))}
      on(one, do: Supervisor.stop(Wide))
      assert knows(two, 0)
      assert {:error, %Error{kind: :unavailable, begun: false}} = where(two)
    end

    test "sends elsewhere what its own servers would refuse; what none takes waits there" do
      [one, two] = cluster(2, [[size: 1, max_pending: 2], [size: 1, max_pending: 2]])
      assert knows(one, 2)
      pids = Enum.map(os_pids(one) ++ os_pids(two), &{:ok, &1})

      outcomes =
        on one, there: {Wide, two.node} do
          gate = Path.join(System.tmp_dir!(), "py_port_full_#{System.pid()}")
          code = "import asyncio, os\nwhile not os.path.exists(gate): await asyncio.sleep(0.01)\nos.getpid()"
          ask = fn -> PyPort.eval(code, %{gate: gate}, server: Wide, timeout: 30_000) end

          pending = fn ->
            for(pool <- [Wide, there], status <- PyPort.status(pool), do: status.pending) |> Enum.sum()
          end

          tasks =
            for n <- 1..4 do
              task = Task.async(ask)
              true = PyPort.Test.Processes.eventually(fn -> pending.() == n end, 1_000)
              task
            end

          fifth = Task.async(ask)

          true =
            PyPort.Test.Processes.eventually(
              fn -> match?([%{pool_queue: 1}], PyPort.status(there)) end,
              1_000
            )

          File.touch!(gate)
          outcomes = Task.await_many(tasks ++ [fifth], 10_000)
          File.rm!(gate)
          outcomes
        end

      [of_one, of_two] = pids
      assert Enum.frequencies(outcomes) == %{of_one => 2, of_two => 3}
    end

    test "a server that crashes is stood in for until the next one is there" do
      [one, two] = cluster(2, [[size: 1, init_code: "import time; time.sleep(0.3)"], [size: 1]])
      assert knows(one, 2)
      [of_one] = os_pids(one)
      [of_two] = os_pids(two)
      PyPort.Test.Processes.signal(of_one, "KILL")
      assert eventually(fn -> where(one) == {:ok, of_two} end, 100)
      assert eventually(fn -> with({:ok, pid} <- where(one), do: pid not in [of_one, of_two]) end, 200)
      assert alive?(of_two)
    end
  end
end
