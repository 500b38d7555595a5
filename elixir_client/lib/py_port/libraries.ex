defmodule PyPort.Libraries do
  # Tensors and tables on their way: as Python is sent them, and as Nx and Explorer have them. The two libraries are used
  # where the application has them.
  @moduledoc false

  alias PyPort.{Bytes, Table, Tensor}

  @compile {:no_warn_undefined, [Nx, Explorer.DataFrame]}

  # Stands among the ids of objects for tables in the value that are to be loaded.
  @loaded 0

  @spec nx?() :: boolean()
  def nx?, do: Code.ensure_loaded?(Nx)

  @spec explorer?() :: boolean()
  def explorer?, do: Code.ensure_loaded?(Explorer.DataFrame)

  # --- to Python ------------------------------------------------------------------------------

  # The value with its tensors and tables as Python reads them, wherever they stand but in keys.
  @spec outgoing(term()) :: term()
  def outgoing(value), do: if(special?(value), do: replace(value), else: value)

  # A look first, because most values have none. Long lists are of numbers, mostly.
  defp special?([a, b, c, d, e, f, g, h | tail])
       when is_number(a) and is_number(b) and is_number(c) and is_number(d) and is_number(e) and is_number(f) and
              is_number(g) and is_number(h),
       do: special?(tail)

  defp special?([head | tail]) when is_number(head) or is_binary(head) or is_atom(head), do: special?(tail)
  defp special?([head | tail]), do: special?(head) or special?(tail)
  defp special?(%{__struct__: module}) when module in [Tensor, Table, Nx.Tensor, Explorer.DataFrame], do: true
  defp special?(map) when is_map(map), do: map |> :maps.values() |> special?()
  defp special?(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> special?()
  defp special?(_other), do: false

  defp replace(%{__struct__: Nx.Tensor} = tensor), do: tensor |> of_nx() |> replace()
  defp replace(%{__struct__: Explorer.DataFrame} = frame), do: frame |> of_explorer() |> replace()

  defp replace(%module{data: data} = value) when module in [Tensor, Table] and is_binary(data),
    do: %{value | data: %Bytes{data: data}}

  defp replace(value), do: walk(value, &replace/1)

  @spec of_nx(struct()) :: Tensor.t()
  def of_nx(tensor) do
    %{type: type, shape: shape} = tensor = Nx.devectorize(tensor)
    %Tensor{type: type, shape: shape, data: Nx.to_binary(tensor)}
  end

  defp of_explorer(frame),
    do: %Table{format: :arrow_stream, data: Explorer.DataFrame.dump_ipc_stream!(frame)}

  # --- from Python ----------------------------------------------------------------------------

  # The shape that a tensor of Nx has in this version, for Python to fill in; nil without Nx.
  @spec nx_template() :: struct() | nil
  def nx_template do
    if nx?() and Code.ensure_loaded?(Nx.BinaryBackend),
      do: struct(Nx.Tensor, data: struct(Nx.BinaryBackend))
  end

  # A value that came with those ids, with its tables loaded by Explorer if they say so; and the ids of objects.
  @spec load(value, [non_neg_integer()]) :: {:ok, value, [pos_integer()]} | {:error, String.t()}
        when value: term()
  def load(value, ids) do
    if @loaded in ids,
      do: {:ok, load(value), Enum.reject(ids, &(&1 == @loaded))},
      else: {:ok, value, ids}
  rescue
    error -> {:error, "Explorer cannot load a table: #{Exception.message(error)}"}
  end

  defp load(%Table{data: data}), do: Explorer.DataFrame.load_ipc_stream!(data)
  defp load(value), do: walk(value, &load/1)

  defp walk([head | tail], change),
    do: [change.(head) | if(is_list(tail), do: walk(tail, change), else: change.(tail))]

  defp walk(map, change) when is_map(map), do: :maps.map(fn _key, value -> change.(value) end, map)

  defp walk(tuple, change) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> walk(change) |> List.to_tuple()

  defp walk(value, _change), do: value
end
