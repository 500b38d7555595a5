defmodule PyPort.SigilsTest do
  use ExUnit.Case, async: true

  import PyPort.Sigils

  doctest PyPort.Sigils

  test "a sigil is a literal that knows its file and line" do
    code = ~P"1 + 1"
    assert %PyPort.Code{source: "1 + 1", line: line} = code
    assert line == __ENV__.line - 2
    assert code.file == Path.relative_to_cwd(__ENV__.file)
  end

  test "the first line of a heredoc is the line after its quotes" do
    code = ~P"""
    x = 1
    x
    """

    assert code.source == "x = 1\nx\n"
    assert code.line == __ENV__.line - 5
  end

  test "nothing is interpolated and no escape is read" do
    assert ~P"f'#{x}\n'".source == "f'\#{x}\\n'"
  end

  test "a modifier is an error at its line" do
    assert_raise CompileError, ~r/no modifiers, got: "r"/, fn ->
      Code.eval_string(~S"import PyPort.Sigils; ~P[1]r")
    end
  end
end
