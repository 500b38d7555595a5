defmodule PyPort.AllowTest do
  # The functions that Python may call by name.
  use ExUnit.Case, async: true

  alias PyPort.Allow

  test "a function is found if a module, a name or an arity allows it" do
    for {allow, found?} <- [
          {[Enum], true},
          {[{Enum, :sum}], true},
          {[{Enum, :sum, 1}], true},
          {[{Enum, :sum, 2}], false},
          {[{Enum, :max}], false},
          {[], false},
          {:all, true}
        ],
        module <- ["Enum", "Elixir.Enum"] do
      assert match?({:ok, _}, Allow.find(allow, module, "sum", 1)) == found?
    end

    assert {:ok, fun} = Allow.find([:lists], "lists", "reverse", 1)
    assert fun.([1, 2]) == [2, 1]
  end

  test ":all takes every function that exists, and makes no atoms of other names" do
    assert {:ok, _} = Allow.find(:all, "lists", "keysort", 2)
    name = "NoSuch#{System.unique_integer([:positive])}"

    for {module, function} <- [{name, "f"}, {"Enum", "sum!"}, {"Enum", name}] do
      assert {:refused, message} = Allow.find(:all, module, function, 1)
      assert message == "#{module}.#{function}/1 does not exist"
    end

    assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
    assert_raise ArgumentError, fn -> String.to_existing_atom("Elixir." <> name) end
  end
end
