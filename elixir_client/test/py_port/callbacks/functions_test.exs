defmodule PyPort.FunctionsTest do
  # Functions of Elixir in Python: wherever they stand, as long as they are held, and back again.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Servers}

  setup_all do
    %{server: start_server(heartbeat_interval: 50)}
  end

  test "they can be called wherever they stand in a value", %{server: server} do
    add = &(&1 + 1)

    for {value, code} <- [
          {add, "v(1)"},
          {[add], "v[0](1)"},
          {[1, %{"a" => {2, add}}], "v[1]['a'][1](1)"},
          {%{a: %{b: [0, add]}}, "v['a']['b'][1](1)"},
          {%{1 => [[[add]]]}, "v[1][0][0][0](1)"},
          {{:ok, add}, "v[1](1)"}
        ] do
      assert PyPort.eval!(code, %{v: value}, server: server) == 2
    end

    assert PyPort.call!("builtins:map", [add, [1, 2]], %{}, server: server, return: :object)
    assert PyPort.eval!("sorted([3, 1, 2], key=key)", %{key: &(-&1)}, server: server) == [3, 2, 1]
  end

  test "a function that Elixir answers with is one as well", %{server: server} do
    globals = %{adder: fn n -> %{"add" => &(&1 + n)} end}
    assert PyPort.eval!("adder(2)['add'](3)", globals, server: server) == 5
  end

  test "keyword arguments are a last map", %{server: server} do
    globals = %{f: fn a, options -> {a, options} end, g: fn options -> options end}
    assert PyPort.eval!("f(1, x=2, y=[3])", globals, server: server) == {1, %{"x" => 2, "y" => [3]}}
    assert PyPort.eval!("g(x=1)", globals, server: server) == %{"x" => 1}
    assert {:error, error} = PyPort.eval("f(1)", globals, server: server)
    assert error.message =~ "<Elixir function fn/2> takes 2 arguments, not 1"
  end

  test "they have a name, and can be wrapped", %{server: server} do
    globals = %{f: &String.upcase/1, g: fn -> 1 end}

    code =
      "import functools, copy\n(f.__name__, g.__name__, functools.wraps(f)(lambda x: f(x))('a'), repr(f), copy.deepcopy([g])[0] is g)"

    assert PyPort.eval!(code, globals, server: server) ==
             {"upcase", "fn", "A", "<Elixir function upcase/1>", true}
  end

  test "Python hands them back as themselves, at every place", %{server: server} do
    one = fn -> :one end
    two = &String.upcase/1

    for code <- ["f", "[1, f]", "{'k': (f, [f])}", "{'a': {'b': f}, 'o': object()}"] do
      back = PyPort.eval!(code, %{f: one}, server: server)
      assert [^one | _] = functions(back), inspect(back)
    end

    assert PyPort.eval!("check(f, [g])", %{f: one, g: two, check: &(&1 == one and &2 == [two])},
             server: server
           )

    assert [{1, ^one}] = Enum.to_list(PyPort.stream("[(1, f)]", %{f: one}, server: server))
    assert [%{"f" => ^two}] = PyPort.eval!("[{'f': f}]", %{f: two}, server: server)
  end

  defp functions(fun) when is_function(fun), do: [fun]
  defp functions([head | tail]), do: functions(head) ++ functions(tail)
  defp functions(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> functions()
  defp functions(%_{}), do: []
  defp functions(map) when is_map(map), do: map |> Map.values() |> functions()
  defp functions(_other), do: []

  test "they live as long as Python holds them", %{server: server} do
    test = self()
    {:ok, session} = PyPort.open_session(server: server)
    PyPort.eval!("kept = handlers['f']", %{handlers: %{"f" => &send(test, {:called, &1})}}, session: session)
    # Some heartbeats later, in another request.
    assert eventually(fn -> rows(server) == 1 end)
    PyPort.eval!("kept(1); None", %{}, session: session)
    assert_received {:called, 1}

    # A thread that outlives its request calls outside of any.
    code =
      "import threading, time\ndef run():\n    go.wait(); kept(2)\ngo = threading.Event(); t = threading.Thread(target=run); t.start()"

    PyPort.eval!(code, %{}, session: session)
    PyPort.eval!("go.set(); t.join()", %{}, session: session)
    assert_received {:called, 2}

    PyPort.eval!("kept = None; handlers = None; None", %{}, session: session)
    assert eventually(fn -> rows(server) == 0 end)
  end

  test "an item of a stream that is read late has the caller's own ones, and says that others are gone", %{
    server: server
  } do
    {own, other} = {&(&1 + 1), &(&1 + 2)}
    code = "h = give()\nyield 0\nyield [own]\nyield {'h': h}"
    items = PyPort.stream(code, %{own: own, give: fn -> other end}, server: server)
    assert Enum.to_list(items) == [0, [own], %{"h" => other}]

    error =
      assert_raise PyPort.Error, ~r/a function of Elixir .* that Python does not hold any more/, fn ->
        Enum.each(items, fn
          0 -> assert eventually(fn -> PyPort.eval!("1", %{}, server: server) == 1 and rows(server) == 0 end)
          [^own] -> send(self(), :own)
        end)
      end

    assert error.kind == :decode
    assert_received :own
  end

  test "none is left of requests that have not begun, or could not be read", %{server: server} do
    f = fn -> 1 end
    assert {:error, %{kind: :decode}} = PyPort.eval("1", %{f: f, x: [f, <<255>>]}, server: server)
    assert {:error, _error} = PyPort.eval("1 +", %{f: f}, server: server)
    assert eventually(fn -> rows(server) == 0 end)
  end

  defp rows(server) do
    %{connection: connection} = :sys.get_state(server)
    :ets.select_count(connection.calls, [{{{:function, :_}, :_, :_}, [], [true]}])
  end
end
