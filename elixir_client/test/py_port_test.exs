defmodule PyPortTest do
  # The face, against the default server: a real Python.
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO
  import PyPort.Sigils

  alias PyPort.Error

  doctest PyPort

  describe "eval/3" do
    test "gives the value of the last expression" do
      assert PyPort.eval("x = 1\ny = 2\nx + y") == {:ok, 3}
    end

    test "gives nil for code that ends in a statement, and for no code at all" do
      assert PyPort.eval("x = 1") == {:ok, nil}
      assert PyPort.eval("") == {:ok, nil}
    end

    test "takes globals with atom keys and with string keys" do
      assert PyPort.eval("a + b", %{:a => 1, "b" => 2}) == {:ok, 3}
    end

    test "starts every request with a namespace of its own" do
      assert {:ok, nil} = PyPort.eval("leftover = 1")
      assert {:error, %Error{kind: :python, type: "NameError"}} = PyPort.eval("leftover")
    end

    test "round-trips what Elixir has" do
      for value <- [
            nil,
            true,
            :atom,
            1,
            -1,
            2 ** 64,
            -(2 ** 200),
            1.5,
            "text",
            "ümläut ✓",
            [],
            [1, [2, [3]]],
            ~c"charlist",
            {},
            {1, {2}},
            %{},
            %{"k" => 1, 2 => :v},
            %{nested: %{list: [1, 2.0, "three", nil]}},
            self(),
            make_ref(),
            <<1::3>>,
            [1 | 2],
            ~D[2024-02-29],
            ~T[12:34:56.789000],
            ~N[2024-02-29 12:34:56],
            ~U[2024-02-29 12:34:56Z],
            MapSet.new([1, 2, 3]),
            1..10
          ] do
        assert PyPort.eval("value", %{value: value}) == {:ok, value}
      end
    end

    test "gives the floats that Erlang has not as the atoms that Nx knows" do
      assert PyPort.eval("[float('inf'), float('-inf'), float('nan')]") ==
               {:ok, [:infinity, :neg_infinity, :nan]}
    end

    test "takes any name for a global that Python takes, and refuses the others by name" do
      assert PyPort.eval("µ + größe", %{"µ" => 1, "größe" => 2}) == {:ok, 3}
      assert {:error, %Error{kind: :decode, message: message}} = PyPort.eval("1", %{class: 1})
      assert message =~ "class"
      assert {:error, %Error{kind: :decode, message: message}} = PyPort.eval("1", %{"two words" => 1})
      assert message =~ "two words"
    end

    test "reads binaries as str, or as bytes where it was asked to" do
      assert PyPort.eval("type(b).__name__", %{b: "x"}) == {:ok, "str"}
      assert PyPort.eval("type(b).__name__", %{b: "x"}, binary_as: :bytes) == {:ok, "bytes"}
      assert PyPort.eval("type(b).__name__", %{b: PyPort.bytes("x")}) == {:ok, "bytes"}
      assert PyPort.eval("b[0]", %{b: PyPort.bytes(<<255>>)}) == {:ok, 255}
    end

    test "says where a binary that is no text stands, and what can be done" do
      assert {:error, %Error{kind: :decode, message: message}} =
               PyPort.eval("rows", %{rows: [%{"name" => <<255>>}]})

      assert message =~ ~s(rows)
      assert message =~ "[0]"
      assert message =~ "binary_as" or message =~ "bytes"
    end

    test "says of code that is no text what code is" do
      assert {:error, %Error{kind: :protocol, message: message}} = PyPort.eval(<<255>>)
      assert message =~ "UTF-8 text"
      refute message =~ "binary_as"
    end

    test "says that a value cannot be sent, and the server goes on" do
      assert {:error, %Error{kind: :encode}} = PyPort.eval("x = []; x.append(x); x")
      assert PyPort.eval("1") == {:ok, 1}
    end

    test "refuses a reply with an atom that this VM has never met, and makes none" do
      name = "never_met_#{System.unique_integer([:positive])}"

      assert {:error, %Error{kind: :decode, message: message}} =
               PyPort.eval("import port_server; port_server.Atom(name)", %{name: name})

      assert message =~ "atom"
      assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
    end

    test "carries ten megabytes there and back" do
      data = :crypto.strong_rand_bytes(10_000_000)
      assert PyPort.eval("data", %{data: PyPort.bytes(data)}) == {:ok, data}
    end
  end

  describe "errors" do
    test "have Python's own report, pointing at the file and line of the sigil" do
      code = ~P"""
      def divide(a, b):
          return a / b

      divide(1, 0)
      """

      line = __ENV__.line - 5
      file = Path.relative_to_cwd(__ENV__.file)
      assert {:error, %Error{kind: :python} = error} = PyPort.eval(code)
      assert error.type == "ZeroDivisionError"
      assert error.message == "division by zero"

      assert [%{line: outer, source: "divide(1, 0)"}, %{line: inner, function: "divide"} = last] =
               error.frames

      assert {outer, inner} == {line + 2, line}
      assert last.file == file
      assert last.source == "return a / b"

      text = Exception.message(error)
      assert text =~ "Traceback (most recent call last)"
      assert text =~ ~s(File "#{file}", line #{line}, in divide)
      assert text =~ "ZeroDivisionError: division by zero"
      refute text =~ "port_server"
    end

    test "name the line of a syntax error" do
      assert {:error, %Error{kind: :python, type: "SyntaxError", traceback: text}} = PyPort.eval("x = 1\nx +")
      assert text =~ "line 2"
      assert text =~ "x +"
    end

    test "come for everything Python can throw, and the server goes on" do
      for {code, type} <- [
            {"import sys; sys.exit(7)", "SystemExit"},
            {"raise KeyboardInterrupt", "KeyboardInterrupt"},
            {"raise GeneratorExit", "GeneratorExit"},
            {"class Own(BaseException): pass\nraise Own('x')", "Own"},
            {"def f(): f()\nf()", "RecursionError"},
            {"nowhere", "NameError"}
          ] do
        assert {:error, %Error{kind: :python, type: got}} = PyPort.eval(code)
        assert got =~ type
        assert PyPort.eval("1 + 1") == {:ok, 2}
      end
    end

    test "eval!/3 raises them" do
      assert_raise Error, ~r/ZeroDivisionError: division by zero/, fn -> PyPort.eval!("1 / 0") end
    end
  end

  describe "call/4" do
    test "calls by module and qualified name, with arguments and keywords" do
      assert PyPort.call("math:sqrt", [9.0]) == {:ok, 3.0}
      assert PyPort.call("builtins:sorted", [[1, 3, 2]], reverse: true) == {:ok, [3, 2, 1]}
      assert PyPort.call("builtins:str.upper", ["abc"]) == {:ok, "ABC"}
      assert PyPort.call!("os.path:join", ["a", "b"]) == "a/b"
    end

    test "says which part of a target is wrong" do
      assert {:error, %Error{message: message}} = PyPort.call("no_such_module:f")
      assert message =~ "no_such_module"
      assert {:error, %Error{message: message}} = PyPort.call("math:no_such_function")
      assert message =~ "no_such_function"
      assert {:error, %Error{message: message}} = PyPort.call("math.sqrt", [1.0])
      assert message =~ "module:"
    end
  end

  describe "output" do
    test "arrives where the caller prints, before the answer" do
      assert capture_io(fn ->
               assert PyPort.eval!("print('hello'); print('wörld', end='!')") == nil
               IO.write("|after")
             end) == "hello\nwörld!|after"
    end

    test "goes to the devices that were named" do
      {:ok, out} = StringIO.open("")
      {:ok, err} = StringIO.open("")
      PyPort.eval!("import sys; print('out'); print('err', file=sys.stderr)", %{}, stdout: out, stderr: err)
      assert StringIO.contents(out) == {"", "out\n"}
      assert StringIO.contents(err) == {"", "err\n"}
    end

    test "of a request that fails arrives, too" do
      assert capture_io(fn -> {:error, _} = PyPort.eval("print('so far'); 1 / 0") end) == "so far\n"
    end

    test "never disturbs a frame, whichever way it is written" do
      for code <- [
            "import os; os.write(1, b'raw' * 100)",
            "import subprocess; subprocess.run(['echo', 'from a child']).returncode",
            "import ctypes; ctypes.CDLL(None).puts(b'from C'); ctypes.CDLL(None).fflush(None)",
            "import sys; sys.__stdout__ and sys.__stdout__.write('dunder'); sys.stdout.close()",
            "import os; os.close(1)"
          ] do
        assert {:ok, _} = PyPort.eval(code)
        assert PyPort.eval("1 + 1") == {:ok, 2}
      end
    end

    test "a device that hangs does not cost the caller its answer" do
      hung = spawn(fn -> Process.sleep(:infinity) end)
      assert PyPort.eval("print('x'); 1", %{}, stdout: hung, timeout: 300) == {:ok, 1}
      assert PyPort.eval("2") == {:ok, 2}
      Process.exit(hung, :kill)
    end

    test "a device that has died does not cost the caller its answer" do
      dead = spawn(fn -> :ok end)
      assert PyPort.eval("print('x'); 1", %{}, stdout: dead) == {:ok, 1}
    end

    test "input() is an error" do
      assert {:error, %Error{kind: :python, message: message}} = PyPort.eval("input('name? ')")
      assert message =~ "stdin" or message =~ "input"
    end
  end

  describe "a programmer's error raises ArgumentError:" do
    test "an unknown option, with the nearest known one" do
      assert_raise ArgumentError, ~r/unknown option :timout.*Did you mean :timeout\?/, fn ->
        PyPort.eval("1", %{}, timout: 5)
      end
    end

    test "a value of the wrong type, with what was expected" do
      assert_raise ArgumentError, ~r/:timeout must be milliseconds.*got: "5"/, fn ->
        PyPort.eval("1", %{}, timeout: "5")
      end

      # Longer than the BEAM can wait.
      assert_raise ArgumentError, ~r/milliseconds \(0 to \d+\) or :infinity/, fn ->
        PyPort.eval("1", %{}, timeout: 5_000_000_000)
      end
    end

    test "options in the place of the globals, with where they belong" do
      assert_raise ArgumentError, ~r/eval\(code, %{}, timeout: 5\)/, fn -> PyPort.eval("1", timeout: 5) end
    end

    test "globals, code, targets and arguments of the wrong type" do
      assert_raise ArgumentError, ~r/globals must be a map/, fn -> PyPort.eval("1", 5) end
      assert_raise ArgumentError, ~r/code must be a string/, fn -> PyPort.eval(5) end
      assert_raise ArgumentError, ~r/target of a call/, fn -> PyPort.call(:math) end

      assert_raise ArgumentError, ~r/arguments of a call must be a list.*\[9.0\]/, fn ->
        PyPort.call("math:sqrt", 9.0)
      end

      assert_raise ArgumentError, ~r/:server must be/, fn -> PyPort.eval("1", %{}, server: "text") end
    end
  end

  test "many callers each get their own answers" do
    answers =
      1..64
      |> Task.async_stream(
        fn caller -> for n <- 1..50, do: PyPort.eval!("[caller, n]", %{caller: caller, n: n}) end,
        max_concurrency: 64,
        timeout: 60_000
      )
      |> Enum.map(fn {:ok, answers} -> answers end)

    assert answers == for(caller <- 1..64, do: for(n <- 1..50, do: [caller, n]))
  end

  test "nothing stays in the caller's mailbox" do
    PyPort.eval("1")
    PyPort.eval("print('x')", %{}, stdout: spawn(fn -> :ok end))
    PyPort.eval("import time; time.sleep(0.05)", %{}, timeout: 10)
    PyPort.eval("1")
    assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
  end
end
