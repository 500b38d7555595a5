defmodule PyPort.Values do
  # Finds the functions among the values of a request, which become callbacks, and the handles, which name a server.
  # Top-level values only: to walk whole data would cost more than to encode it. Pure.
  @moduledoc false

  alias PyPort.{Callback, Libraries, Object}

  # Functions in the order of their index, last first; handles in no order.
  @type found :: %{funs: [fun()], objects: [Object.t()]}

  @none %{funs: [], objects: []}

  @spec none() :: found()
  def none, do: @none

  @spec scan(map() | list(), found()) :: {map() | list(), found()}
  def scan(values, found), do: values |> Libraries.outgoing() |> functions(found)

  defp functions(values, found) when is_map(values) do
    if Enum.any?(values, fn {_name, value} -> special?(value) end) do
      {pairs, found} =
        Enum.map_reduce(values, found, fn {name, value}, found ->
          {value, found} = one(value, found)
          {{name, value}, found}
        end)

      {Map.new(pairs), found}
    else
      {values, found}
    end
  end

  defp functions([], found), do: {[], found}

  defp functions(values, found) when is_list(values) do
    if Enum.any?(values, &special?/1), do: Enum.map_reduce(values, found, &one/2), else: {values, found}
  end

  defp special?(value), do: is_function(value) or is_struct(value, Object)

  defp one(value, found) when is_function(value) do
    {:arity, arity} = Function.info(value, :arity)
    {%Callback{index: length(found.funs), arity: arity}, %{found | funs: [value | found.funs]}}
  end

  defp one(%Object{} = object, found), do: {object, %{found | objects: [object | found.objects]}}
  defp one(value, found), do: {value, found}
end
