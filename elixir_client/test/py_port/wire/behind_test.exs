defmodule PyPort.Wire.BehindTest do
  # Large data behind the term of a frame.
  use ExUnit.Case, async: true

  alias PyPort.{Bytes, Table, Tensor, Wire}

  defp frame(term, data), do: :erlang.term_to_binary(term) <> data
  defp at(offset, size), do: %Bytes{data: {offset, size}}

  test "data comes into its places, wherever they stand, and is not copied" do
    data = :binary.copy("0123456789", 10)

    for {term, wanted} <- [
          {at(0, 100), data},
          {{:ok, [1, "a", at(0, 60), {at(60, 40)}]},
           {:ok, [1, "a", binary_part(data, 0, 60), {binary_part(data, 60, 40)}]}},
          {%{"a" => [%Table{format: :arrow_stream, data: at(0, 100)}], b: MapSet.new([1])},
           %{"a" => [%Table{format: :arrow_stream, data: data}], b: MapSet.new([1])}},
          {[1 | at(0, 100)], [1 | data]},
          {%Tensor{type: {:u, 8}, shape: {0}, data: at(0, 100), meta: %{kind: :bool}},
           %Tensor{type: {:u, 8}, shape: {0}, data: data, meta: %{kind: :bool}}}
        ] do
      assert Wire.decode(frame(term, data)) == {:ok, wanted}
    end

    large = :binary.copy(<<1>>, 100_000)
    frame = :binary.copy(frame([at(0, 100_000)], large))
    assert {:ok, [part]} = Wire.decode(frame)
    assert part == large
    assert :binary.referenced_byte_size(part) == byte_size(frame)
  end

  test "bytes without a place, and places without bytes, are no message" do
    for {term, data} <- [
          {:ok, "x"},
          {[at(0, 1)], "xy"},
          {%{a: 1}, "xy"},
          {[at(0, 2)], "x"},
          {[at(5, 2)], "xy"},
          {[at(-1, 1)], "x"},
          {[at(:a, :b)], "x"}
        ] do
      assert {:error, why} = Wire.decode(frame(term, data))
      assert is_binary(why)
    end
  end

  test "the ids of objects are found in front of the data" do
    frame = frame({:ok, <<1::64>>, [at(0, 10)], [7, 0, 8]}, "0123456789")
    assert Wire.object_ids(frame) == [7, 8]
  end
end
