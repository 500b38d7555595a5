defmodule PyPort.SigilPYTest do
  use ExUnit.Case, async: true

  import PyPort.Sigils

  test "~PY is the literal that ~P is" do
    assert %PyPort.Code{source: "sum(data)", line: line} = code = ~PY"sum(data)"
    assert line == __ENV__.line - 1
    assert PyPort.eval!(code, %{data: [1, 2, 3]}) == 6
  end

  test "a traceback points at the line of this file on which the heredoc has it" do
    code = ~PY"""
    x = 1
    raise ValueError("here")
    """

    expected_line = __ENV__.line - 3
    assert {:error, %PyPort.Error{frames: frames}} = PyPort.eval(code)
    assert %{line: ^expected_line, source: source, file: file} = List.last(frames)
    assert source =~ "raise ValueError"
    assert file == Path.relative_to_cwd(__ENV__.file)
  end
end
