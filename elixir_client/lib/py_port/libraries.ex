defmodule PyPort.Libraries do
  # Tensors and tables on their way: as Python is sent them, and as Nx and Explorer have them. The two libraries are used
  # where the application has them, by `apply/3`: the compiler and dialyzer need not know them.
  @moduledoc false

  alias PyPort.{Error, Table, Tensor}

  # Stands among the ids of objects for tables in the value that are to be loaded.
  @loaded 0

  @spec nx?() :: boolean()
  def nx?, do: Code.ensure_loaded?(Nx)

  @spec explorer?() :: boolean()
  def explorer?, do: Code.ensure_loaded?(Explorer.DataFrame)

  # --- to Python ------------------------------------------------------------------------------

  @spec of_nx(struct()) :: Tensor.t()
  def of_nx(tensor) do
    %{type: type, shape: shape} = tensor = apply(Nx, :devectorize, [tensor])
    %Tensor{type: type, shape: shape, data: apply(Nx, :to_binary, [tensor])}
  end

  @spec of_explorer(struct()) :: Table.t()
  def of_explorer(frame),
    do: %Table{format: :arrow_stream, data: apply(Explorer.DataFrame, :dump_ipc_stream!, [frame])}

  # --- from Python ----------------------------------------------------------------------------

  # The shape that a tensor of Nx has in this version, for Python to fill in; nil without Nx.
  @spec nx_template() :: struct() | nil
  def nx_template do
    if nx?() and Code.ensure_loaded?(Nx.BinaryBackend),
      do: struct(Nx.Tensor, data: struct(Nx.BinaryBackend))
  end

  # A value that came with those ids, with its tables loaded by Explorer if they say so.
  @spec load(value, [integer()]) :: {:ok, value} | {:error, Error.t()} when value: term()
  def load(value, ids) do
    {:ok, if(@loaded in ids, do: load(value), else: value)}
  rescue
    error ->
      message = "Explorer cannot load a table: #{Exception.message(error)}"
      {:error, Error.new(:decode, message, begun: true)}
  end

  defp load(%Table{data: data}), do: apply(Explorer.DataFrame, :load_ipc_stream!, [data])
  defp load(value), do: walk(value, &load/1)

  defp walk([head | tail], change),
    do: [change.(head) | if(is_list(tail), do: walk(tail, change), else: change.(tail))]

  defp walk(map, change) when is_map(map), do: :maps.map(fn _key, value -> change.(value) end, map)

  defp walk(tuple, change) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> walk(change) |> List.to_tuple()

  defp walk(value, _change), do: value
end

defimpl PyPort.Encoder, for: [PyPort.Tensor, PyPort.Table] do
  # Their data is bytes, whatever `binary_as:` says of text.
  def encode(%{data: data} = value) when is_binary(data), do: %{value | data: %PyPort.View{data: data}}
  def encode(value), do: value
end

# Asked for structs of these modules alone, so the libraries need not be there.
defimpl PyPort.Encoder, for: Nx.Tensor do
  def encode(tensor), do: PyPort.Libraries.of_nx(tensor)
end

defimpl PyPort.Encoder, for: Explorer.DataFrame do
  def encode(frame), do: PyPort.Libraries.of_explorer(frame)
end
