defmodule PyPort.Values do
  # Finds the functions among the values of a request, which become callbacks, the handles, which name a server, and the
  # structs that are sent as something else, wherever they stand but in keys.
  @moduledoc false

  alias PyPort.{Callback, Encoder, Object}

  # Functions with their numbers; handles, the last one first; whether structs are to be encoded.
  @type found :: %{funs: [{pos_integer(), fun()}], objects: [Object.t()], encode?: boolean()}

  @none %{funs: [], objects: [], encode?: true}

  @spec none() :: found()
  def none, do: @none

  # For a value that `encoded/1` has given: to encode it twice may give another value.
  @spec none_of_encoded() :: found()
  def none_of_encoded, do: %{@none | encode?: false}

  @spec scan(value, found()) :: {value, found()} when value: term()
  def scan(value, found), do: if(special?(value), do: replace(value, found), else: {value, found})

  # A look first, because most values have none, and to look takes a fraction of the time of encoding. Long lists are of one
  # type, mostly: several items at once take half the time.
  defp special?([head | tail]) do
    cond do
      is_integer(head) -> tail |> after_integers() |> special?()
      is_binary(head) -> tail |> after_binaries() |> special?()
      is_float(head) -> tail |> after_floats() |> special?()
      is_atom(head) -> special?(tail)
      true -> special?(head) or special?(tail)
    end
  end

  defp special?([]), do: false

  defp special?(map) when is_map(map) and not is_map_key(map, :__struct__),
    do: map |> :maps.values() |> special?()

  defp special?(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> special?()
  defp special?(value) when is_number(value) or is_binary(value) or is_atom(value), do: false
  defp special?(%Object{}), do: true

  defp special?(%_module{} = struct),
    do: Encoder.impl_for(struct) != Encoder.Any or struct |> :maps.values() |> special?()

  # A map may have any value under this key.
  defp special?(map) when is_map(map), do: map |> :maps.values() |> special?()
  defp special?(value), do: is_function(value)

  defp after_integers([a, b, c, d, e, f, g, h | tail])
       when is_integer(a) and is_integer(b) and is_integer(c) and is_integer(d) and
              is_integer(e) and is_integer(f) and is_integer(g) and is_integer(h),
       do: after_integers(tail)

  defp after_integers(rest), do: rest

  defp after_floats([a, b, c, d, e, f, g, h | tail])
       when is_float(a) and is_float(b) and is_float(c) and is_float(d) and
              is_float(e) and is_float(f) and is_float(g) and is_float(h),
       do: after_floats(tail)

  defp after_floats(rest), do: rest

  defp after_binaries([a, b, c, d | tail])
       when is_binary(a) and is_binary(b) and is_binary(c) and is_binary(d),
       do: after_binaries(tail)

  defp after_binaries(rest), do: rest

  defp replace([head | tail], found) do
    {head, found} = replace(head, found)
    {tail, found} = replace(tail, found)
    {[head | tail], found}
  end

  # The reference of a handle is for this node alone.
  defp replace(%Object{} = object, found),
    do: {Map.put(object, :ref, nil), %{found | objects: [object | found.objects]}}

  defp replace(%module{} = struct, %{encode?: true} = found) do
    case Encoder.encode(struct) do
      %^module{} = same -> replace_values(same, found)
      other -> scan(other, found)
    end
  end

  defp replace(map, found) when is_map(map), do: replace_values(map, found)

  defp replace(tuple, found) when is_tuple(tuple) do
    {list, found} = tuple |> Tuple.to_list() |> replace(found)
    {List.to_tuple(list), found}
  end

  defp replace(fun, found) when is_function(fun) do
    number = :erlang.unique_integer([:positive])
    {Callback.new(fun, number), %{found | funs: [{number, fun} | found.funs]}}
  end

  defp replace(value, found), do: {value, found}

  defp replace_values(map, found) do
    Enum.reduce(:maps.to_list(map), {map, found}, fn {key, value}, {map, found} ->
      {value, found} = scan(value, found)
      {%{map | key => value}, found}
    end)
  end

  # The value with its structs as they are sent, and its functions as they are: the process on another node that sends it may
  # lack what it takes to encode them, as the memory that a frame of Explorer's refers to.
  @spec encoded(term()) :: term()
  def encoded(value) do
    {value, found} = scan(value, @none)
    restore(value, Map.new(found.funs))
  end

  # Puts the functions back for the callbacks in a value, by their numbers.
  @spec restore(term(), %{pos_integer() => fun()}) :: term()
  def restore(value, funs) when funs == %{}, do: value
  def restore(%Callback{index: number} = callback, funs), do: Map.get(funs, number, callback)
  def restore([head | tail], funs), do: [restore(head, funs) | restore(tail, funs)]

  def restore(map, funs) when is_map(map),
    do: Enum.reduce(:maps.to_list(map), map, fn {key, value}, map -> %{map | key => restore(value, funs)} end)

  def restore(tuple, funs) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> restore(funs) |> List.to_tuple()

  def restore(value, _funs), do: value
end
