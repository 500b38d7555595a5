defmodule PyPort.LibrariesTest do
  # Tensors and tables on their way to Python and back, and the two libraries that have them.
  use ExUnit.Case, async: true

  alias PyPort.{Libraries, Object, Table, Tensor, Values, View}
  alias PyPort.Test.DeviceBackend

  @tensor %Tensor{type: {:f, 64}, shape: {1}, data: <<1.5::float-native>>}
  @table %Table{format: :arrow_stream, data: "rows"}

  describe "what is sent" do
    test "puts the data of tensors and tables where Python looks at it, wherever they stand" do
      tensor = %{@tensor | data: %View{data: @tensor.data}}
      table = %{@table | data: %View{data: "rows"}}

      for {value, sent} <- [
            {@tensor, tensor},
            {[1, "a", :b, @tensor], [1, "a", :b, tensor]},
            {[1, 2, 3, 4, 5, 6, 7, 8, @table], [1, 2, 3, 4, 5, 6, 7, 8, table]},
            {{:ok, %{a: [@table, %{"b" => @tensor}]}}, {:ok, %{a: [table, %{"b" => tensor}]}}},
            {[1 | @tensor], [1 | tensor]},
            {%Table{@table | data: @tensor}, %Table{@table | data: tensor}},
            {%URI{host: @tensor}, %URI{host: tensor}}
          ] do
        assert sent(value) == sent
        # As an answer may be that has come from a process on another node.
        assert sent(sent) == sent
      end
    end

    test "leaves all other values as they are" do
      for value <- [
            1,
            [],
            "a",
            nil,
            self(),
            make_ref(),
            [1 | 2],
            {},
            %{},
            MapSet.new([1]),
            ~D[2024-02-29],
            1..3,
            Enum.to_list(1..100),
            %Object{server: self(), token: "", id: 1, type: "", repr: ""},
            <<1::3>>
          ],
          nested <- [value, [value], %{a: {value}}] do
        assert sent(nested) === nested
      end
    end

    test "takes the numbers of an Nx.Tensor by Nx, from any backend, with all axes" do
      tensor = Nx.tensor([[1, 2], [3, 4]], type: {:s, 32})
      sent = %Tensor{type: {:s, 32}, shape: {2, 2}, data: %View{data: Nx.to_binary(tensor)}}

      assert sent([tensor]) == [sent]
      assert sent([DeviceBackend.hold(tensor)]) == [sent]

      vectorized = %{tensor | shape: {2}, names: [nil], vectorized_axes: [rows: 2]}
      assert sent(%{a: vectorized}) == %{a: sent}
    end

    test "has Explorer write a frame" do
      frame = Explorer.DataFrame.load_ipc_stream!(<<0xFFFFFFFF::32, "rows">>)
      sent = %Table{format: :arrow_stream, data: %View{data: <<0xFFFFFFFF::32, "rows">>}}
      assert sent({:ok, frame}) == {:ok, sent}
    end
  end

  defp sent(value), do: value |> Values.scan(Values.none()) |> elem(0)

  describe "load/2" do
    test "loads the tables of a value that says so, and no others" do
      stream = <<0xFFFFFFFF::32, "rows">>
      table = %{@table | data: stream}
      frame = Explorer.DataFrame.load_ipc_stream!(stream)

      assert Libraries.load([table], [3]) == {:ok, [table]}

      assert Libraries.load([1, {table, %{"a" => table}}], [0, 3, 0]) ==
               {:ok, [1, {frame, %{"a" => frame}}]}

      assert Libraries.load(table, [0]) == {:ok, frame}
    end

    test "says what Explorer says of a stream that it cannot read" do
      assert {:error, %{kind: :decode, message: "Explorer cannot load a table: load_ipc_stream failed" <> _}} =
               Libraries.load(@table, [0])
    end
  end

  # What the stand-ins in test/support have is what Nx 0.13.1 and Explorer 0.12 have by their source: the names of the
  # functions and of the fields. A later version that differs in these is to be met here.
  test "the stand-ins have the shape of the real libraries" do
    for {module, functions} <- [
          {Nx,
           from_binary: 2,
           to_binary: 1,
           reshape: 2,
           devectorize: 1,
           tensor: 2,
           shape: 1,
           type: 1,
           to_flat_list: 1},
          {Explorer.DataFrame, load_ipc_stream!: 1, dump_ipc_stream!: 1, names: 1, n_rows: 1, to_rows: 1}
        ] do
      assert Code.ensure_loaded?(module)
      assert Enum.sort(functions) == Enum.sort(module.__info__(:functions) -- [__struct__: 0, __struct__: 1])
    end

    assert fields(Nx.Tensor) == [:data, :donatable?, :names, :shape, :type, :vectorized_axes]
    assert fields(Nx.BinaryBackend) == [:state]
    assert fields(Explorer.DataFrame) == [:data, :dtypes, :groups, :names]
  end

  defp fields(module), do: module |> struct() |> Map.from_struct() |> Map.keys() |> Enum.sort()

  # The stand-ins belong to the application of the tests, so another BEAM runs without them.
  @tag :tmp_dir
  test "without the libraries all else works, and the options that need them say so", %{tmp_dir: directory} do
    for path <- Path.wildcard(Path.join(Application.app_dir(:py_port, "ebin"), "*")),
        not (Path.basename(path) =~ ~r/^Elixir\.(Nx|Explorer)\b/),
        do: File.cp!(path, Path.join(directory, Path.basename(path)))

    code = """
    alias PyPort.{Libraries, Options, Tensor, Values, View}
    false = Libraries.nx?()
    false = Libraries.explorer?()
    nil = Libraries.nx_template()
    {%Tensor{data: %View{}}, _none} = Values.scan(%Tensor{type: {:u, 8}, shape: {1}, data: "a"}, Values.none())
    %{arrays: :tensor, tables: :arrow} = Options.request!(arrays: :tensor, tables: :arrow)

    for option <- [arrays: :nx, tables: :explorer], check <- [&Options.request!/1, &Options.pool!/1] do
      try do
        check.([option])
      rescue
        error in ArgumentError -> IO.puts(error.message)
      end
    end
    """

    {printed, 0} = System.cmd("elixir", ["-pa", directory, "-e", code], stderr_to_stdout: true)

    assert Enum.uniq(String.split(printed, "\n", trim: true)) == [
             "option :arrays must be :object, :tensor, or :nx where the application has the library :nx, got: :nx",
             "option :tables must be :object, :arrow, or :explorer where the application has the library :explorer, " <>
               "got: :explorer"
           ]
  end
end
