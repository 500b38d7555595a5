defmodule PyPort.Sigils do
  @moduledoc ~S'''
  Sigils for Python source: `~P` on every Elixir, `~PY` on Elixir 1.15 and newer.

      import PyPort.Sigils

      PyPort.eval!(~P"sum(data)", %{data: [1, 2, 3]})
      #=> 6

      PyPort.eval!(~P"""
      import statistics
      statistics.median(data)
      """, %{data: [3, 1, 2]})
      #=> 2

  Both are literals: they do not evaluate or interpolate, and give a `PyPort.Code` that
  remembers its file and line, so that a traceback points at the line between the quotes. For sigils that evaluate, in
  IEx and Livebook, see `PyPort.Interactive`.

  ## Errors at compile time

  If the Python that would run the code is at hand, code that it cannot read is a `CompileError` at that line of the Elixir
  file:

      ** (CompileError) lib/my_app/report.ex:12: Python 3.12.4 cannot read this: '(' was never closed

          print((total)
               ^

  The Python of the default pool checks it: that of its environment (see `PyPort.Env`), or the option `:python` of
  `config :py_port, pool: [...]`, the variable `PYPORT_PYTHON`, `python3`. Code that it cannot read is given to the Pythons of
  the other environments before it is an error. A Python is started once in a compilation, with the first sigil, and does
  not run the code. If none can be started, as when the environment is not built yet, the code is not checked. For code that
  is meant for another Python than those:

      config :py_port, check_syntax: false
  '''

  @doc ~S'''
  A literal of Python source, as `PyPort.Code`. It takes no modifiers.

  ## Examples

      iex> import PyPort.Sigils
      iex> ~P"1 + 1".source
      "1 + 1"
  '''
  defmacro sigil_P(source, modifiers), do: literal(source, modifiers, __CALLER__)

  @doc ~S'''
  The same as `sigil_P/2`, under the name that Pythonx made familiar. Elixir 1.15 or newer.
  '''
  defmacro sigil_PY(source, modifiers), do: literal(source, modifiers, __CALLER__)

  defp literal(source, modifiers, caller) do
    {source, file, line} = place!(source, modifiers, caller)

    if Application.get_env(:py_port, :check_syntax, true),
      do: PyPort.SyntaxCheck.of!(source, caller.file, line)

    quote do
      %PyPort.Code{source: unquote(source), file: unquote(file), line: unquote(line)}
    end
  end

  @doc false
  # The text of a sigil, and the file and line on which it begins.
  @spec place!(Macro.t(), charlist(), Macro.Env.t()) :: {String.t(), Path.t(), pos_integer()}
  def place!({:<<>>, meta, [source]}, [], caller) when is_binary(source) do
    # The text of a heredoc begins on the line after its opening quotes.
    first_line = if Keyword.has_key?(meta, :indentation), do: caller.line + 1, else: caller.line
    {source, Path.relative_to_cwd(caller.file), first_line}
  end

  def place!(_source, modifiers, caller) do
    raise CompileError,
      file: caller.file,
      line: caller.line,
      description: "the Python sigils take no modifiers, got: #{inspect(List.to_string(modifiers))}"
  end
end
