defmodule PyPort.SyntaxCheckTest do
  # Changes what the application is configured with.
  use ExUnit.Case, async: false

  alias PyPort.SyntaxCheck

  @moduletag :tmp_dir

  setup do
    was = Application.get_env(:py_port, :pool)

    on_exit(fn ->
      if was, do: Application.put_env(:py_port, :pool, was), else: Application.delete_env(:py_port, :pool)
      stop()
    end)

    stop()
  end

  # The next who asks starts it anew.
  defp stop do
    if Process.whereis(SyntaxCheck), do: GenServer.stop(SyntaxCheck)
    :ok
  end

  # A Python that notes its start.
  defp counted(dir) do
    python = System.get_env("PYPORT_PYTHON") || "python3"
    path = Path.join(dir, "counted")
    File.write!(path, "#!/bin/sh\necho >>#{dir}/starts\nexec #{python} \"$@\"\n")
    File.chmod!(path, 0o755)
    Application.put_env(:py_port, :pool, python: path)
  end

  defp starts(dir), do: dir |> Path.join("starts") |> File.read!() |> String.length()

  defp compile(source, file \\ "lib/report.ex") do
    Code.compile_string("defmodule M#{System.unique_integer([:positive])} do\n#{source}\nend", file)
  end

  test "a syntax error in a sigil is a compile error at that line of the Elixir file, with its place marked" do
    source = """
      import PyPort.Sigils
      def code do
        ~P\"""
        x = 1
        print((x)
        \"""
      end
    """

    error = assert_raise CompileError, fn -> compile(source) end
    assert %{line: 6} = error
    assert Path.basename(error.file) == "report.ex"
    assert error.description =~ ~r/^Python 3\.\d+\.\d+ cannot read this: '\(' was never closed\n/
    assert error.description =~ "\n    print((x)\n         ^"
  end

  test "what the server takes at top level is no error" do
    compile("import PyPort.Sigils\ndef code, do: {~P[return 1], ~P[yield 1], ~P[await x]}")
  end

  test "a compilation starts one Python, for however many sigils and modules", %{tmp_dir: dir} do
    counted(dir)

    1..20
    |> Task.async_stream(fn n ->
      compile("import PyPort.Sigils\ndef code, do: {~P[x = #{n}], ~P[same]}", "lib/m#{n}.ex")
    end)
    |> Stream.run()

    assert starts(dir) == 1
  end

  test "a Python that prints and reads while it starts is asked all the same", %{tmp_dir: dir} do
    path = Path.join(dir, "talks")
    python = System.get_env("PYPORT_PYTHON") || "python3"
    File.write!(path, "#!/bin/sh\necho hello\ncat\nexec #{python} \"$@\"\n")
    File.chmod!(path, 0o755)
    Application.put_env(:py_port, :pool, python: path)
    assert {:ok, %{bound: ["x"]}} = SyntaxCheck.of("x = y")
  end

  test "where there is no Python nothing is checked" do
    Application.put_env(:py_port, :pool, python: "/no/such/python")
    assert {:unknown, _why} = SyntaxCheck.of("x = = 1")
    compile("import PyPort.Sigils\ndef code, do: ~P[x = = 1]")
  end

  @tag :slow
  test "a Python that cannot do it, or that dies of it, checks nothing and says nothing", %{tmp_dir: dir} do
    for script <- ["echo Traceback >&2; exit 1", "printf '\\0\\0\\0\\0063.11.0' >&8; read line <&7"] do
      path = Path.join(dir, "broken")
      File.write!(path, "#!/bin/sh\n#{script}\n")
      File.chmod!(path, 0o755)
      Application.put_env(:py_port, :pool, python: path)
      stop()
      assert {:unknown, _why} = SyntaxCheck.of("x = = 1")
    end
  end

  test "where nothing can be asked an evaluating sigil says what to do" do
    Application.put_env(:py_port, :pool, python: "/no/such/python")

    assert_raise CompileError,
                 ~r/only Python can tell which names this code binds, and no Python 3.11 .* name one: config :py_port/,
                 fn ->
                   Code.eval_string("import PyPort.Interactive; ~P[x = 1]")
                 end
  end

  test "the check can be switched off" do
    Application.put_env(:py_port, :check_syntax, false)
    compile("import PyPort.Sigils\ndef code, do: ~P[x = = 1]")
  after
    Application.delete_env(:py_port, :check_syntax)
  end

  test "it ends its Python when it ends" do
    assert {:ok, %{bound: ["x"], read: ["y"], deleted: []}} = SyntaxCheck.of("x = y")
    [{port, _version}] = SyntaxCheck |> :sys.get_state() |> Map.fetch!(:pythons) |> Map.values()
    {:os_pid, os_pid} = Port.info(port, :os_pid)
    stop()
    assert PyPort.Test.Processes.eventually(fn -> not File.exists?("/proc/#{os_pid}") end)
  end
end
