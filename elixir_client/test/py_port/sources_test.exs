defmodule PyPort.SourcesTest do
  # The Python files of an application, as a change of them is seen.
  use ExUnit.Case, async: true

  alias PyPort.Sources

  @moduletag :tmp_dir

  defp names(dir),
    do: [dir] |> Sources.state() |> Map.keys() |> Enum.map(&Path.relative_to(&1, dir)) |> Enum.sort()

  test "a file that is new, changed, gone, or another one is seen", %{tmp_dir: dir} do
    file = Path.join(dir, "a.py")
    seen = fn -> Sources.state([dir, Path.join(dir, "missing")]) end
    none = seen.()
    File.write!(file, "a = 1")
    one = seen.()
    File.write!(file, "a = 10")
    changed = seen.()
    # As editors do it that write another file and rename it: the same size, in the same second.
    File.write!(file <> ".new", "a = 11")
    File.rename!(file <> ".new", file)
    another = seen.()
    File.rm!(file)
    assert seen.() == none
    assert length(Enum.uniq([none, one, changed, another])) == 4
  end

  test "only Python files count, and none of what is hidden, built or installed", %{tmp_dir: dir} do
    left_out =
      ~w(a.txt a.pyc .hidden.py .venv/b.py pkg/__pycache__/b.py deps/c.py node_modules/d.py _build/e.py env/pyvenv.cfg env/lib/f.py)

    for path <- ~w(a.py pkg/b.py) ++ left_out do
      File.mkdir_p!(Path.dirname(Path.join(dir, path)))
      File.write!(Path.join(dir, path), "")
    end

    assert names(dir) == ["a.py", "pkg/b.py"]
  end

  test "links are followed, each directory once", %{tmp_dir: dir} do
    source = Path.join(dir, "source")
    root = Path.join(dir, "root")
    for one <- [source, root], do: File.mkdir_p!(one)
    File.write!(Path.join(source, "a.py"), "")
    File.ln_s!(source, Path.join(root, "pkg"))
    File.ln_s!(Path.join(source, "a.py"), Path.join(root, "b.py"))
    File.ln_s!("nowhere", Path.join(root, "c.py"))
    assert names(root) == ["b.py", "pkg/a.py"]

    # Links that lead back: followed, they are 2 to the power of 40 directories.
    for name <- ["one", "two"], do: File.ln_s!(root, Path.join(root, name))
    assert {:ok, ["b.py", "pkg/a.py"]} = fn -> names(root) end |> Task.async() |> Task.yield(5_000)
    # In two of the directories that are looked at.
    assert map_size(Sources.state([root, root])) == 2
  end

  test "PYTHONPATH has the directories of the applications, but not PyPort's own" do
    refute Enum.any?(Sources.directories(), &(&1 =~ "py_port"))
    assert Sources.path(nil) == nil
    assert Sources.path("/mine") == "/mine"
  end
end
