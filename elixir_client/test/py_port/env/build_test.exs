defmodule PyPort.Env.BuildTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.{Build, Config, Manifest}
  alias PyPort.Test.FakeUv

  @moduletag :tmp_dir
  @toml """
  [project]
  name = "x"
  version = "0.0.0"
  requires-python = ">=3.11"
  """

  setup %{tmp_dir: dir} do
    FakeUv.write(Path.join(dir, "uv"))
    {:ok, dir: dir, base: Path.join(dir, "build"), config: config(dir)}
  end

  defp config(dir, options \\ []) do
    base = [pyproject_toml: @toml, uv: Path.join(dir, "uv/uv"), cache_dir: Path.join(dir, "cache")]
    Config.new!(:default, Keyword.merge(base, options), Path.join(dir, "app"))
  end

  defp uv(dir, says), do: FakeUv.write(Path.join(dir, "uv"), says)
  defp commands(dir), do: FakeUv.commands(Path.join(dir, "uv"))

  defp build(config, base),
    do: Build.run(config, base, fn data -> send(self(), {:said, IO.iodata_to_binary(data)}) end)

  defp said do
    receive do
      {:said, data} -> data <> said()
    after
      0 -> ""
    end
  end

  # The file of the lock stays.
  defp entries(base), do: base |> File.ls!() |> Enum.sort() |> List.delete("default.lock")

  test "locks, makes, fills, records; the lock goes where it is committed", %{
    dir: dir,
    base: base,
    config: config
  } do
    assert build(config, base) == {:ok, :built}
    assert ["lock", "venv", "sync" | _server] = commands(dir)
    assert File.read!(Path.join(dir, "app/priv/py_port/default/uv.lock")) =~ "requires-python"
    {:ok, stamp, _dir} = Manifest.read(base, :default)
    assert %{machine: machine, codec: codec} = stamp
    assert machine == PyPort.Env.Platform.machine()
    assert codec in ["native", "erlang-py"]
    assert "thing" in Enum.map(stamp.packages, & &1.name)
    assert said() =~ ":default is ready"
    # The record, and the directory that it names.
    assert entries(base) == Enum.sort(["default.term", stamp.dir])
  end

  test "what is built already is not built again", %{dir: dir, base: base, config: config} do
    build(config, base)
    before = commands(dir)
    assert build(config, base) == {:ok, :unchanged}
    assert build(%{config | offline: true, frozen: true}, base) == {:ok, :unchanged}
    assert commands(dir) == before
  end

  for {what, change} <- [
        {"the project", quote(do: [pyproject_toml: @toml <> "dependencies = []\n"])},
        {"the Python that is asked for", quote(do: [python: "3"])},
        {"force: true", quote(do: [force: true])}
      ] do
    test "#{what} builds again, and the earlier environment stays for who runs on it", %{
      dir: dir,
      base: base,
      config: config
    } do
      build(config, base)
      {:ok, %{dir: first}, _dir} = Manifest.read(base, :default)
      assert build(config(dir, unquote(change)), base) == {:ok, :built}
      {:ok, %{dir: second}, _dir} = Manifest.read(base, :default)
      assert second != first
      assert entries(base) == Enum.sort(["default.term", first, second])
      # One build later no VM does.
      build(%{config | force: true}, base)
      refute first in entries(base)
    end
  end

  test "an environment that a running VM uses stays, however often it is built again, until that VM has ended",
       %{
         base: base,
         config: config
       } do
    build(config, base)
    {:ok, _manifest, used} = Manifest.read(base, :default)
    Build.use_dir(used)
    for _ <- 1..3, do: assert(build(%{config | force: true}, base) == {:ok, :built})
    assert File.exists?(Path.join(used, "venv/bin/python"))
    # Of the four this one, the current one and the one before it.
    assert length(entries(base)) == 4

    File.rename!(Path.join([used, "users", System.pid()]), Path.join([used, "users", "999999999"]))
    build(%{config | force: true}, base)
    refute File.exists?(used)
  end

  test "a build begins with a copy of the earlier environment, by links, and leaves that one as it is", %{
    dir: dir,
    base: base,
    config: config
  } do
    uv(dir, %{
      "sync" => ~S"""
      site=$(echo "$UV_PROJECT_ENVIRONMENT"/lib/python3*/site-packages)
      echo 'x = 1' >"$site/new_$$.py"; [ -e "$site/first.py" ] || echo 'x = 1' >"$site/first.py"
      """
    })

    build(config, base)
    {:ok, %{python: %{packages_dir: packages}}, first} = Manifest.read(base, :default)
    before = File.ls!(Path.join(first, packages))
    assert build(config(dir, extra_args: ["--extra", "x"]), base) == {:ok, :built}
    {:ok, _manifest, second} = Manifest.read(base, :default)
    assert Enum.count(commands(dir), &(&1 == "venv")) == 1
    assert File.ls!(Path.join(first, packages)) == before
    assert [_added] = File.ls!(Path.join(second, packages)) -- before
    [one, two] = for of <- [first, second], do: File.stat!(Path.join([of, packages, "first.py"]))
    assert one.inode == two.inode
  end

  for {what, change} <- [
        {"force: true", quote(do: [force: true])},
        {"another Python", quote(do: [python: "elsewhere"])},
        {"a package that was changed by hand", quote(do: [pyproject_toml: @toml <> "# changed\n"])}
      ] do
    test "#{what} builds from nothing", %{dir: dir, base: base, config: config} do
      uv(dir, %{
        "python" =>
          "[ \"$3\" != --system -o -z \"$4\" ] || { echo /bin/sh; exit; }\n" <> FakeUv.python_found()
      })

      build(config, base)
      {:ok, %{python: %{packages_dir: packages}}, first} = Manifest.read(base, :default)
      record = Path.join([first, packages, "thing-1.0.dist-info/RECORD"])
      if unquote(what) =~ "by hand", do: File.write!(record, "thing.py,,\nmore.py,,\n")
      assert build(config(dir, unquote(change)), base) == {:ok, :built}
      assert Enum.count(commands(dir), &(&1 == "venv")) == 2
    end
  end

  test "a changed lock builds again, without resolving anew", %{dir: dir, base: base, config: config} do
    build(config, base)
    lock = Config.lock_path(config)
    File.write!(lock, File.read!(lock) <> "# changed\n")
    assert build(config, base) == {:ok, :built}
    assert Enum.count(commands(dir), &(&1 == "lock")) == 1
  end

  test "frozen without a lock is refused, and says how to get one", %{dir: dir, base: base, config: config} do
    assert {:error, words} = build(%{config | frozen: true}, base)
    assert words =~ "mix py_port.lock" and words =~ "priv/py_port/default/uv.lock"
    assert commands(dir) == []
    assert entries(base) == []
  end

  test "a lock that does not match says what to run, after the words of uv", %{
    dir: dir,
    base: base,
    config: config
  } do
    uv(dir, %{
      "sync" =>
        "echo 'error: The lockfile at `uv.lock` needs to be updated, but `--locked` was provided.'; exit 2"
    })

    assert {:error, words} = build(config, base)
    assert words =~ "needs to be updated"
    assert words =~ "Run `mix py_port.lock`"
  end

  for step <- ["lock", "venv", "sync"] do
    test "a failure of uv #{step} leaves nothing behind, and the environment before it whole", %{
      dir: dir,
      base: base,
      config: config
    } do
      uv(dir, %{unquote(step) => "echo 'dns error: no way out' >&2; exit 2"})
      assert {:error, words} = build(config, base)
      assert words =~ "dns error: no way out" and words =~ "cannot be reached"
      assert entries(base) == []

      uv(dir, %{})
      assert build(config, base) == {:ok, :built}
      {:ok, before, _dir} = Manifest.read(base, :default)
      uv(dir, %{unquote(step) => "exit 2"})
      # Without a lock, so that uv lock has something to do.
      File.rm!(Config.lock_path(config))
      assert {:error, _words} = build(%{config | force: true}, base)
      assert {:ok, ^before, _dir} = Manifest.read(base, :default)
      assert entries(base) == Enum.sort(["default.term", before.dir])
    end
  end

  test "a build that was killed is never taken for a whole one, and swept away", %{
    dir: dir,
    base: base,
    config: config
  } do
    uv(dir, %{"sync" => "touch '#{dir}/syncing'; exec sleep 60"})
    {builder, monitor} = spawn_monitor(fn -> build(config, base) end)
    assert PyPort.Test.Processes.eventually(fn -> File.exists?(Path.join(dir, "syncing")) end)
    Process.exit(builder, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^builder, :killed}, 5_000
    assert Manifest.read(base, :default) == :error
    assert Enum.any?(entries(base), &(&1 =~ ~r/^default-/))
    refute Build.current?(base, config)

    uv(dir, %{})
    assert build(config, base) == {:ok, :built}
    {:ok, %{dir: whole}, _dir} = Manifest.read(base, :default)
    assert entries(base) == Enum.sort(["default.term", whole])
  end

  test "two builds at once: one works, the other waits and finds it done", %{
    dir: dir,
    base: base,
    config: config
  } do
    results =
      1..3 |> Enum.map(fn _ -> Task.async(fn -> build(config, base) end) end) |> Task.await_many(60_000)

    assert Enum.sort(results) == [ok: :built, ok: :unchanged, ok: :unchanged]
    assert Enum.count(commands(dir), &(&1 == "sync")) == 1
  end

  # An editor that compiles in the background builds whenever it likes.
  test "a build leaves alone what resolves anew at the same time", %{dir: dir, base: base, config: config} do
    assert build(config, base) == {:ok, :built}
    go = Path.join(dir, "go")

    uv(dir, %{
      "lock" =>
        "touch '#{dir}/locking'; while [ ! -e '#{go}' ]; do sleep 0.01; done; echo 'version = 1' >uv.lock"
    })

    locking = Task.async(fn -> Build.lock(config, base, [], fn _data -> :ok end) end)
    assert PyPort.Test.Processes.eventually(fn -> File.exists?(Path.join(dir, "locking")) end)
    test = self()
    building = Task.async(fn -> Build.run(%{config | force: true}, base, &send(test, {:built, &1})) end)
    # It waits, or builds.
    assert_receive {:built, _words}, 10_000
    refute Task.yield(building, 500)
    File.touch!(go)
    assert {:ok, _path} = Task.await(locking, 30_000)
    assert {:ok, :built} = Task.await(building, 60_000)
  end

  test "an environment whose record is damaged, or of another format, is none", %{base: base, config: config} do
    build(config, base)
    path = Manifest.path(base, :default)
    File.write!(path, "#" <> File.read!(path))
    assert Manifest.read(base, :default) == :error
    File.write!(path, "\#{format => 0, name => default}.\n")
    assert Manifest.read(base, :default) == :error
    assert build(config, base) == {:ok, :built}
  end

  test "a directory that cannot be made ends in words", %{dir: dir, config: config} do
    File.write!(Path.join(dir, "file"), "")
    assert {:error, words} = build(config, Path.join(dir, "file/build"))
    assert words =~ "could not be built" and words =~ "file/build"
  end

  test "a project of its own keeps its lock, and is built where it stands", %{dir: dir, base: base} do
    project = Path.join(dir, "app/python")
    File.mkdir_p!(project)
    File.write!(Path.join(project, "pyproject.toml"), @toml)
    config = config(dir, pyproject_toml: nil, project: "python")
    assert build(config, base) == {:ok, :built}
    assert File.exists?(Path.join(project, "uv.lock"))
    refute File.exists?(Path.join(dir, "app/priv"))
    assert {:error, words} = build(config(dir, pyproject_toml: nil, project: "nowhere"), base)
    assert words =~ "no pyproject.toml in" and words =~ "nowhere"
  end
end
