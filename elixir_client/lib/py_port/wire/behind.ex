defmodule PyPort.Wire.Behind do
  # Large data that stands behind the term of a frame, in the order of its places in the term: `%PyPort.Bytes{data: {offset,
  # size}}`. `binary_to_term` copies each binary of a term; a part of the frame is not copied.
  @moduledoc false

  alias PyPort.Bytes

  # The term with the data in its places, and how many bytes these have.
  @spec put(term, binary()) :: {term, non_neg_integer()} when term: term()
  def put(%Bytes{data: {offset, size}}, data), do: {binary_part(data, offset, size), size}
  def put([head | tail], data) when is_number(head) or is_binary(head), do: prepend(head, 0, put(tail, data))

  def put([head | tail], data) do
    {head, size} = put(head, data)
    prepend(head, size, put(tail, data))
  end

  def put(tuple, data) when is_tuple(tuple) do
    {list, size} = tuple |> Tuple.to_list() |> put(data)
    {List.to_tuple(list), size}
  end

  def put(map, data) when is_map(map) do
    {values, size} = map |> :maps.values() |> put(data)
    {map |> :maps.keys() |> Enum.zip(values) |> :maps.from_list(), size}
  end

  def put(other, _data), do: {other, 0}

  defp prepend(head, more, {tail, size}), do: {[head | tail], more + size}
end
