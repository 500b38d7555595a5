defmodule PyPort.Stream.GeneratorsTest do
  # Streams, end to end: real generators. Their costs stand in costs_test.exs.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.Error

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__, heartbeat_interval: 50})
    {:ok, server: __MODULE__}
  end

  test "generators, iterators, iterables and asynchronous generators are streams", %{server: server} do
    for {code, items} <- [
          {"yield 1\nyield 2", [1, 2]},
          {"for n in range(3): yield n", [0, 1, 2]},
          {"(n for n in range(3))", [0, 1, 2]},
          {"def g():\n    yield 'a'\n    return 'not seen'\ng()", ["a"]},
          {"[1, [2]]", [1, [2]]},
          {"range(2)", [0, 1]},
          {"map(str, range(2))", ["0", "1"]},
          {"import asyncio\nfor n in range(3):\n    await asyncio.sleep(0)\n    yield n", [0, 1, 2]},
          {"async def g():\n    yield 5\ng()", [5]},
          {"[]", []}
        ] do
      assert {code, code |> PyPort.stream(%{}, server: server) |> Enum.to_list()} == {code, items}
    end

    assert nothing_left?(server)
  end

  test "the finally of a halted stream runs before the next request of its consumer", %{server: server} do
    for way <- ["", "import asyncio\nawait asyncio.sleep(0)\n"], {name, halt} <- halts(), n <- 1..5 do
      code =
        way <>
          """
          import sys, time
          try:
              for n in range(1_000_000): yield n
          finally:
              time.sleep(0.005)
              sys.left = mark
          """

      code |> PyPort.stream(%{mark: {name, n}}, server: server) |> halt.()
      assert PyPort.eval("import sys; sys.left", %{}, server: server) == {:ok, {name, n}}
    end

    assert nothing_left?(server)
  end

  # Each reads some items, and no more.
  defp halts do
    [
      take: &Enum.take(&1, 2),
      find: &Enum.find(&1, fn n -> n == 1 end),
      zip: &Enum.zip(&1, [:a, :b]),
      raise: &assert_raise(RuntimeError, fn -> Enum.each(&1, fn n -> n == 1 && raise("at 1") end) end),
      throw: &catch_throw(Enum.each(&1, fn n -> n == 1 && throw(n) end))
    ]
  end

  describe "a stream that is to end while Python is at another request" do
    setup do
      server = start_server(heartbeat_interval: 50, cancel_grace: 150, kill_grace: 150)
      code = "import sys\ntry:\n    for n in range(9): yield n\nfinally: sys.left = True"
      {:ok, server: server, stream: PyPort.stream(code, %{}, server: server, timeout: 300, credit: 1)}
    end

    # Longer than both graces.
    @busy "import time\nfor _ in range(120): time.sleep(0.01)\n'done'"

    test "is left by a consumer that halts, and ends before its next request", context do
      busy =
        Enum.reduce_while(context.stream, nil, fn 0, nil -> {:halt, begin_eval(context.server, @busy)} end)

      assert_left(context, busy)
    end

    test "is left by one whose time is up", context do
      consume = fn ->
        Enum.each(context.stream, fn 0 -> send(self(), begin_eval(context.server, @busy)) end)
      end

      assert_raise Error, ~r/no item within 300 ms/, consume
      assert_received %Task{} = busy
      assert_left(context, busy)
    end

    test "is left by one that dies", context do
      test = self()

      consumer =
        spawn(fn ->
          Enum.each(context.stream, fn 0 -> send(test, :begun) && Process.sleep(:infinity) end)
        end)

      assert_receive :begun, 5_000
      busy = begin_eval(context.server, @busy)
      Process.exit(consumer, :kill)
      assert_left(context, busy)
    end

    defp assert_left(%{server: server}, busy) do
      assert {:ok, true} = PyPort.eval("import sys; sys.left", %{}, server: server)
      assert {{:ok, "done"}, _ms} = Task.await(busy)
      assert nothing_left?(server)
    end
  end

  test "globals, sessions and functions work as everywhere", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)

    assert PyPort.stream("for x in xs: yield f(x)", %{xs: [1, 2], f: &(&1 * 10)}, session: session)
           |> Enum.to_list() == [10, 20]

    assert PyPort.eval("xs", %{}, session: session) == {:ok, [1, 2]}
  end

  test "an endless generator is as lazy as its consumer, and its finally runs when that halts", %{
    server: server
  } do
    {:ok, session} = PyPort.open_session(server: server)
    PyPort.eval!("made, closed = 0, False", %{}, session: session)

    code = """
    try:
        while True:
            made += 1
            yield made
    finally:
        closed = True
    """

    assert PyPort.stream(code, %{}, session: session, credit: 8) |> Enum.take(3) == [1, 2, 3]
    assert PyPort.eval("closed", %{}, session: session) == {:ok, true}
    {:ok, made} = PyPort.eval("made", %{}, session: session)
    assert made <= 3 + 2 * 8
    assert nothing_left_but_session?(server)
  end

  test "a consumer that dies closes its generator", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)
    PyPort.eval!("closed = False", %{}, session: session)
    code = "try:\n    while True: yield 1\nfinally: closed = True"
    test = self()

    consumer =
      spawn(fn -> PyPort.stream(code, %{}, session: session) |> Enum.each(&send(test, {:item, &1})) end)

    assert_receive {:item, 1}, 5_000
    Process.exit(consumer, :kill)
    assert eventually(fn -> PyPort.eval("closed", %{}, session: session) == {:ok, true} end)
  end

  test "an error is raised after the items before it, with its traceback", %{server: server} do
    test = self()
    stream = PyPort.stream("for n in (3, 2, 1, 0): yield 6 / n", %{}, server: server)

    error = assert_raise Error, ~r/ZeroDivisionError/, fn -> Enum.each(stream, &send(test, {:item, &1})) end
    assert error.kind == :python
    for item <- [2.0, 3.0, 6.0], do: assert_received({:item, ^item})
    assert_raise Error, ~r/SyntaxError/, fn -> PyPort.stream("x +", %{}, server: server) |> Enum.to_list() end
    assert_raise Error, ~r/iter/, fn -> PyPort.stream("5", %{}, server: server) |> Enum.to_list() end
    assert nothing_left?(server)
  end

  test "two streams of one server can be zipped, and requests are answered meanwhile", %{server: server} do
    count = "import itertools; itertools.count()"
    one = PyPort.stream(count, %{}, server: server)
    two = PyPort.stream(count, %{}, server: server, credit: 3)
    zipped = Stream.zip(one, two)
    assert Enum.take(zipped, 2_000) == for(n <- 0..1_999, do: {n, n})

    assert Enum.take(Stream.map(one, fn n -> PyPort.eval!("n * 2", %{n: n}, server: server) end), 50) ==
             for(n <- 0..49, do: n * 2)

    assert nothing_left?(server)
  end

  test "a parked generator does not keep the server from answering", %{server: server} do
    stream = PyPort.stream("while True: yield 1", %{}, server: server, credit: 2)

    Enum.reduce_while(stream, 0, fn 1, n ->
      assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
      if n == 20, do: {:halt, n}, else: {:cont, n + 1}
    end)

    assert nothing_left?(server)
  end

  test "objects are items like any other, and those that are not taken are released", %{server: server} do
    stream = PyPort.stream("while True: yield object()", %{}, server: server)
    [one, two] = Enum.take(stream, 2)
    assert PyPort.call!("builtins:len", [[one, two]], %{}, server: server) == 2
    PyPort.release([one, two])
    assert nothing_left?(server)
  end

  test "the timeout is for each item", %{server: server} do
    code = "import time\nfor n in range(4):\n    time.sleep(0.05)\n    yield n"
    assert PyPort.stream(code, %{}, server: server, timeout: 2_000) |> Enum.to_list() == [0, 1, 2, 3]
    code = "import time\nyield 1\ntime.sleep(0.5)\nyield 2"

    assert_raise Error, ~r/no item within 100 ms/, fn ->
      PyPort.stream(code, %{}, server: server, timeout: 100) |> Enum.to_list()
    end

    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
    assert nothing_left?(server)
  end

  defp nothing_left_but_session?(server) do
    eventually(fn ->
      state = :sys.get_state(server)

      state.requests.attached == %{} and state.cancellation.entries == %{} and
        :ets.info(state.connection.table, :size) == 0
    end)
  end
end
