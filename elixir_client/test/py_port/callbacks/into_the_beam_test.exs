defmodule PyPort.Callbacks.IntoTheBeamTest do
  # Calls from Python into the BEAM, end to end.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Servers}

  alias PyPort.Error

  setup_all do
    start_supervised!(
      {PyPort.Server, name: __MODULE__, heartbeat_interval: 50, allow: [{Enum, :sum, 1}, Integer]}
    )

    {:ok, server: __MODULE__}
  end

  test "a function is a callable: in plain code, in threads, and awaitable in async code", %{server: server} do
    double = &(&1 * 2)
    assert PyPort.eval("[f(x) for x in xs]", %{xs: [1, 2], f: double}, server: server) == {:ok, [2, 4]}

    assert PyPort.call("functools:reduce", [&(&1 + &2), [1, 2, 3]], %{}, server: server) == {:ok, 6}
    assert PyPort.call("builtins:sorted", [[1, 2]], %{key: &(-&1)}, server: server) == {:ok, [2, 1]}

    threads = """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(f, range(20)))
    result
    """

    assert PyPort.eval(threads, %{f: double}, server: server) == {:ok, Enum.map(0..19, double)}

    async = """
    import asyncio
    await asyncio.gather(*(f(n) for n in range(20)))
    """

    assert PyPort.eval(async, %{f: double}, server: server) == {:ok, Enum.map(0..19, double)}
    assert nothing_left?(server)
  end

  defmodule Relay do
    # Runs what it is given: asks, or has another one ask.
    use GenServer

    def start_link(_options), do: GenServer.start_link(__MODULE__, nil)
    def run(relay, fun), do: GenServer.call(relay, {:run, fun}, 10_000)

    @impl true
    def init(nil), do: {:ok, nil}

    @impl true
    def handle_call({:run, fun}, _from, state), do: {:reply, fun.(), state}
  end

  describe "a callback that asks the same server" do
    setup do
      relays = for n <- 1..3, do: start_supervised!(Supervisor.child_spec(Relay, id: {Relay, n}))
      agent = start_supervised!({Agent, fn -> nil end})
      {:ok, relays: relays, agent: agent}
    end

    defp via_spawn(fun) do
      test = self()
      spawn(fn -> send(test, {:asked, fun.()}) end)
      receive do: ({:asked, outcome} -> outcome)
    end

    for {name, way} <- [
          {"by itself", quote(do: fn ask, _ -> ask.() end)},
          {"in a Task", quote(do: fn ask, _ -> Task.await(Task.async(ask)) end)},
          {"in a plain process", quote(do: fn ask, _ -> via_spawn(ask) end)},
          {"in a plain process of a plain process",
           quote(do: fn ask, _ -> via_spawn(fn -> via_spawn(ask) end) end)},
          {"in a GenServer", quote(do: fn ask, %{relays: [one | _]} -> Relay.run(one, ask) end)},
          {"in a GenServer behind others",
           quote(
             do: fn ask, %{relays: [one, two, three]} ->
               Relay.run(one, fn -> Relay.run(two, fn -> Relay.run(three, ask) end) end)
             end
           )},
          {"in an Agent", quote(do: fn ask, %{agent: agent} -> Agent.get(agent, fn _ -> ask.() end) end)},
          {"in a GenServer that a Task of it calls",
           quote(
             do: fn ask, %{relays: [one | _]} ->
               Task.await(Task.async(fn -> Relay.run(one, ask) end))
             end
           )},
          {"in a process that a GenServer has spawned",
           quote(do: fn ask, %{relays: [one | _]} -> Relay.run(one, fn -> via_spawn(ask) end) end)}
        ] do
      test "#{name} has its answer: it runs on top of the request that waits", %{server: server} = context do
        way = unquote(way)
        ask = fn -> PyPort.eval!("20 + 1", %{}, server: server, timeout: 2_000) end
        code = "f() * 2"
        assert PyPort.eval(code, %{f: fn -> way.(ask, context) end}, server: server) == {:ok, 42}
        assert nothing_left?(server)
      end
    end

    test "in a way that cannot be seen is told what it waits for", %{server: server} do
      # A process that was there before, and is sent a message.
      asker =
        spawn_link(fn ->
          receive do
            {:ask, from} -> send(from, {:asked, PyPort.eval("1", %{}, server: server, timeout: 200)})
          end
        end)

      ask = fn ->
        send(asker, {:ask, self()})
        {:error, error} = receive do: ({:asked, outcome} -> outcome)
        Exception.message(error)
      end

      assert {:ok, message} = PyPort.eval("f()", %{f: ask}, server: server)
      assert message =~ ~r/no answer within 200 ms.* waiting for a callback of request \d+ \(#PID<.*>\)/s
      assert message =~ "in a GenServer.call"
    end

    test "one that waits behind a request which is at no callback is told nothing of the kind", %{
      server: server
    } do
      task =
        Task.async(fn ->
          PyPort.eval("f()\nimport time; time.sleep(0.5)", %{f: fn -> 1 end}, server: server)
        end)

      Process.sleep(100)
      assert {:error, error} = PyPort.eval("1", %{}, server: server, timeout: 100)
      refute Exception.message(error) =~ "callback"
      assert {:ok, nil} = Task.await(task)
    end

    test "what a process asks beside a call, which waits for another one, is not taken for the call's", %{
      server: server,
      relays: [one, two | _]
    } do
      test = self()
      gate = fn -> send(test, {:at, self()}) && receive(do: (:go -> 1)) end
      outer = Task.async(fn -> PyPort.eval("f()", %{f: fn -> Relay.run(one, gate) end}, server: server) end)
      assert_receive {:at, busy}
      # The call does not wait for the second relay, so its request waits its turn.
      inner = Task.async(fn -> Relay.run(two, fn -> PyPort.eval("2", %{}, server: server) end) end)
      assert Task.yield(inner, 100) == nil
      send(busy, :go)
      assert Task.await(outer) == {:ok, 1}
      assert Task.await(inner) == {:ok, 2}
    end
  end

  test "what Elixir raises is an exception in Python, with its stack, and can be caught", %{server: server} do
    code = """
    try:
        f()
    except Exception as error:
        text = [type(error).__name__, str(error), error.kind, error.type, error.stacktrace]
    text
    """

    assert {:ok, ["ElixirError", "** (ArgumentError) bad", "error", "ArgumentError", stack]} =
             PyPort.eval(code, %{f: fn -> raise ArgumentError, "bad" end}, server: server)

    assert stack =~ "into_the_beam_test.exs"

    assert {:error, %Error{kind: :python} = error} =
             PyPort.eval("def g(): f()\ng()", %{f: fn -> raise ArgumentError, "bad" end}, server: server)

    assert Exception.message(error) =~ "in g"
    assert Exception.message(error) =~ "** (ArgumentError) bad"
    assert Exception.message(error) =~ "into_the_beam_test.exs"
  end

  test "an exception of Python crosses Elixir and arrives with the traces of both", %{server: server} do
    # Not as a tail call, which leaves no trace.
    inner = fn -> [PyPort.eval!("def deep(): return 1 / 0\ndeep()", %{}, server: server)] end
    assert {:error, %Error{kind: :python} = error} = PyPort.eval("f()", %{f: inner}, server: server)
    text = Exception.message(error)
    assert text =~ "ZeroDivisionError"
    assert text =~ "in deep"
    assert text =~ "into_the_beam_test.exs"
  end

  test "crashes, exits and throws of a call are exceptions in Python, and the server goes on", %{
    server: server
  } do
    for fun <- [fn -> exit(:gone) end, fn -> throw(:ball) end, fn -> Process.exit(self(), :kill) end] do
      assert {:error, %Error{kind: :python, type: type}} = PyPort.eval("f()", %{f: fun}, server: server)
      assert type =~ "ElixirError"
      assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    end
  end

  test "Python calls Elixir, which calls Python, to a depth of 20", %{server: server} do
    defmodule Deep do
      def down(_server, 0), do: 0

      def down(server, n) do
        PyPort.eval!("1 + f()", %{f: fn -> down(server, n - 1) end}, server: server)
      end
    end

    assert Deep.down(server, 20) == 20
    # Through tasks, too.
    fun = fn -> Task.await(Task.async(fn -> PyPort.eval!("21", %{}, server: server) end)) end
    assert PyPort.eval("2 * f()", %{f: fun}, server: server) == {:ok, 42}
    assert nothing_left?(server)
  end

  test "two servers call each other across", %{server: one} do
    two = start_server()

    there = fn -> PyPort.eval!("f()", %{f: fn -> PyPort.eval!("5", %{}, server: one) end}, server: two) end
    assert PyPort.eval("f()", %{f: there}, server: one) == {:ok, 5}
  end

  test "unrelated requests wait for the request that waits for a call", %{server: server} do
    test = self()

    hold = fn ->
      send(test, {:holding, self()})
      receive(do: (:go -> 1))
    end

    outer = Task.async(fn -> PyPort.eval("hold()", %{hold: hold}, server: server) end)
    assert_receive {:holding, worker}, 5_000
    other = Task.async(fn -> PyPort.eval("2", %{}, server: server) end)
    assert Task.yield(other, 100) == nil
    send(worker, :go)
    assert Task.await(outer) == {:ok, 1}
    assert Task.await(other) == {:ok, 2}
  end

  test "a call that never answers is the caller's timeout, and the server goes on", %{server: server} do
    test = self()

    hang = fn ->
      send(test, {:worker, self()})
      Process.sleep(:infinity)
    end

    assert {:error, %Error{kind: :timeout}} = PyPort.eval("f()", %{f: hang}, server: server, timeout: 700)
    assert_received {:worker, worker}
    assert eventually(fn -> not Process.alive?(worker) end)
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    assert nothing_left?(server)
  end

  test "a caller that dies while Python calls it leaves nothing behind", %{server: server} do
    test = self()

    hang = fn ->
      send(test, {:worker, self()})
      Process.sleep(:infinity)
    end

    caller = spawn(fn -> PyPort.eval("f()", %{f: hang}, server: server, timeout: :infinity) end)
    assert_receive {:worker, worker}, 5_000
    Process.exit(caller, :kill)
    assert eventually(fn -> not Process.alive?(worker) end)
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    assert nothing_left?(server)
  end

  test "by name only what is allowed can be called", %{server: server} do
    eval = fn code -> PyPort.eval("import port_server; " <> code, %{}, server: server) end
    assert eval.("port_server.call('Enum', 'sum', [[1, 2]])") == {:ok, 3}
    assert eval.("port_server.call('Elixir.Integer', 'digits', [12])") == {:ok, [1, 2]}
    assert {:error, %Error{kind: :python, message: message}} = eval.("port_server.call('System', 'halt', [])")
    assert message =~ ":allow"
    assert {:error, %Error{kind: :python}} = eval.("port_server.call('Enum', 'sum', [[1], 2])")
  end

  test "messages arrive in order, and before the answer is long past", %{server: server} do
    code = "import port_server\nfor n in range(100): port_server.send(to, (port_server.Atom('ok'), n))"
    assert {:ok, nil} = PyPort.eval(code, %{to: self()}, server: server)

    for n <- 0..99 do
      assert_receive {:ok, number}
      assert number == n
    end
  end

  test "messages arrive as they were sent, from wherever they are sent", %{server: server} do
    code = """
    import asyncio, threading
    from port_server import Atom, send
    send(to, (Atom("main"), {"a": [1, 2.5, None, True], (1, 2): b"\\xff"}))
    thread = threading.Thread(target=send, args=(to, (Atom("thread"), to)))
    thread.start()
    thread.join()
    await asyncio.sleep(0)
    send(to, (Atom("async"), "x" * 200_000))
    """

    assert {:ok, nil} = PyPort.eval(code, %{to: self()}, server: server)
    assert_receive {:main, %{"a" => [1, 2.5, nil, true], {1, 2} => <<255>>}}
    me = self()
    assert_receive {:thread, ^me}
    assert_receive {:async, text}
    assert byte_size(text) == 200_000
    refute_received _anything
  end

  test "a message to a process that has ended, or is a server, does no harm", %{server: server} do
    other = start_server()
    {dead, monitor} = spawn_monitor(fn -> :ok end)
    assert_receive {:DOWN, ^monitor, :process, ^dead, :normal}

    code =
      "import port_server\nfor pid in pids: port_server.send(pid, ('hello', 1))\nport_server.send(to, 'last')"

    pids = [dead, Process.whereis(server), Process.whereis(other)]
    assert {:ok, nil} = PyPort.eval(code, %{pids: pids, to: self()}, server: server)
    assert_receive "last"
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    assert PyPort.eval("1", %{}, server: other) == {:ok, 1}
  end

  test "messages go to names of this node, and are a warning where there is none", %{server: server} do
    name = :"named_#{System.unique_integer([:positive])}"
    Process.register(self(), name)

    code = """
    from port_server import Atom, send
    for to in (name, str(name), (name, Atom(node)), (str(name), node)):
        send(to, "by name")
    send("no_such_process", 1); send((name, "nowhere@nohost"), 1); send("NoModule.Here", 1)
    send(to, "last")
    """

    log =
      ExUnit.CaptureLog.capture_log(fn ->
        globals = %{name: name, node: Atom.to_string(node())}
        assert {:ok, nil} = PyPort.eval(code, globals, server: server)
        for _ <- 1..4, do: assert_receive("by name")
        assert_receive "last"
      end)

    assert log =~ "no process of this node has the name no_such_process"
    assert log =~ "does not know the name #{name} or the node nowhere@nohost"
    assert log =~ "no process of this node has the name Elixir.NoModule.Here"
    assert {:error, error} = PyPort.eval("from port_server import send; send(3, 1)", %{}, server: server)
    assert Exception.message(error) =~ "`to` is a pid, a name or (name, node), not int"
  end

  test "objects in a message belong to the process that gets them", %{server: server} do
    test = self()

    receiver =
      spawn(fn ->
        receive do
          {"here", [object, fun]} ->
            send(test, {:asked, PyPort.call({object, "__next__"}, []), fun.(1)})
            receive(do: (:stop -> :ok))
        end
      end)

    code = "from port_server import send; send(to, ('here', [iter([1, 2]), f]))"
    fun = fn n -> n + 1 end
    assert {:ok, nil} = PyPort.eval(code, %{to: receiver, f: fun}, server: server)
    assert_receive {:asked, {:ok, 1}, 2}, 5_000
    assert held(server) == 1
    send(receiver, :stop)
    assert eventually(fn -> held(server) == 0 end)
  end

  test "modules of Elixir are written as in Elixir" do
    server = start_server(allow: :all)

    for {code, value} <- [
          {"Elixir.Enum.frequencies(['a', 'b', 'a'])", %{"a" => 2, "b" => 1}},
          {"Elixir.String.split('a,,b', ',', trim=True)", ["a", "b"]},
          {"getattr(Elixir.Enum, 'empty?')([])", true},
          {"repr(Elixir.PyPort.Error)", "<Elixir module PyPort.Error>"},
          {"Elixir.Enum.sum.__qualname__", "Elixir.Enum.sum"}
        ] do
      assert PyPort.eval("from port_server import Elixir; " <> code, %{}, server: server) == {:ok, value}
    end

    code = "from port_server import Elixir; Elixir.Enum.no_such(1)"
    assert {:error, error} = PyPort.eval(code, %{}, server: server)
    assert Exception.message(error) =~ "Enum.no_such/1 does not exist"
  end

  test "a pid that came by way of another server is the same process there", %{server: server} do
    other = start_server()
    {:ok, pid} = PyPort.eval("pid", %{pid: self()}, server: other)
    code = "import port_server; port_server.send(pid, f(pid) == pid)"
    through = fn pid -> PyPort.eval!("pid", %{pid: pid}, server: other) end
    assert {:ok, nil} = PyPort.eval(code, %{pid: pid, f: through}, server: server)
    assert_receive true
  end

  test "messages of init_code arrive", %{server: _server} do
    pid = self() |> :erlang.term_to_binary() |> inspect(binaries: :as_binaries, limit: :infinity)
    bytes = pid |> String.trim_leading("<<") |> String.trim_trailing(">>")

    code =
      "from port_server import send\nfrom port_server.etf import decode\nsend(decode(bytes([#{bytes}])), 'early')"

    start_server(init_code: code)
    assert_receive "early"
  end

  test "objects that are passed to a function live as long as the call, unless they are given away", %{
    server: server
  } do
    test = self()

    keep = fn object ->
      send(test, {:object, object})
      :ok = PyPort.transfer(object, test)
      true
    end

    assert {:ok, [true, true]} =
             PyPort.eval("[f(object()), g(object())]", %{f: keep, g: &is_struct/1}, server: server)

    assert_received {:object, object}
    assert {:ok, _} = PyPort.call({object, "__hash__"})
    PyPort.release(object)
    assert nothing_left?(server)
  end

  describe "a function that goes back" do
    setup do
      {:ok, server: start_server(allow: [{Enum, :map, 2}, {Enum, :reduce, 3}])}
    end

    # The first example of Snex's README, in our words.
    test "with numpy, which works as it does there" do
      server = start_server(allow: [{Enum, :map, 2}], init_code: "import port_server\nimport numpy as np")

      code = """
      width, height = await port_server.call("Enum", "map", [[3, 3], mapper])
      matrix = np.fromfunction(lambda i, j: (-1) ** (i + j), (width, height), dtype=int)

      return np.linalg.norm(matrix)
      """

      assert PyPort.eval(code, %{mapper: &(&1 * 2)}, server: server) == {:ok, 6.0}
    end

    test "is itself again: by name and to another function, in plain code, in threads and in tasks", %{
      server: server
    } do
      code = "from port_server import call\ncall('Enum', 'map', [[1, 2], f])"
      assert PyPort.eval(code, %{f: &(&1 + 1)}, server: server) == {:ok, [2, 3]}
      assert PyPort.eval("g(f, 20)", %{f: &(&1 + 1), g: & &1.(&2)}, server: server) == {:ok, 21}
      assert PyPort.eval("await g(f, 20)", %{f: &(&1 + 1), g: & &1.(&2)}, server: server) == {:ok, 21}

      threads = """
      from concurrent.futures import ThreadPoolExecutor
      from port_server import call
      with ThreadPoolExecutor(2) as pool:
          sums = list(pool.map(lambda n: call("Enum", "reduce", [[n, n], 0, f]), range(3)))
      sums
      """

      assert PyPort.eval(threads, %{f: &(&1 + &2)}, server: server) == {:ok, [0, 2, 4]}
      assert nothing_left?(server)
    end
  end
end
