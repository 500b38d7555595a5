defmodule PyPort.Tensor do
  @moduledoc """
  An array of numbers, as Python's numpy, torch and jax have it: type, shape and one binary.

  With `arrays: :tensor`, an option of requests, servers and pools, an array in a value comes as one of these. Its data is a
  part of the frame that Python sent, and is not copied:

      iex> {:ok, tensor} = PyPort.eval("import numpy as np; np.arange(6.0).reshape(2, 3)", %{}, arrays: :tensor)
      iex> {tensor.type, tensor.shape, byte_size(tensor.data)}
      {{:f, 64}, {2, 3}, 48}

  Among the values of a request it is a numpy array, or a memoryview where numpy is not installed:

      iex> {:ok, tensor} = PyPort.eval("np.ones((2, 3))", %{}, arrays: :tensor) ...
      iex> PyPort.eval("float(a.sum())", %{a: tensor})
      {:ok, 6.0}

  ## Fields

    * `:type` - `{:s | :u, 8 | 16 | 32 | 64}`, `{:f, 16 | 32 | 64}`, `{:bf, 16}` or `{:c, 64 | 128}`, as Nx names them.
    * `:shape` - a tuple of sizes; `{}` is that of a single number.
    * `:data` - the numbers in the order of C (the last axis varies fastest) and in native byte order.
    * `:meta` - a map that says more of the numbers. `kind: :bool` of booleans, which are `{:u, 8}`. `kind: :datetime64` or
      `kind: :timedelta64` of times, which are `{:s, 64}`, with their unit as numpy writes it: `unit: "ns"`. Of a tensor that
      goes to Python also `writable: true`, see `writable/1`.

  An `Nx.Tensor` among the values goes the same way by itself, and `arrays: :nx` gives one in place of this struct.
  """

  @enforce_keys [:type, :shape, :data]
  defstruct [:type, :shape, :data, meta: %{}]

  @type t :: %__MODULE__{
          type: {:s | :u | :f | :bf | :c, pos_integer()},
          shape: tuple(),
          data: binary(),
          meta: %{
            optional(:kind) => :bool | :datetime64 | :timedelta64,
            optional(:unit) => String.t(),
            optional(:writable) => boolean()
          }
        }

  @doc """
  Marks a tensor, of PyPort or of Nx, so that Python gets a copy that its code may change.

  Without it the array is read-only, and Python has no second copy.

      PyPort.eval("a[0] = 0; a.sum()", %{a: PyPort.Tensor.writable(tensor)})
  """
  @spec writable(t() | struct()) :: t()
  def writable(%__MODULE__{meta: meta} = tensor), do: %{tensor | meta: Map.put(meta, :writable, true)}
  def writable(%{__struct__: Nx.Tensor} = tensor), do: tensor |> PyPort.Libraries.of_nx() |> writable()
end
