defmodule Nx.Tensor do
  @moduledoc false
  @enforce_keys [:type, :shape, :names]
  defstruct [:data, :type, :shape, :names, vectorized_axes: [], donatable?: false]
end

defmodule Nx.BinaryBackend do
  @moduledoc false
  defstruct [:state]
  def to_binary(%__MODULE__{state: binary}), do: binary
end

defmodule Nx do
  # Stands in for the library Nx, of which this project has no copy: the functions that PyPort calls and that the example
  # shows, with the names, the structs and the refusals of Nx 0.13.
  @moduledoc false

  alias Nx.{BinaryBackend, Tensor}

  def tensor(numbers, type: type) do
    %Tensor{from_binary(numbers |> List.flatten() |> Enum.map_join(&number(&1, type)), type) | shape: {}}
    |> sized(sizes(numbers))
  end

  def from_binary("", _type), do: raise(ArgumentError, "cannot build an empty tensor")

  def from_binary(binary, {_kind, bits} = type),
    do: %Tensor{
      data: %BinaryBackend{state: binary},
      type: type,
      shape: {div(bit_size(binary), bits)},
      names: [nil]
    }

  def to_binary(%Tensor{data: %module{} = data}), do: module.to_binary(data)

  def reshape(%Tensor{} = tensor, shape), do: sized(tensor, Tuple.to_list(shape))

  def devectorize(%Tensor{vectorized_axes: axes, shape: shape, names: names} = tensor) do
    shape = List.to_tuple(Keyword.values(axes) ++ Tuple.to_list(shape))
    %{tensor | shape: shape, names: Keyword.keys(axes) ++ names, vectorized_axes: []}
  end

  def shape(%Tensor{shape: shape}), do: shape
  def type(%Tensor{type: type}), do: type

  def to_flat_list(%Tensor{type: {:f, 64}} = tensor), do: for(<<n::float-native <- to_binary(tensor)>>, do: n)

  def to_flat_list(%Tensor{type: {:s, 64}} = tensor),
    do: for(<<n::signed-native-64 <- to_binary(tensor)>>, do: n)

  defp number(number, {:f, 64}), do: <<number::float-native>>
  defp number(number, {:s, 32}), do: <<number::native-32>>
  defp number(number, {:s, 64}), do: <<number::native-64>>

  defp sizes([first | _] = list), do: [length(list) | sizes(first)]
  defp sizes(_number), do: []

  defp sized(tensor, sizes),
    do: %{tensor | shape: List.to_tuple(sizes), names: Enum.map(sizes, fn _ -> nil end)}
end

defmodule PyPort.Test.DeviceBackend do
  # As EXLA and Torchx: the numbers are elsewhere, and the struct refers to them, on this node only.
  @moduledoc false
  defstruct [:ref]

  def hold(%Nx.Tensor{} = tensor) do
    {:ok, holder} = Agent.start_link(fn -> Nx.to_binary(tensor) end)
    %{tensor | data: %__MODULE__{ref: holder}}
  end

  def to_binary(%__MODULE__{ref: holder}) when node(holder) == node(), do: Agent.get(holder, & &1)
end
