defmodule PyPort.Env.CheckTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.{Check, Inventory, Platform}

  @moduletag :tmp_dir
  @here %{os: "linux", machine: "x86_64", libc: {:glibc, "2.36"}}

  setup %{tmp_dir: dir} do
    File.mkdir_p!(Path.join(dir, "venv/bin"))
    write_python(dir, "3.12.4")
    info = Path.join(dir, "venv/lib/thing-1.0.dist-info")
    File.mkdir_p!(info)
    File.write!(Path.join(info, "RECORD"), "thing.py,,\n")

    stamp = %{
      name: :default,
      kind: :venv,
      os: "linux",
      machine: "x86_64",
      libc: {:glibc, "2.36"},
      glibc: "2.28",
      packages: [%{name: "thing", version: "1.0", record: Inventory.record(info)}],
      python: %{
        version: "3.12.4",
        executable: "venv/bin/python",
        base_executable: "/usr/bin/python3.12",
        packages_dir: "venv/lib"
      }
    }

    {:ok, stamp: stamp, dir: dir}
  end

  defp write_python(dir, version) do
    path = Path.join(dir, "venv/bin/python")
    File.write!(path, "#!/bin/sh\necho Python #{version}\n")
    File.chmod!(path, 0o755)
  end

  defp refused(stamp, dir, here) do
    words = Check.problem(stamp, dir, here)
    # Every sentence names the environment.
    assert is_binary(words) and words =~ ":default"
    words
  end

  test "what was built here runs here", %{stamp: stamp, dir: dir} do
    assert Check.problem(stamp, dir, @here) == nil
  end

  test "glibc against musl", %{stamp: stamp, dir: dir} do
    words = refused(stamp, dir, %{@here | libc: {:musl, "1.2.5"}})
    assert words =~ "glibc 2.36" and words =~ "musl 1.2.5" and words =~ "same base image"
    refused(%{stamp | libc: {:musl, "1.2.3"}}, dir, @here)
  end

  test "another machine", %{stamp: stamp, dir: dir} do
    words = refused(stamp, dir, %{@here | machine: "aarch64"})
    assert words =~ "x86_64" and words =~ "aarch64" and words =~ "--platform linux/arm64"
  end

  test "another operating system", %{stamp: stamp, dir: dir} do
    refused(stamp, dir, %{@here | os: "darwin", libc: :unknown})
  end

  test "an older glibc than the binaries ask for", %{stamp: stamp, dir: dir} do
    words = refused(stamp, dir, %{@here | libc: {:glibc, "2.17"}})
    assert words =~ "needs glibc 2.28" and words =~ "has 2.17"
    # 2.9 is older than 2.28, although not for the alphabet.
    refused(stamp, dir, %{@here | libc: {:glibc, "2.9"}})
  end

  test "an older glibc than it was built on, but new enough for the binaries, will do", %{
    stamp: stamp,
    dir: dir
  } do
    assert Check.problem(stamp, dir, %{@here | libc: {:glibc, "2.28"}}) == nil
  end

  test "a Python that was removed", %{stamp: stamp, dir: dir} do
    File.rm!(Path.join(dir, "venv/bin/python"))
    File.ln_s!("/no/such/python3.12", Path.join(dir, "venv/bin/python"))
    words = refused(stamp, dir, @here)
    assert words =~ "Python 3.12.4 at /usr/bin/python3.12" and words =~ "carry_python"
  end

  test "an environment that was removed", %{stamp: stamp, dir: dir} do
    words = refused(%{stamp | packages: []}, Path.join(dir, "elsewhere"), @here)
    assert words =~ "mix py_port.sync --force"
  end

  test "a package that was changed, or did not come along", %{stamp: stamp, dir: dir} do
    File.write!(Path.join(dir, "venv/lib/thing-1.0.dist-info/RECORD"), "other.py,,\n")
    words = refused(stamp, dir, @here)
    assert words =~ "thing 1.0"
    File.rm_rf!(Path.join(dir, "venv/lib/thing-1.0.dist-info"))
    refused(stamp, dir, @here)
  end

  test "an interpreter that was replaced by another minor version", %{stamp: stamp, dir: dir} do
    write_python(dir, "3.12.9")
    assert Check.problem(stamp, dir, @here) == nil
    write_python(dir, "3.13.1")
    words = refused(stamp, dir, @here)
    assert words =~ "Python 3.13.1 runs" and words =~ "for Python 3.12" and words =~ "/usr/bin/python3.12"
  end

  test "an interpreter that does not start", %{stamp: stamp, dir: dir} do
    File.write!(Path.join(dir, "venv/bin/python"), "#!/bin/sh\necho Exec format error; exit 126\n")
    assert refused(stamp, dir, @here) =~ "built for another kind of machine"
  end

  # Tags of real wheels.
  describe "the glibc that packages need" do
    defp package(dir, name, tags) do
      info = Path.join(dir, "#{name}-1.0.dist-info")
      File.mkdir_p!(info)
      File.write!(Path.join(info, "WHEEL"), Enum.map(tags, &"Tag: #{&1}\n"))
    end

    test "is the newest that a tag names, of several tags of a wheel the oldest", %{tmp_dir: dir} do
      purelib = Path.join(dir, "site")
      package(purelib, "pure", ["py3-none-any"])
      assert Inventory.glibc(purelib) == nil
      package(purelib, "old", ["cp312-cp312-manylinux_2_5_x86_64", "cp312-cp312-manylinux1_x86_64"])
      package(purelib, "new", ["cp312-cp312-manylinux_2_28_x86_64", "cp312-cp312-manylinux_2_27_x86_64"])
      assert Inventory.glibc(purelib) == "2.27"
    end
  end

  if match?({:unix, :linux}, :os.type()) do
    test "the libc of this system is that of its own programs" do
      %{libc: {kind, version}} = Platform.here()
      {said, _status} = System.cmd("ldd", ["--version"], stderr_to_stdout: true)
      assert kind == if(said =~ "musl", do: :musl, else: :glibc)
      if kind == :glibc, do: assert(said =~ version)
    end
  end
end
