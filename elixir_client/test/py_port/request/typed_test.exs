defmodule PyPort.TypedTest do
  use ExUnit.Case, async: true

  import PyPort.Test.Servers

  @init """
  import sys, types
  from dataclasses import dataclass
  from enum import Enum

  class Color(Enum):
      RED = "red"

  @dataclass
  class Slow:
      name: str
      def __post_init__(self):
          while True: pass

  def slow(item: Slow): pass

  @dataclass
  class Item:
      name: str
      color: Color

  def describe(items: list[Item], extra: Item = None):
      return [f"{type(i).__name__} {i.name} {i.color.name}" for i in [*items, *([extra] if extra else [])]]

  def plain(items: list[Item]):
      return [type(i).__name__ for i in items]

  shop = sys.modules["shop"] = types.ModuleType("shop")
  shop.describe, shop.plain, shop.slow = describe, plain, slow
  """

  setup_all do
    %{server: start_server(init_code: @init)}
  end

  @item %{name: "pen", color: "red"}

  test "arguments are what the hints of the function say", %{server: server} do
    options = [server: server, typed: true]
    assert PyPort.call!("shop:describe", [[@item]], %{}, options) == ["Item pen RED"]
    assert PyPort.call!("shop:describe", [[]], %{extra: @item}, options) == ["Item pen RED"]
    assert PyPort.call!("shop:plain", [[@item]], %{}, server: server, typed: false) == ["dict"]
    assert PyPort.call!("math:gcd", [12, 18], %{}, options) == 6
    {:ok, session} = PyPort.open_session(server: server)
    assert PyPort.call!("shop:plain", [[@item]], %{}, session: session, typed: true) == ["Item"]
  end

  test "a constructor is ended at the timeout as any code is", %{server: server} do
    options = [server: server, typed: true, timeout: 100]

    assert {:error, %{kind: :timeout, begun: true} = error} =
             PyPort.call("shop:slow", [@item |> Map.delete(:color)], %{}, options)

    assert error.message =~ "no answer within 100 ms"
    assert error.stack =~ "__post_init__"
    assert PyPort.eval!("1", %{}, server: server) == 1
  end

  test "a wrong value is an error that names the place", %{server: server} do
    assert {:error, %{kind: :decode, message: message}} =
             PyPort.call("shop:describe", [[@item, %{@item | color: "blue"}]], %{},
               server: server,
               typed: true
             )

    assert message == ~s(args[0][1]["color"]: 'blue' is no Color. Its members are 'RED')
    assert_raise ArgumentError, ~r/:typed/, fn -> PyPort.eval("1", %{}, typed: true) end

    assert_raise ArgumentError, ~r/option :typed must be true or false/, fn ->
      PyPort.call("a:b", [], %{}, typed: 1)
    end
  end
end
