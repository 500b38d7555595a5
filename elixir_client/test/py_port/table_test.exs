defmodule PyPort.TableTest do
  # Data frames of a real Python, as Arrow streams and as frames of Explorer, and back.
  use ExUnit.Case, async: true

  import PyPort.Test.Servers, only: [start_server: 1, nothing_left?: 1]

  alias Explorer.DataFrame
  alias PyPort.{Error, Object, Table}

  @imports "import pandas as pd, polars as pl, pyarrow as pa"

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__, init_code: @imports})
    {:ok, server: __MODULE__}
  end

  @frames ["pd.DataFrame({'a': [1, 2]})", "pl.DataFrame({'a': [1, 2]})", "pa.table({'a': [1, 2]})"]

  test "a frame is an object, or an Arrow stream where it is asked for", %{server: server} do
    for code <- @frames do
      assert {:ok, %Object{}} = PyPort.eval(code, %{}, server: server, timeout: 60_000)

      assert {:ok, [%Table{format: :arrow_stream} = table, 1]} =
               PyPort.eval("[#{code}, 1]", %{}, server: server, tables: :arrow)

      assert PyPort.eval("pa.table(t[0]).to_pydict()", %{t: [table]}, server: server) ==
               {:ok, %{"a" => [1, 2]}}

      assert PyPort.eval("t", %{t: table}, server: server) == {:ok, table}
    end
  end

  test "a frame of Explorer comes out where it is asked for, on every way", %{server: server} do
    options = [server: server, tables: :explorer]

    for code <- @frames do
      assert {:ok, %DataFrame{} = frame} = PyPort.eval(code, %{}, options)
      assert DataFrame.names(frame) == ["a"]
      assert DataFrame.to_rows(frame) == [%{"a" => 1}, %{"a" => 2}]
      assert {:ok, %{"f" => {%DataFrame{}, nil}}} = PyPort.eval("{'f': (#{code}, None)}", %{}, options)
      assert [%DataFrame{}, 1] = Enum.to_list(PyPort.stream("yield #{code}; yield 1", %{}, options))

      assert {:ok, [%DataFrame{}, %Object{} = object]} = PyPort.eval("[#{code}, object()]", %{}, options)
      assert :ok = PyPort.release(object)
    end

    assert nothing_left?(server)
  end

  test "a frame of Explorer goes in by itself", %{server: server} do
    {:ok, frame} = PyPort.eval(hd(@frames), %{}, server: server, tables: :explorer)
    options = [server: server, tables: :explorer]

    assert PyPort.eval("pa.table(f).num_rows", %{f: frame}, options) == {:ok, 2}
    assert PyPort.eval("pl.DataFrame(f['x'][0]).height", %{f: %{x: [frame]}}, options) == {:ok, 2}
    assert PyPort.eval("len(pd.DataFrame.from_arrow(f()))", %{f: fn -> frame end}, options) == {:ok, 2}
    assert PyPort.eval("f", %{f: frame}, options) == {:ok, frame}
  end

  test "functions of Elixir get frames in the form of the server" do
    server = start_server(tables: :explorer, init_code: "import pyarrow as pa")
    me = self()
    f = fn value, object -> send(me, {value, object}) && nil end
    code = "f([pa.table({'a': [1]})], object())"
    assert {:ok, nil} = PyPort.eval(code, %{f: f}, server: server)
    assert_received {[%DataFrame{}], %Object{}}
    assert nothing_left?(server)
    # A server's default holds for its requests, too.
    assert {:ok, %DataFrame{}} = PyPort.eval("pa.table({'a': [1]})", %{}, server: server)
    assert {:ok, %Table{}} = PyPort.eval("pa.table({'a': [1]})", %{}, server: server, tables: :arrow)
  end

  test "a stream that Explorer cannot load is an error, and its objects are released", %{server: server} do
    table = %Table{format: :arrow_stream, data: "no stream"}

    assert {:error, %Error{kind: :decode, message: message}} =
             PyPort.eval("[t, object()]", %{t: table}, server: server, tables: :explorer)

    assert message =~ "Explorer cannot load a table"
    assert nothing_left?(server)
    assert {:ok, %{objects: 0}} = objects(server)
  end

  defp objects(server) do
    PyPort.Test.Processes.eventually(fn -> match?([%{objects: 0}], PyPort.status(server)) end)
    [status] = PyPort.status(server)
    {:ok, %{objects: status.objects}}
  end

  test "what is no table is refused by name", %{server: server} do
    for {code, said} <- [
          {"pd.Series([1])", "a pandas.Series cannot be written as an Arrow stream"},
          {"pd.DataFrame({'a': [object()]})", "Could not convert"}
        ] do
      assert {:error, %Error{kind: :encode, message: message}} =
               PyPort.eval("[#{code}]", %{}, server: server, tables: :arrow)

      assert message =~ "result[0]"
      assert message =~ said
      assert message =~ "return: :object"
    end
  end
end
