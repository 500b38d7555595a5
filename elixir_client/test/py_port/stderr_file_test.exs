defmodule PyPort.StderrFileTest do
  use ExUnit.Case, async: true

  alias PyPort.StderrFile

  @moduletag :tmp_dir

  setup %{tmp_dir: tmp_dir} do
    path = Path.join(tmp_dir, "stderr")
    {:ok, file} = StderrFile.open(path)
    # As the shell opens it for Python.
    {:ok, writer} = :file.open(path, [:append, :raw, :binary])
    %{stderr: file, writer: writer, path: path}
  end

  test "lines are read once, in order, and a line without an end waits for it", context do
    :file.write(context.writer, "one\ntwo\nthr")
    assert {"one\ntwo\n", 0, file} = StderrFile.read(context.stderr, 1)
    assert {"", 0, file} = StderrFile.read(file, 1)
    :file.write(context.writer, "ee\n")
    assert {"three\n", 0, file} = StderrFile.read(file, 1)
    :file.write(context.writer, "four")
    assert {"four", 0, _file} = StderrFile.read(file, 1, true)
  end

  test "the last lines are there, with or without an end", context do
    :file.write(context.writer, Enum.map(1..50, &"line #{&1}\n"))
    :file.write(context.writer, "Segmentation fault")
    assert StderrFile.last_lines(context.stderr, 2) == ["line 50", "Segmentation fault"]
  end

  test "the last lines are those since the oldest open request was sent", context do
    write = &:file.write(context.writer, &1 <> "\n")
    write.("at the start")
    # Requests 1 to 3 came before it was looked at, none is open.
    file = StderrFile.note(context.stderr, 3, nil)
    write.("of the fourth")
    assert StderrFile.last_lines(file, 9, 4) == ["of the fourth"]
    # It goes on while others come.
    file = StderrFile.note(file, 7, 4)
    write.("later")
    file = StderrFile.note(file, 9, 4)
    assert StderrFile.last_lines(file, 9, 4) == ["of the fourth", "later"]
    # It has ended; number 8 was sent after the look at which 7 was the last.
    file = StderrFile.note(file, 12, 8)
    write.("last")
    assert StderrFile.last_lines(file, 9, 8) == ["later", "last"]
    assert StderrFile.last_lines(file, 9, 13) == ["last"]
    # With none open, the lines of the last looks.
    file = StderrFile.note(file, 12, nil)
    assert StderrFile.last_lines(file, 9, nil) == ["last"]
    file = file |> StderrFile.note(12, nil) |> StderrFile.note(12, nil)
    assert StderrFile.last_lines(file, 9, nil) == []
  end

  test "what is older than the cut is no matter", context do
    :file.write(context.writer, :binary.copy("0123456789abcde\n", 80_000))
    file = context.stderr |> StderrFile.note(1, nil) |> read_all()
    :file.write(context.writer, "after the cut\n")
    assert List.last(StderrFile.last_lines(file, 9, 2)) == "after the cut"
  end

  test "the file is cut when it has been read to a megabyte, and what follows is read on", context do
    :file.write(context.writer, :binary.copy("0123456789abcde\n", 80_000))
    file = read_all(context.stderr)
    assert File.stat!(context.path).size < 1_048_576
    :file.write(context.writer, "after the cut\n")
    assert {"after the cut\n", 0, _file} = StderrFile.read(file, 1)
  end

  test "a file beyond the limit is emptied at once, and what was not read is counted", context do
    :file.write(context.writer, "read\n")
    assert {"read\n", 0, file} = StderrFile.read(context.stderr, 10)
    assert {true, file} = StderrFile.limit(file, 1_000)
    assert {false, file} = StderrFile.limit(file, 1_000)
    :file.write(context.writer, :binary.copy("x\n", 1_000))
    assert {true, file} = StderrFile.limit(file, 1_000)
    assert File.stat!(context.path).size == 0
    :file.write(context.writer, "after\n")
    assert {"after\n", 2_000, file} = StderrFile.read(file, 10)
    assert {"", 0, _file} = StderrFile.read(file, 10)
  end

  test "a line longer than a read does not hold up what follows", context do
    :file.write(context.writer, [:binary.copy("x", 200_000), "\nnext\n"])
    assert "next" in read_all_lines(context.stderr)
  end

  test "bytes that are no UTF-8 are shown as bytes", context do
    :file.write(context.writer, <<255, 254, ?\n>>)
    assert {text, 0, _file} = StderrFile.read(context.stderr, 1)
    assert StderrFile.lines(text) == ["<<255, 254>>"]
  end

  describe "stacks" do
    @dump """
    Thread 0x00007f1c2d7fa6c0 (most recent call first):
      File "/usr/lib/python3.11/selectors.py", line 468 in select

    Current thread 0x00007f1c2e5fe740 (most recent call first):
      File "<string>", line 1 in <module>
    """

    test "are found among other lines", _context do
      text = "printed before\n" <> @dump <> "printed after\n"
      assert StderrFile.stacks(text) == String.trim_trailing(@dump)
      assert StderrFile.stacks("nothing of that kind\n") == nil
      assert StderrFile.stacks("") == nil
    end

    test "of two dumps the first is taken" do
      assert StderrFile.stacks(@dump <> @dump) == String.trim_trailing(@dump)
    end

    test "of a thread that is being started are none" do
      starting = "Thread 0x00007f1c2e5fe740 (most recent call first):\n  <no Python frame>\n\n"
      assert StderrFile.stacks(starting <> @dump) == String.trim_trailing(@dump)
    end

    test "of one thread alone are stacks, too" do
      text = "Stack (most recent call first):\n  File \"a.py\", line 3 in f\n"
      assert StderrFile.stacks(text) == String.trim_trailing(text)
    end

    test "of a process that has ended are those behind the fatal error", context do
      :file.write(context.writer, [@dump, "Fatal Python error: Segmentation fault\n\n"])

      :file.write(
        context.writer,
        "Current thread 0x0000000000000001 (most recent call first):\n  File \"<string>\", line 7 in crash\n"
      )

      assert StderrFile.fatal_stack(context.stderr) =~ "line 7 in crash"
      refute StderrFile.fatal_stack(context.stderr) =~ "selectors"
    end

    test "are not there where a process ended in peace", context do
      :file.write(context.writer, @dump)
      assert StderrFile.fatal_stack(context.stderr) == nil
    end
  end

  defp read_all(file) do
    {_text, _dropped, file} = StderrFile.read(file, 1_000)
    file
  end

  defp read_all_lines(file) do
    {text, _dropped, _file} = StderrFile.read(file, 1_000)
    StderrFile.lines(text)
  end
end
