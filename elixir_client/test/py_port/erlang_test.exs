defmodule PyPort.ErlangTest do
  # The module py_port: its forms of text, options and errors. Its page, docs/erlang.md, is run by documents_test.exs.
  use ExUnit.Case, async: true

  test "code, names and options are text, maps or proplists" do
    for code <- ['x + 1', "x + 1", ["x", ' + ', ?1]],
        globals <- [%{x: 1}, [x: 1], [{"x", 1}]],
        options <- [%{}, [timeout: 5_000]] do
      assert :py_port.eval(code, globals, options) == {:ok, 2}
    end

    for module <- [:math, 'math', "math"], function <- [:gcd, 'gcd', "gcd"] do
      assert :py_port.call(module, function, [12, 18]) == {:ok, 6}
    end

    assert :py_port.call(:builtins, :sorted, [[1, 2]], kwargs: [reverse: true], timeout: 5_000) ==
             {:ok, [2, 1]}
  end

  test "errors are maps whose message is a text for people" do
    assert {:error, %{kind: :python, type: "KeyError", message: message, frames: [_]} = error} =
             :py_port.call(:builtins, :eval, ["{}['x']"])

    assert message =~ "KeyError: 'x'"
    refute is_map_key(error, :__struct__)
    assert {:error, %{kind: :unavailable}} = :py_port.eval("1", [], server: :no_such_server)
  end

  test "wrong arguments are badarg with a sentence" do
    for call <- [
          fn -> :py_port.eval("1", %{}, no_such: 1) end,
          fn -> :py_port.eval("1", %{}, timeout: -1) end,
          fn -> :py_port.eval([1_000_000_000], %{}) end,
          fn -> :py_port.open_session(timeout: :soon) end
        ] do
      assert {:badarg, text} = catch_error(call.())
      assert is_binary(text)
    end
  end

  test "a stream gives its items, then the error of its code" do
    stream = :py_port.stream("yield 1; 1 / 0", %{}, %{})
    assert {:ok, 1, rest} = :py_port.next(stream)
    assert {:error, %{kind: :python}} = :py_port.next(rest)
    stream = :py_port.stream("yield 1; 1 / 0", %{}, %{})
    assert {:error, %{kind: :python}} = :py_port.fold(fn item, sum -> item + sum end, 0, stream)
    assert :py_port.next(:py_port.stream("return 1; yield", %{}, %{})) == :done
  end

  test "a stream that is stopped runs its finally" do
    {:ok, device} = StringIO.open("")
    code = "try:\n    while True: yield 1\nfinally:\n    print('closed')"
    {:ok, 1, rest} = :py_port.next(:py_port.stream(code, %{}, stdout: device))
    assert :py_port.stop(rest) == :ok
    assert {:ok, nil} = :py_port.eval("None")
    assert PyPort.Test.Processes.eventually(fn -> StringIO.contents(device) == {"", "closed\n"} end)
  end
end
