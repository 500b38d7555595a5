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

  Both are literals: they evaluate nothing and interpolate nothing, and give a `PyPort.Code` that
  remembers its file and line, so that a traceback points at the line between the quotes.
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

  defp literal({:<<>>, meta, [source]}, [], caller) when is_binary(source) do
    # The text of a heredoc begins on the line after its opening quotes.
    first_line = if Keyword.has_key?(meta, :indentation), do: caller.line + 1, else: caller.line

    quote do
      %PyPort.Code{
        source: unquote(source),
        file: unquote(Path.relative_to_cwd(caller.file)),
        line: unquote(first_line)
      }
    end
  end

  defp literal(_source, modifiers, caller) do
    raise CompileError,
      file: caller.file,
      line: caller.line,
      description: "the Python sigils take no modifiers, got: #{inspect(List.to_string(modifiers))}"
  end
end
