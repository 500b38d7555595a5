defmodule PyPort.InteractiveTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO
  import PyPort.Interactive
  import PyPort.Test.Servers

  doctest PyPort.Interactive

  # As IEx does: one line after another, each with what those before it have bound.
  defp lines(lines, binding \\ []) do
    env = Code.env_for_eval(__ENV__)

    Enum.reduce(lines, {nil, binding, env}, fn line, {_value, binding, env} ->
      quoted = Code.string_to_quoted!(line, file: "iex", line: 1)
      Code.eval_quoted_with_env(quoted, binding, env)
    end)
  end

  defp value(lines, binding \\ []), do: lines |> lines(binding) |> elem(0)
  defp binding_after(lines, binding), do: lines |> lines(binding) |> elem(1) |> Map.new()

  test "it gives the value of the last expression, and nil after a statement" do
    assert ~P"1 + 1" == 2
    assert ~P"pass" == nil
  end

  test "variables that the code reads go in" do
    x = 20
    assert ~P"x + 1" == 21
    assert ~P"[x + y for y in range(2)]" == [20, 21]
    assert ~P"(lambda z: z * x)(2)" == 40
  end

  test "only what the code reads goes in: what cannot cross may stand beside it" do
    here = PyPort.eval!("object()")
    there = PyPort.eval!("object()", %{}, server: start_server())
    assert %PyPort.Object{} = ~P"here"
    # Objects of two servers cannot meet.
    assert_raise PyPort.Error, ~r/belongs to another server/, fn -> ~P"here, there" end
  end

  test "names that the code binds are variables afterwards, by whatever statement" do
    ~P"""
    a = 1
    for b in range(3): pass
    import math as c
    def d(x): return x * a
    with open("/dev/null") as e: pass
    (f := 6)
    """

    assert {a, b, f} == {1, 2, 6}
    assert %PyPort.Object{type: "module"} = c
    assert %PyPort.Object{type: "function"} = d
    assert %PyPort.Object{} = e
    assert PyPort.getattr(e, "closed") == {:ok, true}
    # A function sees the names among which it was defined.
    assert ~P"d(21)" == 21
    assert ~P"c.sqrt(16)" == 4.0
  end

  test "a variable of a branch that was not taken is nil, or what it was" do
    known = :before

    ~P"""
    if len("") > 0:
        unknown = 1
        known = 2
    """

    assert unknown == nil
    assert known == :before
    ~P"if False: never = 1"
    assert never == nil
  end

  test "what the code deletes is nil" do
    x = 1
    ~P"del x"
    assert x == nil
    ~P"y = 1; del y"
    assert y == nil
  end

  test "names that Elixir cannot spell are there for the next sigil" do
    assert value([
             ~S|~P"from collections import Counter; PI = 3"|,
             ~S|~P"Counter('aab').most_common(1)[0][1] * PI"|
           ]) == 6

    binding = binding_after([~S|~P"class Point: pass"|], [])
    assert %{Point: %PyPort.Object{}} = binding
  end

  test "words that are Elixir's own are names like others" do
    words = ~w(end do nil after else catch rescue when case cond quote unquote super alias require receive)
    # What is a word of Python's, too, can be no name there.
    words = words -- ~w(else import)

    for word <- words do
      assert {word, value([~s|~P"#{word} = 7"|, ~s|~P"#{word} + 1"|])} == {word, 8}
    end
  end

  test "_ and the names of comprehensions and functions are not bound, and fn does no harm" do
    assert binding_after([~S|~P"for _ in range(2): fn = 1"|], []) == %{}
    assert binding_after([~S|~P"[i for i in range(2)]"|, ~S|~P"f = lambda j: j"|], []) |> Map.keys() == [:f]
    assert ~P"_a = 1" == nil
  end

  test "names go from line to line, as in IEx" do
    assert value([~S|x = 1|, ~S|~P"y = x + 1"|, ~S|z = y + 1|, ~S|~P"x, y, z"|]) == {1, 2, 3}
  end

  test "it is hygienic: variables of its own are not seen, and those of macros do not get in" do
    assert binding_after([~S|~P"x = 1"|], value: :mine, globals: :mine) == %{
             value: :mine,
             globals: :mine,
             x: 1
           }
  end

  test "a value that a name had is not lost to code that binds it after it has read it" do
    x = 1
    ~P"x = x + 1"
    assert x == 2
    ~P"x += 1"
    assert x == 3
  end

  test "functions are called back, and objects go in as what they are" do
    f = &(&1 * 10)
    assert ~P"[f(i) for i in range(3)]" == [0, 10, 20]
    ~P"import io; text = io.StringIO('hello')"
    assert %PyPort.Object{type: "_io.StringIO"} = text
    assert ~P"text.read(2)" == "he"
    assert ~P"text.read()" == "llo"
  end

  test "return and await work, and bind names" do
    ~P"""
    import asyncio
    x = await asyncio.sleep(0, 5)
    """

    assert x == 5
    assert ~P"if x: return 'early'" == "early"
  end

  test "what it prints goes to the group leader" do
    assert capture_io(fn -> ~P"print('hello')" end) == "hello\n"
  end

  test "an error is raised, and its traceback names the line" do
    error =
      assert_raise PyPort.Error, fn ->
        ~P"""
        x = 1
        x / 0
        """
      end

    assert %{type: "ZeroDivisionError", frames: frames} = error
    assert %{line: line, file: file} = List.last(frames)
    assert {file, line} == {Path.relative_to_cwd(__ENV__.file), __ENV__.line - 6}
  end

  test "a syntax error is one of the line" do
    assert_raise CompileError, ~r/:1: Python 3\.\d+\.\d+ cannot read this: invalid syntax/, fn ->
      lines([~S|~P"x = = 1"|])
    end
  end

  test "its options hold for the process that has put them" do
    server = start_server()
    put_options(server: server)
    assert ~P"import os; os.getpid()" == PyPort.Server.os_pid(server)
    {:ok, session} = PyPort.open_session(server: server)
    put_options(session: session)
    ~P"kept = 1"
    assert PyPort.eval("kept", %{}, session: session) == {:ok, 1}
    put_options(timeout: 100)
    assert_raise PyPort.Error, ~r/no answer within 100 ms/, fn -> ~P"while True: pass" end
  end

  test "an unknown option is an error that names the known ones" do
    assert_raise ArgumentError,
                 ~r/unknown option :timeuot for PyPort.Interactive.put_options\/1. Did you mean :timeout\? Known/,
                 fn -> put_options(timeuot: 1) end

    assert_raise ArgumentError, ~r/unknown option :return/, fn -> put_options(return: :object) end
  end
end
