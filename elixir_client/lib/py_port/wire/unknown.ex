defmodule PyPort.Wire.Unknown do
  # Why `:safe` refuses a term of Python's: the first atom in it that this VM has never met, and where it stands. Walks
  # over the bytes and makes no atom. For terms that could not be read, so speed is no matter.
  @moduledoc false

  alias PyPort.Wire.Skip

  @type found :: {:atom | :struct, name :: String.t(), path :: String.t()}

  # The names of the elements of a message, from the third on.
  @names %{
    "ok" => ["result"],
    "yield" => ["item"],
    "send" => ["message"],
    "invoke" => ["call", "function", "arguments"],
    "log" => ["message", "metadata"]
  }

  # Longer keys do not fit into a sentence.
  @longest_key 64

  # The first atom of a frame that is not known here; nil where there is none.
  @spec find(binary()) :: found() | nil
  def find(frame) do
    with {:found, kind, name, path} <- message(frame),
         do: {kind, name, path |> Enum.reverse() |> Enum.join()},
         else: (_none -> nil)
  end

  defp message(<<131, 104, arity, 119, size, tag::binary-size(size), rest::binary>>) when arity > 2 do
    with {:ok, value} <- Skip.terms(rest, 1),
         do: elements(value, arity - 2, 0, &[Enum.at(@names[tag] || [], &1, tag)])
  end

  defp message(<<131, rest::binary>>), do: term(rest, ["the term"])
  defp message(_frame), do: :error

  # {:found, kind, name, path} or {:none, what stands behind}; :error where the bytes are no term.
  defp term(<<tag, size, name::binary-size(size), rest::binary>>, path) when tag in [119, 115],
    do: atom(name, path, rest)

  defp term(<<tag, size::16, name::binary-size(size), rest::binary>>, path) when tag in [118, 100],
    do: atom(name, path, rest)

  defp term(<<104, size, rest::binary>>, path), do: elements(rest, size, 0, &["[#{&1}]" | path])
  defp term(<<105, size::32, rest::binary>>, path), do: elements(rest, size, 0, &["[#{&1}]" | path])
  # A list has a tail.
  defp term(<<108, size::32, rest::binary>>, path), do: elements(rest, size + 1, 0, &["[#{&1}]" | path])
  defp term(<<116, size::32, rest::binary>>, path), do: pairs(rest, size, path, {rest, size})
  # EXPORT: a module, a function and an arity.
  defp term(<<113, rest::binary>>, path), do: elements(rest, 3, 0, fn _at -> path end)

  defp term(bytes, _path) do
    case Skip.terms(bytes, 1) do
      {:ok, rest} -> {:none, rest}
      :error -> :error
    end
  end

  defp elements(rest, 0, _at, _path_of), do: {:none, rest}

  defp elements(bytes, left, at, path_of) do
    with {:none, rest} <- term(bytes, path_of.(at)), do: elements(rest, left - 1, at + 1, path_of)
  end

  defp pairs(rest, 0, _path, _map), do: {:none, rest}

  defp pairs(bytes, left, path, map) do
    with {:none, rest} <- term(bytes, path),
         label = label(binary_part(bytes, 0, byte_size(bytes) - byte_size(rest))),
         {:none, rest} <- term(rest, [label | path]) do
      pairs(rest, left - 1, path, map)
    else
      # A key, or the name of the struct: the struct is what is missing.
      {:found, :atom, _name, [at | below]} = found when [at | below] == path or at == "[:__struct__]" ->
        struct_of(map, path) || found

      found_or_error ->
        found_or_error
    end
  end

  defp struct_of({<<119, 10, "__struct__", 119, size, name::binary-size(size), _::binary>>, _left}, path),
    do: unless(loaded?(name), do: {:found, :struct, name, path})

  defp struct_of({bytes, left}, path) when left > 0 do
    with {:ok, rest} <- Skip.terms(bytes, 2), do: struct_of({rest, left - 1}, path), else: (:error -> nil)
  end

  defp struct_of(_none, _path), do: nil

  defp loaded?(name) do
    name |> String.to_existing_atom() |> function_exported?(:__struct__, 0)
  rescue
    ArgumentError -> false
  end

  defp label(key) when byte_size(key) > @longest_key, do: "[...]"
  defp label(key), do: "[#{inspect(:erlang.binary_to_term(<<131, key::binary>>, [:safe]))}]"

  defp atom(name, path, rest) do
    _known = String.to_existing_atom(name)
    {:none, rest}
  rescue
    ArgumentError -> {:found, :atom, name, path}
  end
end
