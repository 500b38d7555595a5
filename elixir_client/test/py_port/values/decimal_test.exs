defmodule PyPort.DecimalTest do
  # Not async: the configuration and the module Decimal are there for all.
  use ExUnit.Case

  import PyPort.Test.Servers

  @code "from decimal import Decimal\n[Decimal('1.50'), {'n': Decimal('NaN')}]"

  test "a Decimal is one where the application has the library" do
    defmodule Elixir.Decimal do
      defstruct sign: 1, coef: 0, exp: 0
    end

    server = start_server()
    price = struct(Decimal, coef: 150, exp: -2)
    assert [^price, %{"n" => %{coef: :NaN}}] = PyPort.eval!(@code, %{}, server: server)
    assert PyPort.eval!("x", %{x: [price]}, server: server) == [price]
  after
    :code.purge(Decimal)
    :code.delete(Decimal)
  end

  test "and text where the configuration says so" do
    Application.put_env(:py_port, :decimal, :string)
    server = start_server()
    assert PyPort.eval!(@code, %{}, server: server) == ["1.50", %{"n" => "NaN"}]

    Application.put_env(:py_port, :decimal, :text)
    Process.flag(:trap_exit, true)
    {:ok, server} = PyPort.Server.start_link()
    assert_receive {:EXIT, ^server, reason}
    assert inspect(reason) =~ "decimal: :text is neither :struct nor :string"
  after
    Application.delete_env(:py_port, :decimal)
  end
end
