defmodule PyPort.Env.CheckTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.{Check, Inventory}

  @moduletag :tmp_dir
  @here %{os: "linux", machine: "x86_64", libc: {:glibc, "2.36"}}

  setup %{tmp_dir: dir} do
    File.mkdir_p!(Path.join(dir, "venv/bin"))
    File.write!(Path.join(dir, "venv/bin/python"), "")
    info = Path.join(dir, "venv/lib/thing-1.0.dist-info")
    File.mkdir_p!(info)
    File.write!(Path.join(info, "RECORD"), "thing.py,,\n")

    stamp = %{
      name: :default,
      kind: :venv,
      os: "linux",
      machine: "x86_64",
      libc: {:glibc, "2.36"},
      needs: %{glibc: "2.28", libraries: []},
      requires_python: "==3.12.*",
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

  defp refused(stamp, dir, here) do
    assert [{:refuse, tag, words}] = Check.findings(stamp, dir, here)
    # Every finding names the environment and ends with a way out.
    assert words =~ ":default"
    {tag, words}
  end

  test "what was built here runs here", %{stamp: stamp, dir: dir} do
    assert Check.findings(stamp, dir, @here) == []
  end

  test "glibc against musl", %{stamp: stamp, dir: dir} do
    assert {:libc, words} = refused(stamp, dir, %{@here | libc: {:musl, "1.2.5"}})
    assert words =~ "glibc 2.36" and words =~ "musl 1.2.5" and words =~ "same base image"
    assert {:libc, _words} = refused(%{stamp | libc: {:musl, "1.2.3"}}, dir, @here)
  end

  test "another machine", %{stamp: stamp, dir: dir} do
    assert {:machine, words} = refused(stamp, dir, %{@here | machine: "aarch64"})
    assert words =~ "x86_64" and words =~ "aarch64" and words =~ "--platform linux/arm64"
  end

  test "another operating system", %{stamp: stamp, dir: dir} do
    assert {:os, _words} = refused(stamp, dir, %{@here | os: "darwin", libc: :unknown})
  end

  test "an older glibc than the binaries ask for", %{stamp: stamp, dir: dir} do
    assert {:glibc, words} = refused(stamp, dir, %{@here | libc: {:glibc, "2.17"}})
    assert words =~ "needs glibc 2.28" and words =~ "has 2.17"
    # 2.9 is older than 2.28, although not for the alphabet.
    assert {:glibc, _words} = refused(stamp, dir, %{@here | libc: {:glibc, "2.9"}})
  end

  test "an older glibc than it was built on, but new enough for the binaries, will do", %{
    stamp: stamp,
    dir: dir
  } do
    assert Check.findings(stamp, dir, %{@here | libc: {:glibc, "2.28"}}) == []
  end

  test "a Python that was removed", %{stamp: stamp, dir: dir} do
    File.rm!(Path.join(dir, "venv/bin/python"))
    File.ln_s!("/no/such/python3.12", Path.join(dir, "venv/bin/python"))
    assert {:python_removed, words} = refused(stamp, dir, @here)
    assert words =~ "Python 3.12.4 at /usr/bin/python3.12" and words =~ "carry_python"
  end

  test "an environment that was removed", %{stamp: stamp, dir: dir} do
    assert {:gone, words} = refused(%{stamp | packages: []}, Path.join(dir, "elsewhere"), @here)
    assert words =~ "mix py_port.sync --force"
  end

  test "a package that was changed, or did not come along", %{stamp: stamp, dir: dir} do
    File.write!(Path.join(dir, "venv/lib/thing-1.0.dist-info/RECORD"), "other.py,,\n")
    assert {:packages, words} = refused(stamp, dir, @here)
    assert words =~ "thing 1.0"
    File.rm_rf!(Path.join(dir, "venv/lib/thing-1.0.dist-info"))
    assert {:packages, _words} = refused(stamp, dir, @here)
  end

  test "a missing shared library is a warning that names the package", %{stamp: stamp, dir: dir} do
    needs = %{glibc: nil, libraries: [{"libnosuch.so.7", "thing"}, {"libc.so.6", "thing"}]}
    assert [{:warn, :library, words}] = Check.findings(%{stamp | needs: needs}, dir, @here)
    assert words =~ "libnosuch.so.7" and words =~ "thing" and words =~ "apt-file"
  end

  test "a running Python that requires-python rules out is refused by name and version", %{stamp: stamp} do
    assert Check.running(stamp, "3.12.9") == :ok
    assert {:error, words} = Check.running(stamp, "3.13.1")
    assert words =~ "Python 3.13.1" and words =~ "==3.12.*" and words =~ "/usr/bin/python3.12"
  end

  test "so is one for which the packages were not installed", %{stamp: stamp} do
    assert {:error, words} = Check.running(%{stamp | requires_python: ">=3.11"}, "3.13.1")
    assert words =~ "for Python 3.12"
  end
end
