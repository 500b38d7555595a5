defmodule PyPort.TensorTest do
  # Arrays of a real Python, as tensors of PyPort and of Nx, and back.
  use ExUnit.Case, async: true

  import PyPort.Test.Servers, only: [start_server: 1, nothing_left?: 1]

  alias PyPort.{Error, Object, Tensor}
  alias PyPort.Test.DeviceBackend

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__, init_code: "import numpy as np"})
    {:ok, server: __MODULE__}
  end

  @arange "np.arange(6.0).reshape(2, 3)"
  @data for number <- 0..5, into: <<>>, do: <<number::float-native>>

  test "an array is an object, or a tensor where it is asked for", %{server: server} do
    assert {:ok, %Object{type: "numpy.ndarray"}} = PyPort.eval(@arange, %{}, server: server)
    tensor = %Tensor{type: {:f, 64}, shape: {2, 3}, data: @data, meta: %{}}
    assert PyPort.eval(@arange, %{}, server: server, arrays: :tensor) == {:ok, tensor}

    assert PyPort.eval("{'a': (#{@arange}, None)}", %{}, server: server, arrays: :tensor) ==
             {:ok, %{"a" => {tensor, nil}}}

    assert {:ok, %Tensor{shape: {3}}} = PyPort.call("numpy:arange", [3], %{}, server: server, arrays: :tensor)

    assert ["yields", %Tensor{shape: {2}}] =
             Enum.to_list(
               PyPort.stream("yield 'yields'; yield np.ones(2)", %{}, server: server, arrays: :tensor)
             )
  end

  test "a server and a pool have a default, and a request its own" do
    server = start_server(arrays: :tensor, init_code: "import numpy as np")
    assert {:ok, %Tensor{}} = PyPort.eval(@arange, %{}, server: server)
    assert {:ok, %Object{}} = PyPort.eval(@arange, %{}, server: server, arrays: :object)
    assert {:ok, %Object{}} = PyPort.eval(@arange, %{}, server: server, return: :object)

    pool = start_supervised!({PyPort.Pool, size: 1, arrays: :nx, init_code: "import numpy as np"})
    assert {:ok, %Nx.Tensor{}} = PyPort.eval(@arange, %{}, server: pool)
    assert {:ok, %Tensor{}} = PyPort.eval(@arange, %{}, server: pool, arrays: :tensor)
  end

  test "every type of tensor is the same array in Python, and comes back as it was", %{server: server} do
    for type <- [
          s: 8,
          s: 16,
          s: 32,
          s: 64,
          u: 8,
          u: 16,
          u: 32,
          u: 64,
          f: 16,
          f: 32,
          f: 64,
          bf: 16,
          c: 64,
          c: 128
        ],
        shape <- [{}, {1}, {2, 3}, {0, 2}, {1, 2, 1}] do
      bytes = div(elem(type, 1), 8) * Tuple.product(shape)
      tensor = %Tensor{type: type, shape: shape, data: :binary.copy(<<0>>, bytes)}

      for value <- [tensor, [%{a: {tensor}}]] do
        value = if type == {:bf, 16}, do: value, else: value
        assert PyPort.eval("x", %{x: value}, server: server, arrays: :tensor) == {:ok, keys_as_text(value)}

        assert PyPort.call("copy:copy", [value], %{}, server: server, arrays: :tensor) ==
                 {:ok, keys_as_text(value)}
      end
    end
  end

  defp keys_as_text([%{a: value}]), do: [%{a: value}]
  defp keys_as_text(value), do: value

  test "booleans and times have what they are in meta, both ways", %{server: server} do
    options = [server: server, arrays: :tensor]

    for {code, meta, check} <- [
          {"np.array([True, False])", %{kind: :bool}, "x.dtype == bool"},
          {"np.array(['2024-02-29', 'NaT'], 'M8[ns]')", %{kind: :datetime64, unit: "ns"},
           "x.dtype == 'M8[ns]' and np.isnat(x[1])"},
          {"np.array([5, -5], 'm8[25s]')", %{kind: :timedelta64, unit: "25s"}, "x.dtype == 'm8[25s]'"}
        ] do
      assert {:ok, %Tensor{meta: ^meta} = tensor} = PyPort.eval(code, %{}, options)
      assert PyPort.eval("bool(#{check})", %{x: tensor}, options) == {:ok, true}
      assert PyPort.eval("bool(#{check})", %{x: tensor}, [binary_as: :bytes] ++ options) == {:ok, true}
      assert PyPort.eval("x", %{x: tensor}, options) == {:ok, tensor}
    end
  end

  test "a tensor cannot be changed in Python, a writable one can", %{server: server} do
    tensor = %Tensor{type: {:f, 64}, shape: {2, 3}, data: @data}
    code = "x[0, 0] = 7\nfloat(x.sum())"

    assert {:error, %Error{type: "ValueError", message: message}} =
             PyPort.eval(code, %{x: tensor}, server: server)

    assert message =~ "read-only"
    assert PyPort.eval(code, %{x: Tensor.writable(tensor)}, server: server) == {:ok, 22.0}

    nx = Nx.tensor([[0.0, 1.0]], type: {:f, 64})
    assert PyPort.eval(code, %{x: Tensor.writable(nx)}, server: server) == {:ok, 8.0}
  end

  test "a tensor of Nx goes in by itself, from any backend and wherever it stands", %{server: server} do
    nx = Nx.tensor([[1, 2, 3], [4, 5, 6]], type: {:s, 64})

    for tensor <- [nx, DeviceBackend.hold(nx)] do
      assert PyPort.eval("int(x.sum()), x.shape", %{x: tensor}, server: server) == {:ok, {21, {2, 3}}}
      assert PyPort.eval("int(x['a'][0].sum())", %{x: %{a: [tensor]}}, server: server) == {:ok, 21}
      assert PyPort.call("numpy:sum", [[tensor, tensor]], %{}, server: server) == {:ok, 42}
      assert PyPort.eval("int(f().sum())", %{f: fn -> tensor end}, server: server) == {:ok, 21}
    end
  end

  test "a tensor of Nx comes out where it is asked for", %{server: server} do
    options = [server: server, arrays: :nx]
    assert {:ok, %Nx.Tensor{} = tensor} = PyPort.eval(@arange, %{}, options)
    assert tensor == Nx.reshape(Nx.from_binary(@data, {:f, 64}), {2, 3})
    assert PyPort.eval("[x]", %{x: tensor}, options) == {:ok, [tensor]}
    assert {:ok, %Nx.Tensor{type: {:u, 8}}} = PyPort.eval("np.array([True])", %{}, options)

    for {code, said} <- [
          {"np.array(['2024'], 'M8[D]')", "datetime64[D]"},
          {"np.zeros((0, 2))", "without items"},
          {"np.array(['a'])", "<U1"}
        ] do
      assert {:error, %Error{kind: :encode, message: message}} = PyPort.eval("[#{code}]", %{}, options)
      assert message =~ said
      assert message =~ "result[0]"
    end
  end

  test "what has no type is refused by name, and no address of an object leaves", %{server: server} do
    for {code, said} <- [
          {"np.array([{}])", "result[0]: a numpy.ndarray of object has no tensor type"},
          {"np.array([{}]).data", "result[0]: the items of a memoryview of format 'O' are no numbers"},
          {"memoryview(np.array(['text']))", "format '4w'"}
        ] do
      assert {:error, %Error{kind: :encode, message: message}} =
               PyPort.eval("[#{code}]", %{}, server: server, arrays: :tensor)

      assert message =~ said
    end
  end

  test "a tensor that does not fit together is refused, and the error names the place", %{server: server} do
    wrong = %Tensor{type: {:f, 64}, shape: {2}, data: <<1, 2, 3>>}

    assert {:error, %Error{kind: :decode, message: message}} = PyPort.eval("x", %{x: [wrong]}, server: server)

    assert message =~ ~s(globals["x"][0])
    assert message =~ "has 16 bytes, not 3"
  end

  test "functions of Elixir get arrays in the form of the server" do
    server = start_server(arrays: :tensor, init_code: "import numpy as np")
    me = self()

    assert {:ok, 3} =
             PyPort.eval("f(np.ones(2))", %{f: &(send(me, &1) && 3)}, server: server, arrays: :object)

    assert_received %Tensor{shape: {2}}
    assert nothing_left?(server)
  end

  test "the data is a part of the frame that Python sent", %{server: server} do
    {:ok, tensor} = PyPort.eval("np.zeros(100_000)", %{}, server: server, arrays: :tensor)
    # One block of memory, not two.
    assert :binary.referenced_byte_size(tensor.data) in 800_000..801_000
    assert :binary.referenced_byte_size(tensor.data) > byte_size(tensor.data)
  end

  test "wrong options say what they may be", %{server: server} do
    assert_raise ArgumentError, ~r/option :arrays must be :object, :tensor, or :nx/, fn ->
      PyPort.eval("1", %{}, server: server, arrays: :list)
    end

    assert_raise ArgumentError, ~r/option :tables must be :object, :arrow, or :explorer/, fn ->
      PyPort.Server.start_link(tables: :tensor)
    end
  end
end
