defmodule PyPort.Error.MisleadingTest do
  # Errors that look like others, and errors of which Python's own text does not say what to do.
  use ExUnit.Case, async: true

  import PyPort.Test.LogTo
  import PyPort.Test.Servers, only: [start_server: 1]

  alias PyPort.Error

  setup_all do
    {:ok, server} = PyPort.Server.start_link()
    {:ok, server: server}
  end

  defp error(code, server, options \\ []) do
    assert {:error, %Error{} = error} = PyPort.eval(code, %{}, [server: server, timeout: 20_000] ++ options)
    error
  end

  @unreadable "Python cannot read this:"

  describe "code that Python cannot read is told from code that raises" do
    for {name, code, type, read?} <- [
          {"code that does not compile", "x = = 1", "SyntaxError", false},
          {"wrong indentation", "if 1:\nx = 1", "IndentationError", false},
          {"tabs and blanks", "if 1:\n        x\n\tif 2: pass", "TabError", false},
          {"a null byte", "1\0", "SyntaxError", false},
          {"await under a star import", "from math import *\nawait x", "SyntaxError", false},
          {"SyntaxError by hand", "raise SyntaxError('mine')", "SyntaxError", true},
          {"SyntaxError of compile()", "compile('1 +', 'a.py', 'exec')", "SyntaxError", true},
          {"IndentationError of exec()", "exec('if 1:\\nx')", "IndentationError", true},
          {"SyntaxError of ast", "import ast; ast.parse('1 +')", "SyntaxError", true},
          {"a class of that name", "class SyntaxError(Exception): pass\nraise SyntaxError('a')",
           "SyntaxError", true},
          {"an ExceptionGroup", "raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup", true},
          {"a group in a group", "raise ExceptionGroup('g', [ExceptionGroup('h', [TypeError(2)])])",
           "ExceptionGroup", true},
          {"a BaseExceptionGroup", "raise BaseExceptionGroup('g', [KeyboardInterrupt()])",
           "BaseExceptionGroup", true},
          {"a TaskGroup",
           "import asyncio\nasync def bad(): raise ValueError(1)\nasync with asyncio.TaskGroup() as g: g.create_task(bad())",
           "ExceptionGroup", true},
          {"a message like a traceback", ~S[raise ValueError('  File "x", line 1\nSyntaxError: no')],
           "ValueError", true},
          {"a message of blanks", "raise ValueError('    ')", "ValueError", true},
          {"an exception without a traceback",
           "import asyncio\nf = asyncio.get_running_loop().create_future()\nf.set_exception(ValueError('q'))\nawait f",
           "ValueError", true},
          {"an exit with a text", "raise SystemExit('text')", "SystemExit", true},
          {"KeyboardInterrupt by hand", "raise KeyboardInterrupt", "KeyboardInterrupt", true},
          {"notes that begin with blanks", "e = ValueError('a'); e.add_note('  File \"x\"'); raise e",
           "ValueError", true}
        ] do
      test name, %{server: server} do
        error = error(unquote(code), server)
        assert %Error{kind: :python, type: unquote(type)} = error
        assert String.starts_with?(Exception.message(error), @unreadable) == not unquote(read?)
        assert Exception.message(error) =~ unquote(type)
      end
    end

    test "all that is in a group is shown", %{server: server} do
      text = "raise ExceptionGroup('g', [ValueError('one'), ExceptionGroup('h', [TypeError('two')])])"
      message = text |> error(server) |> Exception.message()

      for part <- ["ExceptionGroup: g", "ValueError: one", "ExceptionGroup: h", "TypeError: two"],
          do: assert(message =~ part)
    end
  end

  describe "a request that was told to end is told so, whatever its code makes of it" do
    @interrupted "raise RuntimeError('Query interrupted') from None"

    for {name, code, type} <- [
          {"an exception of a library's own",
           "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: #{@interrupted}", "RuntimeError"},
          {"in a task",
           "import asyncio\ntry: await asyncio.sleep(60)\nexcept asyncio.CancelledError: #{@interrupted}",
           "RuntimeError"},
          {"a group of tasks",
           "import asyncio\nasync def child():\n    try: await asyncio.sleep(60)\n    except asyncio.CancelledError: #{@interrupted}\n" <>
             "async with asyncio.TaskGroup() as g: g.create_task(child())", "ExceptionGroup"},
          {"an exit", "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(3)",
           "SystemExit"},
          {"another error while it cleans up", "import time\ntry: time.sleep(60)\nfinally: 1 / 0",
           "ZeroDivisionError"},
          {"nothing of its own", "import time\ntime.sleep(60)", "port_server.Cancelled"}
        ] do
      test name, %{server: server} do
        # asyncio is there, so that its import is not what is cut short.
        {:ok, nil} = PyPort.eval("await __import__('asyncio').sleep(0)", %{}, server: server)
        error = error(unquote(code), server, timeout: 100)
        assert %Error{kind: :timeout, type: unquote(type), begun: true} = error
        assert error.message =~ "no answer within 100 ms"
        assert error.traceback =~ unquote(type)
        assert [%{file: "<eval " <> _} | _] = error.frames

        if unquote(type) == "RuntimeError",
          do: assert(error.message =~ "ended with RuntimeError: Query interrupted")
      end
    end

    test "a generator, too", %{server: server} do
      code = """
      import time
      yield 1
      try: time.sleep(60)
      except KeyboardInterrupt: #{@interrupted}
      """

      error = catch_error(PyPort.stream(code, %{}, server: server, timeout: 200) |> Enum.to_list())
      assert %Error{kind: :timeout, type: "RuntimeError"} = error
      assert error.message =~ "Query interrupted"
    end

    test "one that was not told to end has its own error", %{server: server} do
      assert %Error{kind: :python, type: "RuntimeError"} =
               error("raise RuntimeError('Query interrupted')", server)
    end

    test "an answer that is given all the same is the answer", %{server: server} do
      code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass\n7"
      assert PyPort.eval(code, %{}, server: server, timeout: 100) == {:ok, 7}
    end

    test "and its server is replaced as after any cancel (after_cancel: :restart)" do
      server = start_server(after_cancel: :restart)
      monitor = Process.monitor(server)
      code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: raise RuntimeError('mine')"
      assert %Error{kind: :timeout} = error(code, server, timeout: 100)
      assert_receive {:DOWN, ^monitor, :process, _pid, {:shutdown, {:restart, _error}}}
    end
  end

  describe "a value that cannot be read here names its type, its place and what to do" do
    test "Decimal without its library", %{server: server} do
      code = "from decimal import Decimal\n{'rows': [{'price': 1}, {'price': Decimal('1.5')}]}"

      assert %Error{kind: :encode} = error = error(code, server)
      assert error.message =~ ~s(result["rows"][1]["price"]: it is a Decimal)
      assert error.message =~ ~s({:decimal, "~> 2.0"})
      assert error.message =~ "config :py_port, decimal: :string"
    end

    # Every kind of place, and of atom.
    for {code, path, name} <- [
          {"Atom(n)", "result", :atom},
          {"[1, (2, Atom(n))]", "result[1][1]", :atom},
          {"{'k': {Atom(n): 1}}", ~s(result["k"]), :atom},
          {"{Atom('ok'): [Atom(n)]}", "result[:ok][0]", :atom},
          {"{'x' * 100: Atom(n)}", "result[...]", :atom},
          {"{(1, 'a'): Atom(n)}", ~s(result[{1, "a"}]), :atom},
          {"Struct('Elixir.MyApp.' + n, {'a': 1})", "result", :struct},
          {"[Struct('Elixir.MyApp.Known', {Atom(n): 1})]", "result[0]", :known},
          {"[object(), Atom(n)]", "result[1]", :atom}
        ] do
      test "#{code}", %{server: server} do
        name = "never_met_#{System.unique_integer([:positive])}"
        code = "from port_server import Atom, Struct\n" <> unquote(code)
        assert {:error, error} = PyPort.eval(code, %{n: name}, server: server)
        assert %Error{kind: :decode, begun: true} = error

        case unquote(name) do
          :atom ->
            assert error.message =~
                     "#{unquote(path)} is the atom #{inspect(name)}, which this node has never met"

          :struct ->
            assert error.message =~
                     "#{unquote(path)} is a struct of the module MyApp.#{name}, which is not loaded"

          :known ->
            assert error.message =~
                     "#{unquote(path)} is a struct of the module MyApp.Known, which is not loaded"
        end

        assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
      end
    end

    test "an item of a stream, an argument, a message and the field of a log record", %{server: server} do
      name = "never_met_#{System.unique_integer([:positive])}"
      atom = "from port_server import Atom, send\nimport logging\n"
      items = PyPort.stream(atom <> "yield 1\nyield [Atom(n)]", %{n: name}, server: server)
      assert %Error{message: "item[0] is the atom" <> _} = catch_error(Enum.to_list(items))
      asked = PyPort.eval(atom <> "f([Atom(n)])", %{n: name, f: & &1}, server: server)
      assert {:error, %Error{type: "port_server.ElixirError"} = error} = asked
      assert error.message =~ "arguments[0][0] is the atom"

      attach(self())
      code = "send(p, {'a': Atom(n)})\nlogging.warning('x', extra={'y': Atom(n)})"
      assert {:ok, nil} = PyPort.eval(atom <> code, %{n: name, p: self()}, server: server)
      assert logged?(~s(message["a"] is the atom "#{name}"))
      assert logged?(~s(metadata["y"] is the atom "#{name}"))
    end
  end

  describe "depth" do
    @deep "x = 0\nfor _ in range(600): x = [x]\nx"

    test "beyond max_depth says so, with an option that exists", %{server: server} do
      error = error(@deep, server)
      assert %Error{kind: :encode} = error
      assert error.message =~ "nested deeper than 512 levels"
      assert error.message =~ "max_depth"
    end

    test "max_depth: lets it through, both ways" do
      server = start_server(max_depth: 1_000)
      assert {:ok, value} = PyPort.eval(@deep, %{}, server: server)
      assert {:ok, ^value} = PyPort.eval("x", %{x: value}, server: server)
      assert {:ok, ^value} = PyPort.eval("f(x)", %{x: value, f: & &1}, server: server)

      assert_raise ArgumentError, ~r/:max_depth must be a number of levels \(1 to 2000\)/, fn ->
        PyPort.Server.start_link(max_depth: 5_000)
      end
    end
  end

  describe "a debugger" do
    for {name, code} <- [
          {"breakpoint()", "x = 1\nbreakpoint()\nx"},
          {"breakpoint() in a function", "def f():\n    breakpoint()\n    return 1\nf()"},
          {"pdb.set_trace()", "import pdb; pdb.set_trace()\nx = 1"},
          {"breakpoint() in a task", "import asyncio\nawait asyncio.sleep(0)\nbreakpoint()\nx = 1"}
        ] do
      test "#{name} says what to do instead", %{server: server} do
        {:ok, device} = StringIO.open("")
        error = error(unquote(code), server, stdout: device)
        assert %Error{kind: :python, type: "bdb.BdbQuit"} = error
        message = Exception.message(error)
        assert message =~ "read from a terminal, and a server has none"
        assert message =~ "PyPort.stacks/1"
        assert message =~ "mix py_port.debug"
        assert message =~ "python -m pdb -p PID"
        assert message =~ "remote_pdb.set_trace"
        assert {:ok, 2} = PyPort.eval("1 + 1", %{}, server: server)
      end
    end
  end

  describe "long tracebacks" do
    # As deep in libraries as a web framework goes: copy calls itself.
    @deep_in_copy """
    import copy

    class Bottom:
        def __deepcopy__(self, memo): raise ValueError("at the bottom")

    value = Bottom()
    for _ in range(15): value = [value]

    def copied(): return copy.deepcopy(value)
    """

    test "are folded where they are shown, and whole in the field", %{server: server} do
      error = error(@deep_in_copy <> "copied()", server)
      message = Exception.message(error)
      whole = length(String.split(error.traceback, "\n"))
      assert whole > 60
      assert length(String.split(message, "\n")) < whole
      assert message =~ ~r/^  \[\.\.\. \d+ frames in libraries: see the field traceback \.\.\.\]$/m
      # Code of one's own is shown, all of it, and where the error came from.
      assert message =~ ", in copied\n"
      assert message =~ "ValueError: at the bottom"
      own = ~r/File "<eval [^\n]*/
      assert Regex.scan(own, message) == Regex.scan(own, error.traceback)

      # As the report of a process that crashed of it.
      assert Exception.format(:error, error, []) =~ "frames in libraries"
    end

    test "of Python's logging, too", %{server: server} do
      code =
        @deep_in_copy <> "import logging\ntry: copied()\nexcept ValueError: logging.exception('it failed')"

      attach(self())
      assert {:ok, nil} = PyPort.eval(code, %{}, server: server)
      assert logged?(~r/^it failed\n.* frames in libraries.*ValueError: at the bottom$/s)
    end

    test "of code of one's own alone are not", %{server: server} do
      error = error("def f(n):\n    if n: g(n)\n    else: 1 / 0\ndef g(n): f(n - 1)\nf(30)", server)
      assert length(String.split(error.traceback, "\n")) > 60
      assert Exception.message(error) == String.trim_trailing(error.traceback)
    end
  end
end
