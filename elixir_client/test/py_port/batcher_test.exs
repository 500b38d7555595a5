defmodule PyPort.BatcherTest do
  # Items of many callers go to a real Python as one list, and each caller gets its own result, error or timeout.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.{Batcher, Error}

  doctest Batcher

  # The module `batching`, which each test's Python has. `sizes` are those of the batches that were given to `double`.
  @module """
  import asyncio, os, sys, time, types

  batching = types.ModuleType("batching")
  sizes = []

  def double(items):
      sizes.append(len(items))
      return [n * 2 for n in items]

  def checked(items):
      return [ValueError(f"{n} is odd") if n % 2 else n // 2 for n in items]

  def keyed(items, batch_key):
      return [(batch_key, len(items), item) for item in items]

  async def later(items):
      await asyncio.sleep(0.001)
      return tuple(item.upper() for item in items)

  def gated(paths):
      open(paths[0] + ".begun", "w").close()
      while not os.path.exists(paths[0]): time.sleep(0.001)
      return [len(paths)] * len(paths)

  def gated_boxes(paths):
      gated(paths)
      return [object() for path in paths]

  def gated_lists(lists):
      gated([lists[0][0]])
      return [len(items) for items in lists]

  def nested_boxes(items):
      return [[{object()}, {object(): 1}, (object(),)] for item in items]

  def same_box(items):
      return [object()] * len(items)

  def raises(items):
      raise KeyError(items[0])

  def boxed(items):
      return [[object(), item] for item in items]

  for value in (double, checked, keyed, later, gated, gated_boxes, gated_lists, raises, boxed, nested_boxes, same_box):
      setattr(batching, value.__name__, value)
  batching.numbered = lambda items: items
  batching.short = lambda items: items[1:]
  batching.text = lambda items: "text"
  batching.number = lambda items: 1
  batching.lengths = lambda items: [len(item) for item in items]
  batching.leaves = lambda items: os._exit(3)
  sys.modules["batching"] = batching
  """

  setup_all do
    %{server: start_server(init_code: @module)}
  end

  defp start(server, fun, options \\ []) do
    options = Keyword.merge([server: server, fun: "batching:#{fun}", batch_timeout: 20], options)
    start_supervised!({Batcher, options}, id: make_ref())
  end

  # All at once; the outcomes in the order of the items.
  defp ask(batcher, items, options \\ []) do
    items
    |> Enum.map(&Task.async(fn -> PyPort.batched(batcher, &1, options) end))
    |> Task.await_many(20_000)
  end

  # A batch that is in Python until its gate is opened.
  defp hold(batcher) do
    gate = new_gate()
    task = Task.async(fn -> PyPort.batched(batcher, gate, timeout: 20_000) end)
    assert eventually(fn -> File.exists?(gate <> ".begun") end)
    on_exit(fn -> File.rm(gate <> ".begun") end)
    {gate, task}
  end

  defp waiting(batcher),
    do: Enum.sum(for {_key, queue} <- :sys.get_state(batcher).queues, do: :gb_trees.size(queue.items))

  describe "a batch" do
    test "holds the items of many callers, and each gets the result of its own", %{server: server} do
      batcher = start(server, :double, batch_size: 100)
      {:ok, _} = PyPort.eval("sizes.clear()", %{}, server: server)
      assert ask(batcher, Enum.to_list(1..50)) == for(n <- 1..50, do: {:ok, n * 2})
      {:ok, sizes} = PyPort.eval("sizes", %{}, server: server)
      assert Enum.sum(sizes) == 50
      assert length(sizes) <= 3
    end

    test "begins as soon as it is full, and never holds more", %{server: server} do
      batcher = start(server, :double, batch_size: 4, batch_timeout: 60_000)
      {:ok, _} = PyPort.eval("sizes.clear()", %{}, server: server)
      assert ask(batcher, Enum.to_list(1..8)) == for(n <- 1..8, do: {:ok, n * 2})
      assert PyPort.eval("sizes", %{}, server: server) == {:ok, [4, 4]}
    end

    test "that is not full begins after batch_timeout", %{server: server} do
      batcher = start(server, :double, batch_size: 1_000, batch_timeout: 1)
      assert PyPort.batched(batcher, 21) == {:ok, 42}
    end

    test "collects items while others run: one at a time on a server", %{server: server} do
      batcher = start(server, :gated, batch_timeout: 0)
      {gate, first} = hold(batcher)
      rest = for _ <- 1..5, do: Task.async(fn -> PyPort.batched(batcher, gate, timeout: 20_000) end)
      assert eventually(fn -> waiting(batcher) == 5 end)
      open_gate(gate)
      assert Task.await(first) == {:ok, 1}
      assert Task.await_many(rest) == List.duplicate({:ok, 5}, 5)
    end

    test "can be awaited in Python", %{server: server} do
      assert ask(start(server, :later), ["a", "b"]) == [{:ok, "A"}, {:ok, "B"}]
    end

    test "has items of one key, which the function is given", %{server: server} do
      batcher = start(server, :keyed, batch_keys: [:short, :long])

      tasks =
        for {key, item} <- [short: 1, long: 2, short: 3],
            do: Task.async(fn -> PyPort.batched(batcher, item, batch_key: key) end)

      assert Task.await_many(tasks) ==
               [{:ok, {"short", 2, 1}}, {:ok, {"long", 1, 2}}, {:ok, {"short", 2, 3}}]
               |> Enum.map(fn {:ok, {key, count, item}} -> {:ok, {String.to_atom(key), count, item}} end)
    end

    test "takes bytes where it is told to", %{server: server} do
      assert PyPort.batched(start(server, :lengths, binary_as: :bytes), <<255, 254>>) == {:ok, 2}
    end
  end

  describe "an error" do
    test "of one item, an exception object, reaches its caller alone", %{server: server} do
      assert [{:ok, 1}, {:error, error}, {:ok, 2}] = ask(start(server, :checked), [2, 3, 4])
      assert %Error{kind: :python, type: "ValueError", message: "3 is odd"} = error
    end

    test "that the function raises reaches all, with its traceback", %{server: server} do
      assert [{:error, error}, {:error, error}] = ask(start(server, :raises), [1, 1])
      assert %Error{kind: :python, type: "KeyError", frames: [%{function: "raises"}]} = error
    end

    test "of an item that Python cannot read reaches its caller alone", %{server: server} do
      items = ["a", <<255>>, "ccc", "dd", <<254>>]

      assert [{:ok, 1}, {:error, one}, {:ok, 3}, {:ok, 2}, {:error, other}] =
               ask(start(server, :lengths), items)

      assert {one.kind, other.kind} == {:decode, :decode}
    end

    test "of an item that Elixir cannot send reaches its caller alone", %{server: server} do
      batcher = start(server, :numbered)
      foreign = PyPort.eval!("object()", %{}, server: PyPort.Default)

      assert [{:ok, 1}, {:error, unknown}, {:ok, 2}, {:error, raised}] =
               ask(batcher, [1, foreign, 2, %PyPort.Test.Encoded.Raises{}])

      assert %Error{kind: :unavailable, begun: false, message: "#PyPort.Object<" <> _} = unknown
      assert %Error{kind: :encode, begun: false, message: "no encoding"} = raised
    end

    test "is none for objects of several servers of a pool" do
      pool = PyPort.Test.Pools.start_pool(size: 2, init_code: @module)

      boxes =
        for server <- PyPort.Pool.servers(pool), do: PyPort.eval!("[1]", %{}, server: server, return: :object)

      assert ask(start(pool, :lengths), boxes) == [{:ok, 1}, {:ok, 1}]
    end

    for {fun, words} <- [short: "gave 1 results for a batch of 2", text: "type str", number: "type int"] do
      test "names the function whose results are not one for each item: #{fun}", %{server: server} do
        assert [{:error, error}, {:error, error}] = ask(start(server, unquote(fun)), [1, 2])
        assert error.message =~ "batching:#{unquote(fun)}"
        assert error.message =~ unquote(words)
      end
    end

    @tag capture_log: true
    test "of a Python that ends reaches all callers, and the next batch has the next Python" do
      {:ok, _} = start_supervised({PyPort.Pool, name: :batching_pool, size: 1, init_code: @module})
      batcher = start(:batching_pool, :leaves)
      assert [{:error, error}, {:error, error}] = ask(batcher, [1, 2])
      assert %Error{kind: :exited, exit_status: 3} = error
      assert PyPort.batched(start(:batching_pool, :double), 1) == {:ok, 2}
    end

    test "of a name that is no batcher, of a key, of options", %{server: server} do
      assert {:error, %Error{kind: :unavailable, begun: false, message: message}} =
               PyPort.batched(:no_such_batcher, 1)

      assert message =~ ":no_such_batcher"
      batcher = start(server, :double)

      assert_raise ArgumentError, ~r/unknown :batch_key :b .*\[:default\]/s, fn ->
        PyPort.batched(batcher, 1, batch_key: :b)
      end

      # Also where there is no time to wait for that answer.
      assert_raise ArgumentError, ~r/unknown :batch_key :b/, fn ->
        PyPort.batched(batcher, 1, batch_key: :b, timeout: 0)
      end

      assert_raise ArgumentError, ~r/:fun .* required/, fn -> Batcher.start_link(server: server) end
      assert_raise ArgumentError, ~r/:fun must be/, fn -> Batcher.start_link(fun: "math.sqrt") end

      assert_raise ArgumentError, ~r/unknown option :batchkey/, fn ->
        PyPort.batched(batcher, 1, batchkey: :a)
      end
    end
  end

  describe "items that wait" do
    setup %{server: server} do
      batcher = start(server, :gated, name: :"batcher_#{System.unique_integer([:positive])}", max_pending: 2)
      PyPort.Test.Telemetry.listen(Process.info(batcher, :registered_name) |> elem(1))
      {gate, held} = hold(batcher)
      %{batcher: batcher, gate: gate, held: held}
    end

    test "are dropped when their time is up", %{batcher: batcher, gate: gate, held: held} do
      assert {:error, %Error{kind: :timeout, begun: false}} = PyPort.batched(batcher, gate, timeout: 1)
      assert waiting(batcher) == 0

      assert_receive {:event, [:py_port, :batcher, :drop], %{count: 1},
                      %{reason: :timeout, batch_key: :default}}

      open_gate(gate)
      assert Task.await(held) == {:ok, 1}
    end

    test "are dropped when their caller has ended", %{batcher: batcher, gate: gate, held: held} do
      caller = spawn(fn -> PyPort.batched(batcher, gate) end)
      assert eventually(fn -> waiting(batcher) == 1 end)
      Process.exit(caller, :kill)
      alive = Task.async(fn -> PyPort.batched(batcher, gate) end)
      assert eventually(fn -> waiting(batcher) == 2 end)
      open_gate(gate)
      assert {Task.await(held), Task.await(alive)} == {{:ok, 1}, {:ok, 1}}
      assert_receive {:event, [:py_port, :batcher, :drop], %{count: 1}, %{reason: :caller_down}}
    end

    test "are no more than max_pending", %{batcher: batcher, gate: gate, held: held} do
      tasks = for _ <- 1..2, do: Task.async(fn -> PyPort.batched(batcher, gate) end)
      assert eventually(fn -> waiting(batcher) == 2 end)
      assert {:error, %Error{kind: :overloaded, begun: false} = error} = PyPort.batched(batcher, gate)
      assert error.message =~ "max_pending"
      assert {:error, ^error} = PyPort.batched(batcher, gate, timeout: 0)
      open_gate(gate)
      assert Task.await_many([held | tasks]) == [{:ok, 1}, {:ok, 2}, {:ok, 2}]
    end

    test "are told of their batch by telemetry", %{batcher: batcher, gate: gate, held: held} do
      tasks = for _ <- 1..2, do: Task.async(fn -> PyPort.batched(batcher, gate) end)
      assert eventually(fn -> waiting(batcher) == 2 end)
      open_gate(gate)
      Task.await_many([held | tasks])
      assert_receive {:event, [:py_port, :batcher, :batch], %{size: 2} = measurements, metadata}, 5_000
      assert %{errors: 0, wait: wait, duration: duration} = measurements
      assert wait > 0 and duration > 0
      assert %{batch_key: :default, reason: :timeout, result: :ok, name: _} = metadata
    end

    test "are processed before a batcher that is stopped ends", %{batcher: batcher, gate: gate, held: held} do
      tasks = for _ <- 1..2, do: Task.async(fn -> PyPort.batched(batcher, gate) end)
      assert eventually(fn -> waiting(batcher) == 2 end)
      stop = Task.async(fn -> GenServer.stop(batcher, :shutdown) end)
      open_gate(gate)
      assert Task.await_many([held | tasks]) == [{:ok, 1}, {:ok, 2}, {:ok, 2}]
      assert Task.await(stop) == :ok
    end

    test "and their batch end with a batcher that is killed", context do
      %{server: server, batcher: batcher, gate: gate, held: held} = context
      waiting = Task.async(fn -> PyPort.batched(batcher, gate) end)
      assert eventually(fn -> waiting(batcher) == 1 end)
      Process.exit(batcher, :kill)
      assert {:error, %Error{}} = Task.await(held)
      assert {:error, %Error{}} = Task.await(waiting)
      # The request was cancelled: the gate is still shut.
      assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    end
  end

  test "a batch that has begun is ended by the last timeout of its items", %{server: server} do
    batcher = start(server, :gated)
    assert {:error, %Error{kind: :timeout, begun: begun}} = PyPort.batched(batcher, new_gate(), timeout: 100)
    # On a crowded machine its Python may be late to say so.
    assert begun in [true, nil]
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
  end

  test "an item whose batch waits for a server has not begun when its time is up" do
    gate = new_gate()
    pool = :"pool_#{System.unique_integer([:positive])}"
    start_supervised!({PyPort.Pool, name: pool, size: 1, init_code: wait_for(gate)})
    batcher = start(pool, :double, batch_size: 2, batch_timeout: 60_000)
    longer = Task.async(fn -> PyPort.batched(batcher, 1, timeout: 400) end)
    # The request of the batch goes on, so whether this item begins is not known.
    assert {:error, %Error{kind: :timeout, begun: nil}} = PyPort.batched(batcher, 2, timeout: 20)
    assert {:error, %Error{begun: false}} = Task.await(longer)
    open_gate(gate)
  end

  test "batch_timeout holds for the first item behind one that gave up", %{server: server} do
    batcher = start(server, :double, batch_timeout: 300)
    assert {:error, %Error{kind: :timeout, begun: false}} = PyPort.batched(batcher, 1, timeout: 100)
    {us, outcome} = :timer.tc(fn -> PyPort.batched(batcher, 2) end)
    assert outcome == {:ok, 4}
    assert us > 280_000
  end

  test "what waits costs a runner nothing", %{server: server} do
    batcher = start(server, :gated_lists, batch_size: 1, batch_timeout: 0)
    numbers = Enum.to_list(1..20_000)
    [first, rest] = gates = [new_gate(), new_gate()]
    on_exit(fn -> for gate <- gates, do: File.rm(gate <> ".begun") end)
    ask = fn gate -> Task.async(fn -> PyPort.batched(batcher, [gate | numbers], timeout: 20_000) end) end
    held = ask.(first)
    assert eventually(fn -> File.exists?(first <> ".begun") end)
    tasks = for _ <- 1..40, do: ask.(rest)
    assert eventually(fn -> waiting(batcher) == 40 end)
    open_gate(first)
    assert eventually(fn -> File.exists?(rest <> ".begun") end)
    [runner] = Map.keys(:sys.get_state(batcher).running)
    # The others have 320 KB each.
    assert {:memory, bytes} = Process.info(runner, :memory)
    assert bytes < 4_000_000
    open_gate(rest)
    assert Task.await_many([held | tasks]) == List.duplicate({:ok, 20_001}, 41)
  end

  test "thousands of items whose time is up at once cost little each", %{server: server} do
    batcher = start(server, :gated)
    {gate, held} = hold(batcher)
    tasks = for _ <- 1..2_000, do: Task.async(fn -> PyPort.batched(batcher, gate, timeout: 400) end)
    assert eventually(fn -> waiting(batcher) == 2_000 end)
    {:reductions, before} = Process.info(batcher, :reductions)
    outcomes = Task.await_many(tasks)
    assert Enum.all?(outcomes, &match?({:error, %Error{kind: :timeout}}, &1))
    # On a crowded machine the batcher may be late for some.
    assert Enum.count(outcomes, &match?({:error, %Error{begun: false}}, &1)) > 1_000
    {:reductions, reductions} = Process.info(batcher, :reductions)
    assert (reductions - before) / 2_000 < 1_000
    assert waiting(batcher) == 0
    open_gate(gate)
    assert Task.await(held) == {:ok, 1}
  end

  test "64 callers get at least three times as many answers per second as one by one" do
    # 5 ms for a batch, and 0.1 ms for each item.
    code = """
    import sys, time, types
    costly = types.ModuleType("costly")
    def model(items):
        time.sleep(0.005 + 0.0001 * len(items))
        return items
    costly.model = model
    sys.modules["costly"] = costly
    """

    server = start_server(init_code: code)
    batcher = start(server, :double, fun: "costly:model", batch_timeout: 5, batch_size: 64)
    one = fn n -> PyPort.call("costly:model", [[n]], %{}, server: server) end
    together = fn n -> PyPort.batched(batcher, n) end
    assert best_ms(one) >= 3 * best_ms(together)
  end

  # How long 64 callers wait for one answer each, the best of three times.
  defp best_ms(ask) do
    Enum.min(
      for _ <- 1..3 do
        {us, _answers} =
          :timer.tc(fn ->
            1..64 |> Enum.map(&Task.async(fn -> {:ok, _} = ask.(&1) end)) |> Task.await_many()
          end)

        us
      end
    )
  end

  test "objects in a result belong to the caller of the item", %{server: server} do
    batcher = start(server, :boxed)
    assert [{:ok, [one, 1]}, {:ok, [other, 2]}] = ask_and_stay(batcher, [1, 2])
    assert {:ok, _} = PyPort.call("builtins:id", [one])
    assert {:ok, _} = PyPort.call("builtins:id", [other])
  end

  test "objects for a caller that has timed out or ended are released" do
    server = start_server(init_code: @module)
    batcher = start(server, :gated_boxes, batch_size: 3, batch_timeout: 60_000)
    gate = new_gate()
    on_exit(fn -> File.rm(gate <> ".begun") end)
    patient = Task.async(fn -> PyPort.batched(batcher, gate, timeout: 20_000) end)
    actor = start_actor()
    owner = self()

    # A task that works for this process.
    killed =
      spawn(fn ->
        Process.put(:"$callers", [owner])
        PyPort.batched(batcher, gate)
      end)

    assert eventually(fn -> waiting(batcher) == 2 end)

    assert {:error, %Error{kind: :timeout, begun: nil}} =
             tell(actor, fn -> PyPort.batched(batcher, gate, timeout: 50) end)

    Process.exit(killed, :kill)
    open_gate(gate)
    assert {:ok, %PyPort.Object{}} = Task.await(patient)
    assert eventually(fn -> held(server) == 1 end)
    assert Process.alive?(actor)
  end

  test "objects in a result are those of a request: of whom a task works for, and of a scope", %{
    server: server
  } do
    batcher = start(server, :boxed)
    {:ok, [object, 1]} = fn -> PyPort.batched(batcher, 1) end |> Task.async() |> Task.await()
    assert {:ok, _} = PyPort.call("builtins:id", [object])
    {:ok, [object, 2]} = PyPort.with_objects(fn -> PyPort.batched(batcher, 2) end)
    assert eventually(fn -> match?({:error, _released}, PyPort.call("builtins:id", [object])) end)
  end

  test "objects are found wherever they stand in a result", %{server: server} do
    batcher = start(server, :nested_boxes)
    assert {:ok, [set, %{} = map, {box}]} = PyPort.batched(batcher, 1)
    objects = [box | Map.keys(map) ++ Enum.to_list(set)]
    assert length(objects) == 3
    for object <- objects, do: assert({:ok, _} = PyPort.call("builtins:id", [object]))
  end

  test "one object for two callers belongs to both", %{server: server} do
    batcher = start(server, :same_box, batch_size: 2, batch_timeout: 60_000)
    [one, other] = actors = [start_actor(), start_actor()]
    tasks = for actor <- actors, do: Task.async(fn -> tell(actor, fn -> PyPort.batched(batcher, 1) end) end)
    assert [{:ok, object}, {:ok, same}] = Task.await_many(tasks)
    assert object.id != same.id
    Process.exit(one, :kill)
    assert eventually(fn -> not holds?(Process.whereis(server), one) end)
    assert {:ok, _} = tell(other, fn -> PyPort.call("builtins:id", [same]) end)
  end

  # The callers live as long as the test.
  defp ask_and_stay(batcher, items) do
    for item <- items do
      actor = start_actor()
      tell(actor, fn -> PyPort.batched(batcher, item) end)
    end
  end

  test "a switch moves a batcher to another pool, and loses no item", %{server: server} do
    module = String.replace(@module, "n * 2", "n * 3")
    other = start_server(init_code: module)
    batcher = start(server, :double, batch_timeout: 1, batch_size: 4)
    stop = :atomics.new(1, [])

    callers =
      for caller <- 1..4 do
        Task.async(fn ->
          Stream.iterate(1, &(&1 + 1))
          |> Stream.take_while(fn _n -> :atomics.get(stop, 1) == 0 end)
          |> Enum.map(fn n -> {caller * n, PyPort.batched(batcher, caller * n)} end)
        end)
      end

    assert {:ok, _} = PyPort.batched(batcher, 5)
    assert Batcher.switch(batcher, other) == :ok
    # From here on the former server may be stopped.
    pid = Process.whereis(server)
    :sys.suspend(pid)
    assert PyPort.batched(batcher, 7) == {:ok, 21}
    :atomics.put(stop, 1, 1)
    outcomes = callers |> Task.await_many() |> List.flatten()
    :sys.resume(pid)
    assert length(outcomes) > 4
    assert Enum.all?(outcomes, fn {n, outcome} -> outcome in [{:ok, n * 2}, {:ok, n * 3}] end)
  end
end
