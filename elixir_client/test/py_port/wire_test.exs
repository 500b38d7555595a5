defmodule PyPort.WireTest do
  use ExUnit.Case, async: true

  alias PyPort.Wire

  @id <<7::64>>

  test "a request reads, as a whole, as the tuple that the protocol says" do
    body = {%{deadline_ms: 5000}, "1 + 1", %{x: [1, 2.0, "three"]}}
    frame = :eval |> Wire.request(@id, body) |> IO.iodata_to_binary()

    assert :erlang.binary_to_term(frame) ==
             {:eval, @id, %{deadline_ms: 5000}, "1 + 1", %{x: [1, 2.0, "three"]}}

    frame = :call |> Wire.request(@id, {%{}, "math:sqrt", [9.0], %{}}) |> IO.iodata_to_binary()
    assert :erlang.binary_to_term(frame) == {:call, @id, %{}, "math:sqrt", [9.0], %{}}
  end

  test "the prefix of a request is the same bytes on every OTP" do
    assert <<131, 104, 5, 119, 4, "eval", 109, 0, 0, 0, 8, @id::binary, _::binary>> =
             :eval |> Wire.request(@id, {%{}, "1", %{}}) |> IO.iodata_to_binary()
  end

  test "a large binary in a request is passed on, not copied" do
    large = :binary.copy("x", 1_000_000)
    assert large in List.flatten(Wire.request(:eval, @id, {%{}, "1", %{data: large}}))
  end

  test "control messages read as the tuples that the protocol says" do
    assert :erlang.binary_to_term(Wire.cancel(@id)) == {:cancel, @id}
    assert Wire.shutdown(250) |> IO.iodata_to_binary() |> :erlang.binary_to_term() == {:shutdown, 250}
    assert Wire.ping(@id) |> IO.iodata_to_binary() |> :erlang.binary_to_term() == {:ping, @id}

    assert Wire.init(%{max_frame_bytes: 1}) |> IO.iodata_to_binary() |> :erlang.binary_to_term() ==
             {:init, Wire.protocol_version(), %{max_frame_bytes: 1}}
  end

  test "replies are routed by their first bytes alone, whatever stands behind them" do
    assert Wire.route(frame("ok", 3, "garbage")) == {:reply, @id}
    assert Wire.route(frame("ok", 4, "garbage")) == {:reply, @id}
    assert Wire.route(frame("error", 3, "garbage")) == {:reply, @id}
    assert Wire.route(frame("output", 4, "garbage")) == {:output, @id}
    assert Wire.route(frame("pong", 3, "garbage")) == {:pong, @id}
    assert Wire.route(<<131, 104, 3, 119, 5, "hello">>) == :hello
    assert Wire.route(<<131, 104, 2, 119, 7, "goodbye">>) == :goodbye
    assert Wire.route(<<131, 104, 4, 119, 3, "log">>) == :log
    assert Wire.route("not ETF at all") == :other
    assert Wire.route("") == :other
  end

  test "an atom that this VM has never met is an error, and is not made" do
    name = "never_met_#{System.unique_integer([:positive])}"
    frame = <<131, 119, byte_size(name), name::binary>>
    assert {:error, message} = Wire.decode(frame)
    assert message =~ "atom"
    assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
  end

  test "bytes behind the term are an error that counts them" do
    assert {:error, "3 bytes stand behind the term"} = Wire.decode(:erlang.term_to_binary(:ok) <> "abc")
  end

  test "every truncation of a reply is an error and nothing else" do
    whole = :erlang.term_to_binary({:ok, @id, %{"a" => [1, 2.5, "text"]}})

    for size <- 0..(byte_size(whole) - 1) do
      assert {:error, _message} = whole |> binary_part(0, size) |> Wire.decode()
    end
  end

  defp frame(tag, arity, rest) do
    <<131, 104, arity, 119, byte_size(tag), tag::binary, 109, 8::32, @id::binary, rest::binary>>
  end
end
