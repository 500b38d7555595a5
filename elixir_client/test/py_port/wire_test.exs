defmodule PyPort.WireTest do
  use ExUnit.Case, async: true

  alias PyPort.Wire

  @id <<7::64>>

  test "a request reads, as a whole, as the tuple that the protocol says" do
    body = {%{deadline_ms: 5000}, "1 + 1", %{x: [1, 2.0, "three"]}}
    frame = :eval |> Wire.request(@id, body, true) |> IO.iodata_to_binary()

    assert :erlang.binary_to_term(frame) ==
             {:eval, @id, %{deadline_ms: 5000}, "1 + 1", %{x: [1, 2.0, "three"]}}

    frame = :call |> Wire.request(@id, {%{}, "math:sqrt", [9.0], %{}}, true) |> IO.iodata_to_binary()
    assert :erlang.binary_to_term(frame) == {:call, @id, %{}, "math:sqrt", [9.0], %{}}
  end

  test "the prefix of a request is the same bytes on every OTP" do
    assert <<131, 104, 5, 119, 4, "eval", 109, 0, 0, 0, 8, @id::binary, _::binary>> =
             :eval |> Wire.request(@id, {%{}, "1", %{}}, true) |> IO.iodata_to_binary()
  end

  # What `term_to_binary` writes, behind the prefix that the protocol fixes.
  defp written_whole(verb, arity, body) do
    <<131, 104, _arity, rest::binary>> = :erlang.term_to_binary(body)
    <<131, 104, arity, 119, 4, verb::binary, 109, 8::32, @id::binary, rest::binary>>
  end

  test "a small request is, put together by hand, the same bytes as encoded in one call" do
    options = [
      %{},
      %{deadline_ms: 0},
      %{deadline_ms: 255},
      %{deadline_ms: 256},
      %{deadline_ms: 5000},
      %{deadline_ms: 0x7FFFFFFF},
      %{deadline_ms: 0x80000000},
      %{deadline_ms: 5000, binary_as: :bytes},
      %{session: "7"}
    ]

    globals = [
      %{},
      %{x: 1, y: 2.5},
      %{"x" => "y", z: nil},
      %{deadline_ms: 5000},
      %{deadline_ms: "x"},
      %{n: -(2 ** 70)}
    ]

    for opts <- options, code <- ["", "1 + 1", String.duplicate("x", 70_000)], values <- globals do
      body = {opts, code, values}
      assert Wire.request(:eval, @id, body, true) == written_whole("eval", 5, body)
    end

    for opts <- options, args <- [[], [1], [1, 2], [256, "x"], [nil]], kwargs <- globals do
      body = {opts, "math:sqrt", args, kwargs}
      assert Wire.request(:call, @id, body, true) == written_whole("call", 6, body)
    end
  end

  test "a scalar reads the same by hand as by the BEAM, in a reply and in an item" do
    scalars =
      [nil, true, false, 0, 255, 256, -1, -(2 ** 31), 2 ** 31 - 1, 0.0, -1.5, 1.0e300, "", "text", <<255>>] ++
        [String.duplicate("x", 100_000)]

    for value <- scalars, {tag, atom} <- [{"ok", :ok}, {"yield", :yield}] do
      <<131, term::binary>> = written(value)
      frame = frame(tag, 3, term)
      assert Wire.scalar(frame) === {:ok, value}
      assert Wire.decode(frame) === {:ok, {atom, @id, value}}
    end
  end

  # As Python writes atoms, and OTP 26; OTP 25 writes them in another way.
  defp written(atom) when is_atom(atom) do
    name = Atom.to_string(atom)
    <<131, 119, byte_size(name), name::binary>>
  end

  defp written(value), do: :erlang.term_to_binary(value)

  test "what is no scalar, or no value, or not whole, is not read by hand" do
    for value <- [[], [1], {}, %{}, :other, 2 ** 31, 2 ** 70] do
      <<131, term::binary>> = written(value)
      assert Wire.scalar(frame("ok", 3, term)) == :other
    end

    assert Wire.scalar(frame("ok", 4, <<97, 1, 106>>)) == :other
    assert Wire.scalar(frame("error", 3, <<97, 1>>)) == :other
    assert Wire.scalar(frame("ok", 3, <<97, 1, 0>>)) == :other
    assert Wire.scalar(frame("ok", 3, <<97>>)) == :other
    assert Wire.scalar(frame("ok", 3, <<109, 4::32, "abc">>)) == :other
    assert Wire.scalar(frame("ok", 3, <<109, 2::32, "abc">>)) == :other
    # No number: what Erlang has no float for.
    assert Wire.scalar(frame("ok", 3, <<70, 0x7FF8::16, 0::48>>)) == :other
  end

  test "a large binary in a reply is passed on, not copied" do
    frame = frame("ok", 3, <<109, 1_000_000::32, String.duplicate("x", 1_000_000)::binary>>)
    {:ok, value} = Wire.scalar(frame)
    assert :binary.referenced_byte_size(value) == byte_size(frame)
  end

  test "a large binary in a request is passed on, not copied" do
    large = :binary.copy("x", 1_000_000)
    assert large in List.flatten(Wire.request(:eval, @id, {%{}, "1", %{data: large}}, false))
  end

  test "control messages read as the tuples that the protocol says" do
    assert :erlang.binary_to_term(Wire.cancel(@id)) == {:cancel, @id}
    assert Wire.shutdown(250) |> IO.iodata_to_binary() |> :erlang.binary_to_term() == {:shutdown, 250}
    assert :erlang.binary_to_term(Wire.credit(@id, 512)) == {:credit, @id, 512}
    assert :erlang.binary_to_term(Wire.ack(@id, 65_536)) == {:ack, @id, 65_536}
    assert read(Wire.answer(@id, {:ok, [1, "two"]})) == {:answer, @id, {:ok, [1, "two"]}}
    assert read(Wire.answer(@id, {:error, %{kind: :exit}})) == {:answer, @id, {:error, %{kind: :exit}}}
    assert read(Wire.open_session(@id, "7")) == {:open_session, @id, "7"}
    assert read(Wire.close_session("7")) == {:close_session, "7"}
    assert read(Wire.release([1, 2])) == {:release, [1, 2]}
    assert Wire.ping(@id) |> IO.iodata_to_binary() |> :erlang.binary_to_term() == {:ping, @id}

    assert Wire.init(%{max_frame_bytes: 1}) |> IO.iodata_to_binary() |> :erlang.binary_to_term() ==
             {:init, Wire.protocol_version(), %{max_frame_bytes: 1}}
  end

  test "replies are routed by their first bytes alone, whatever stands behind them" do
    assert Wire.route(frame("ok", 3, "garbage")) == {:reply, @id}
    assert Wire.route(frame("ok", 4, "garbage")) == {:reply_with_objects, @id}
    assert Wire.route(frame("error", 3, "garbage")) == {:reply, @id}
    assert Wire.route(frame("output", 4, "garbage")) == {:output, @id}
    assert Wire.route(frame("pong", 3, "garbage")) == {:pong, @id}
    assert Wire.route(<<131, 104, 3, 119, 5, "hello">>) == :hello
    assert Wire.route(<<131, 104, 2, 119, 7, "goodbye">>) == :goodbye
    assert Wire.route(frame("yield", 3, "garbage")) == {:yield, @id}
    assert Wire.route(frame("yield", 4, "garbage")) == {:yield_with_objects, @id}
    assert Wire.route(frame("invoke", 5, <<109, 8::32, 9::64, "garbage">>)) == {:invoke, @id, <<9::64>>}
    outside = <<131, 104, 5, 119, 6, "invoke", 109, 0::32, 109, 8::32, 9::64, "garbage">>
    assert Wire.route(outside) == {:invoke, "", <<9::64>>}
    assert Wire.route(<<131, 104, 4, 119, 3, "log">>) == :log
    assert Wire.route(<<131, 104, 3, 119, 4, "send">>) == :send
    assert Wire.route(<<131, 104, 2, 119, 9, "heartbeat">>) == :heartbeat
    assert Wire.route("not ETF at all") == :other
    assert Wire.route("") == :other
  end

  test "a hello creates no atoms, whatever it says" do
    names = for n <- 1..1_000, do: "never_met_#{System.unique_integer([:positive])}_#{n}"
    atoms = for name <- names, do: <<119, byte_size(name), name::binary>>
    list = [<<108, length(atoms)::32>>, atoms, <<106>>]
    info = IO.iodata_to_binary([<<116, 1::32, 119, 8, "features">>, list])
    before = :erlang.system_info(:atom_count)
    assert Wire.decode_hello(<<131, 104, 3, 119, 5, "hello", 97, 1, info::binary>>) == :error
    assert :erlang.system_info(:atom_count) - before < 500
  end

  test "what a hello says is known here" do
    source = File.read!(Application.app_dir(:py_port, "priv/python/port_server/server/handshake.py"))
    [features] = Regex.run(~r/FEATURES: Final = \((.*?)\n\)/s, source, capture: :all_but_first)
    [info] = Regex.run(~r/def info\(.*?return \{(.*?)\n    \}/s, source, capture: :all_but_first)
    features = for [name] <- Regex.scan(~r/"(\w+)"/, features, capture: :all_but_first), do: name
    keys = for [name] <- Regex.scan(~r/^\s*"(\w+)":/m, info, capture: :all_but_first), do: name
    assert length(features) > 10 and length(keys) > 5
    known = Enum.map(Wire.vocabulary(), &Atom.to_string/1)
    assert (features ++ keys) -- known == []
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

  describe "the ids of handles are found without reading what stands before them:" do
    test "whatever terms that is" do
      for value <- terms() do
        for frame <- [
              {:ok, @id, value, [1, 2, 300]},
              {:yield, @id, value, [1, 2, 300]},
              {:invoke, @id, <<9::64>>, 0, [value], [1, 2, 300]},
              {:invoke, @id, <<9::64>>, {"Elixir.Enum", "map"}, [value], [1, 2, 300]}
            ] do
          assert frame |> :erlang.term_to_binary() |> Wire.object_ids() == [1, 2, 300]
        end
      end
    end

    test "even behind an atom that this VM has never met, which it does not make" do
      name = "never_met_#{System.unique_integer([:positive])}"
      value = <<119, byte_size(name), name::binary>>
      frame = frame("ok", 4, <<value::binary, 107, 2::16, 7, 8>>)
      assert Wire.object_ids(frame) == [7, 8]
      assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
    end

    test "and are none in a frame without, or in one that was cut off" do
      assert Wire.object_ids(:erlang.term_to_binary({:ok, @id, 1})) == []
      whole = :erlang.term_to_binary({:ok, @id, %{"a" => [1, {2.5, self()}]}, [1, 2]})
      for size <- 0..(byte_size(whole) - 1), do: assert(Wire.object_ids(binary_part(whole, 0, size)) == [])
    end
  end

  test "the request of a log record is found among its metadata" do
    assert Wire.log_request(log_frame([{"logger", "a.b"}, {"line", 7}, {"request", @id}])) == @id
    assert Wire.log_request(log_frame([{"request", @id}, {"line", 7}])) == @id
    assert Wire.log_request(log_frame([{"line", 7}])) == nil
    assert Wire.log_request(log_frame([{"request", "no id of ours"}])) == nil
    assert Wire.log_request("garbage") == nil
  end

  # As Python writes it, on every OTP.
  defp log_frame(metadata) do
    pairs =
      for {name, value} <- metadata, into: "" do
        <<131, value::binary>> = :erlang.term_to_binary(value)
        <<119, byte_size(name), name::binary, value::binary>>
      end

    <<131, 104, 4, 119, 3, "log", 119, 4, "info", 109, 5::32, "hello", 116, length(metadata)::32,
      pairs::binary>>
  end

  defp terms do
    [
      [],
      nil,
      1,
      256,
      -1,
      2 ** 64,
      -(2 ** 3000),
      1.5,
      "text",
      :binary.copy("x", 70_000),
      <<1::3>>,
      ~c"charlist",
      [1 | 2],
      {},
      {1, {2}},
      Tuple.duplicate(0, 300),
      %{},
      %{k: %{1 => [2, "three"]}},
      self(),
      make_ref(),
      hd(Port.list()),
      fn x -> x + byte_size("closure") end,
      &Enum.map/2,
      MapSet.new([1, 2]),
      :ümläut
    ]
  end

  defp read(frame), do: frame |> IO.iodata_to_binary() |> :erlang.binary_to_term()

  defp frame(tag, arity, rest) do
    <<131, 104, arity, 119, byte_size(tag), tag::binary, 109, 8::32, @id::binary, rest::binary>>
  end
end
