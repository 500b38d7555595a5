defmodule PyPort.Wire.Skip do
  # Over terms of the External Term Format without building them: no atom is made, no value allocated. For frames of
  # which one small part is wanted; the format is that of erts' "External Term Format" chapter.
  @moduledoc false

  # The bytes behind the next `count` terms.
  @spec terms(binary(), non_neg_integer()) :: {:ok, rest :: binary()} | :error
  def terms(rest, 0), do: {:ok, rest}

  # atoms: SMALL_ATOM_UTF8, ATOM_UTF8, ATOM, SMALL_ATOM
  def terms(<<119, size, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<118, size::16, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<100, size::16, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<115, size, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  # numbers: SMALL_INTEGER, INTEGER, NEW_FLOAT, FLOAT, SMALL_BIG, LARGE_BIG
  def terms(<<97, _, rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<98, _::32, rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<70, _::64, rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<99, _::binary-size(31), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<110, size, _sign, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<111, size::32, _sign, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  # BINARY, BIT_BINARY, STRING
  def terms(<<109, size::32, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<77, size::32, _bits, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<107, size::16, _::binary-size(size), rest::binary>>, n), do: terms(rest, n - 1)
  # containers: SMALL_TUPLE, LARGE_TUPLE, MAP, NIL, LIST with its tail
  def terms(<<104, size, rest::binary>>, n), do: terms(rest, n - 1 + size)
  def terms(<<105, size::32, rest::binary>>, n), do: terms(rest, n - 1 + size)
  def terms(<<116, size::32, rest::binary>>, n), do: terms(rest, n - 1 + 2 * size)
  def terms(<<106, rest::binary>>, n), do: terms(rest, n - 1)
  def terms(<<108, size::32, rest::binary>>, n), do: terms(rest, n - 1 + size + 1)
  # a node's atom, then numbers: NEW_PID, PID, NEW_PORT, PORT, V4_PORT, and references
  def terms(<<88, rest::binary>>, n), do: node_then(rest, 12, n)
  def terms(<<103, rest::binary>>, n), do: node_then(rest, 9, n)
  def terms(<<89, rest::binary>>, n), do: node_then(rest, 8, n)
  def terms(<<102, rest::binary>>, n), do: node_then(rest, 5, n)
  def terms(<<120, rest::binary>>, n), do: node_then(rest, 12, n)
  def terms(<<90, words::16, rest::binary>>, n), do: node_then(rest, 4 + 4 * words, n)
  def terms(<<114, words::16, rest::binary>>, n), do: node_then(rest, 1 + 4 * words, n)
  def terms(<<101, rest::binary>>, n), do: node_then(rest, 5, n)
  # NEW_FUN counts its own length field, EXPORT is three terms
  def terms(<<112, size::32, rest::binary>>, n) when size >= 4 and byte_size(rest) >= size - 4 do
    terms(binary_part(rest, size - 4, byte_size(rest) - size + 4), n - 1)
  end

  def terms(<<113, rest::binary>>, n), do: terms(rest, n + 2)
  def terms(_no_term, _n), do: :error

  defp node_then(rest, bytes, n) do
    case terms(rest, 1) do
      {:ok, rest} when byte_size(rest) >= bytes ->
        terms(binary_part(rest, bytes, byte_size(rest) - bytes), n - 1)

      _truncated ->
        :error
    end
  end
end
