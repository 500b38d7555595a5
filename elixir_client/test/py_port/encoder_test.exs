defmodule PyPort.EncoderTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO
  import PyPort.Test.Servers

  alias PyPort.Test.Encoded.{All, Except, Only, Own, Plain, Raises, Same}

  setup_all do
    %{server: start_server()}
  end

  test "a struct is sent as what it says, wherever it stands", %{server: server} do
    for {struct, sent} <- [
          {%All{a: 1, b: nil}, %{a: 1, b: nil}},
          {%Only{a: 1, secret: "s"}, %{a: 1}},
          {%Except{a: 1, b: [%Only{a: 2}], secret: "s"}, %{a: 1, b: [%{a: 2}]}},
          {%Own{value: %Own{value: 1}}, {:own, {:own, 1}}},
          {%Same{value: 1}, %Same{value: 2}},
          {%Plain{value: %Only{a: 1}}, %Plain{value: %{a: 1}}}
        ] do
      assert PyPort.eval!("x", %{x: struct}, server: server) == sent
      assert PyPort.eval!("x", %{x: [0, %{"k" => {struct}}]}, server: server) == [0, %{"k" => {sent}}]
      assert PyPort.call!("builtins:list", [[struct]], %{}, server: server) == [sent]
      assert PyPort.eval!("f()", %{f: fn -> [struct] end}, server: server) == [sent]
    end
  end

  test "functions inside of what it is sent as can be called", %{server: server} do
    assert PyPort.eval!("x[1](1)", %{x: %Own{value: &(&1 + 1)}}, server: server) == 2
  end

  test "an encoder that raises is the error of the caller, and of Python where it asked", %{server: server} do
    bad = %Own{value: %Raises{}}
    assert_raise RuntimeError, "no encoding", fn -> PyPort.eval("x", %{x: bad}, server: server) end

    code = ~S"""
    import port_server
    try:
        f()
    except port_server.ElixirError as error:
        text = str(error)
    text
    """

    assert PyPort.eval!(code, %{f: fn -> [bad] end}, server: server) == "** (RuntimeError) no encoding"
  end

  defp derive(options) do
    Code.eval_quoted(
      quote do
        defmodule Derived do
          @derive {PyPort.Encoder, unquote(options)}
          defstruct [:a]
        end
      end
    )
  end

  test "wrong options of @derive are refused when it is compiled" do
    for {options, words} <- [
          {[only: [:c]], "[:c] are no fields"},
          {[just: [:a]], "only: [...] or except: [...]"}
        ] do
      assert_raise ArgumentError, ~r/#{Regex.escape(words)}/, fn ->
        capture_io(:stderr, fn -> derive(options) end)
      end
    end
  end
end
