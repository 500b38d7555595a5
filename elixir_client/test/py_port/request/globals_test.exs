defmodule PyPort.Request.GlobalsTest do
  # `return: :globals`, end to end: what code binds comes back beside its value.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Servers}

  alias PyPort.{Error, Object}

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__, heartbeat_interval: 50})
    {:ok, server: __MODULE__}
  end

  defp globals(code, globals, options), do: PyPort.eval(code, globals, [return: :globals] ++ options)

  test "the value comes first, and then what the code has bound, by name", %{server: server} do
    assert globals("a = b = n + 1\nfor i in range(3): pass\na * 2", %{n: 4}, server: server) ==
             {:ok, {10, %{"a" => 5, "b" => 5, "i" => 2}}}

    assert globals("1", %{n: 4}, server: server) == {:ok, {1, %{}}}
    assert PyPort.eval!("x = 1", %{}, server: server, return: :globals) == {nil, %{"x" => 1}}
  end

  test "modules, functions and classes are objects, and again themselves as globals", %{server: server} do
    code = "import math\ndef double(x): return 2 * x\nclass Point: pass"
    {:ok, {nil, bound}} = globals(code, %{}, server: server)

    assert %{"math" => %Object{type: "module"}, "double" => %Object{}, "Point" => %Object{type: "type"}} =
             bound

    assert PyPort.eval("double(math.floor(2.5)), type(Point()).__name__", bound, server: server) ==
             {:ok, {4, "Point"}}

    bound |> Map.values() |> PyPort.release()
    assert nothing_left?(server)
  end

  test "what is bound in one request is what the next one knows", %{server: server} do
    cells = [
      "import itertools",
      "numbers = itertools.count(3)",
      "top = [next(numbers), next(numbers)]"
    ]

    bound =
      Enum.reduce(cells, %{}, fn cell, known ->
        {:ok, {nil, bound}} = globals(cell, known, server: server)
        Map.merge(known, bound)
      end)

    assert bound["top"] == [3, 4]
    PyPort.release(for {_name, %Object{} = object} <- bound, do: object)
  end

  test "in a session it is what this request has bound, in both lanes", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)
    assert globals("x = 1\ny = 2", %{}, session: session) == {:ok, {nil, %{"x" => 1, "y" => 2}}}
    assert globals("y = x + y", %{}, session: session) == {:ok, {nil, %{"y" => 3}}}

    assert {:ok, {4, %{"z" => 4, "asyncio" => module}}} =
             globals("import asyncio\nz = await asyncio.sleep(0, x + y)\nz", %{}, session: session)

    PyPort.release(module)
    assert PyPort.eval("x, y, z", %{}, session: session) == {:ok, {1, 3, 4}}
    PyPort.close_session(session)
  end

  test "objects among them belong to the caller, and end with it", %{server: server} do
    actor = start_actor()
    {:ok, {nil, %{"o" => object}}} = tell(actor, fn -> globals("o = object()", %{}, server: server) end)
    assert {:ok, _} = PyPort.eval("o", %{o: object}, server: server, return: :globals)
    Process.exit(actor, :kill)

    assert eventually(fn ->
             match?({:error, %Error{}}, PyPort.eval("str(o)", %{o: object}, server: server))
           end)

    {:ok, {nil, %{"o" => object}}} =
      PyPort.with_objects(fn -> globals("o = object()", %{}, server: server) end)

    assert eventually(fn ->
             match?({:error, %Error{}}, PyPort.eval("str(o)", %{o: object}, server: server))
           end)
  end

  test "an error is an error", %{server: server} do
    assert {:error, %Error{kind: :python}} = globals("x = object()\n1 / 0", %{}, server: server)
    assert nothing_left?(server)
  end

  test "calls and streams have none, which is a programmer's error" do
    for request <- [
          fn -> PyPort.call("math:sqrt", [4.0], %{}, return: :globals) end,
          fn -> PyPort.stream("yield 1", %{}, return: :globals) end
        ] do
      assert_raise ArgumentError, ~r/:globals, which is for PyPort.eval\/3/, request
    end

    assert_raise ArgumentError, ~r/:value, :object or :globals/, fn -> PyPort.eval("1", %{}, return: :all) end
  end
end
