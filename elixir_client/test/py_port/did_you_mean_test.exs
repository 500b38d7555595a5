defmodule PyPort.DidYouMeanTest do
  # Looks at every server that runs, and so wants no others beside its own.
  use ExUnit.Case, async: false

  alias PyPort.{DidYouMean, Error, Pool, Server}

  defp unavailable(server) do
    assert {:error, %Error{kind: :unavailable, begun: false, message: message}} =
             PyPort.eval("1", %{}, server: server)

    message
  end

  test "a misspelled server is told what runs, and what was meant" do
    start_supervised!({Server, name: Analytics.Fast})
    start_supervised!({Pool, name: :reports, size: 1})
    message = unavailable(Analytics.Fats)
    assert message =~ "no PyPort.Server or PyPort.Pool is running as Analytics.Fats"
    assert message =~ "Did you mean Analytics.Fast? Running: :reports, Analytics.Fast, PyPort.Default"
    assert unavailable(:report) =~ "Did you mean :reports?"
    refute unavailable(Elsewhere) =~ "Did you mean"
    assert {:error, %Error{message: message}} = PyPort.stacks(Analytics.Fats)
    assert message =~ "Did you mean Analytics.Fast?"
    assert {:error, %Error{message: message}} = Pool.resize(:report, 2)
    assert message =~ "Did you mean :reports?"
  end

  test "names that a registry of its own keeps are told apart from a mistake in them" do
    start_supervised!({Registry, keys: :unique, name: Names})
    assert unavailable({:via, Registry, {Names, "x"}}) =~ "Running: PyPort.Default"
  end

  test "at most ten are shown" do
    for n <- 1..12, do: start_supervised!({Pool, name: :"many_#{n}", size: 0}, id: n)
    assert unavailable(:nobody) =~ ~r/Running: :many_1, :many_10, [^.]*, :many_7 and 3 more$/
  end

  test "where nothing is similar nothing is suggested" do
    assert DidYouMean.similar(:x, []) == ""
    assert DidYouMean.similar(:colour, [:timeout, :server]) == ""
    assert DidYouMean.similar(:sever, [:timeout, :server]) == " Did you mean :server?"
  end
end
