defmodule PyPort.Release do
  @moduledoc """
  The step that puts Python environments into a release.

      # mix.exs
      releases: [
        my_app: [
          steps: [:assemble, &PyPort.Release.copy_environments/1]
        ]
      ]

  The environments of `config :py_port, :uv_init` are copied to `py_port/` under the release's root, and found there by
  the release wherever it is moved to. Their bytecode is compiled in a form that needs neither time stamps nor a disk
  that can be written, so images and read-only systems start as fast as a development machine.

  ## The Python itself

  A Python that uv fetched is a directory of its own that can be moved, so the release carries it, and the target
  needs none. A Python of the system's (Debian's `/usr/bin/python3`, the one of an image such as `python:3.12`) is bound
  to its place and is referenced: it has to be on the target, at the same path; if it is not, servers say so at boot.

  `carry_python:` under `:py_port` in the release's options decides otherwise:

      my_app: [steps: [...], py_port: [carry_python: true]]

  `:auto` (the default) carries what uv fetched, `true` any Python that has a prefix of its own (pyenv's, for one; its
  shared libraries outside of that prefix still have to be on the target), `false` none.
  """

  alias PyPort.Env
  alias PyPort.Env.{Build, Config, Elf, Inventory, Stamp}

  # Of the standard library, for a Python that comes along; its own tests are nobody's.
  @compileall [
    "-m",
    "compileall",
    "-q",
    "-j",
    "0",
    "--invalidation-mode",
    "unchecked-hash",
    "-x",
    "site-packages|/tests?/"
  ]

  # What nobody needs to run a release.
  @left_behind ["include", "share", "lib/pkgconfig"]

  # As deep as `lib/python3.12/site-packages/numpy`.
  @filtered_levels 4

  @doc """
  Copies every configured environment into the release. A step of `mix release`, to be put after `:assemble`:

      steps: [:assemble, &PyPort.Release.copy_environments/1, :tar]

  Gives the release with one more overlay. Raises `ArgumentError` for an option that it does not know, or a Python that cannot be
  carried, and `RuntimeError`, with the words of the build, where an environment is not built and cannot be.
  """
  @spec copy_environments(release) :: release when release: struct()
  def copy_environments(release) do
    carry = carried!(Keyword.get(release.options, :py_port, []))
    target = Path.join(release.path, "py_port")
    # What an earlier release under the same path has left must not answer for what is missing now.
    File.rm_rf!(target)
    File.mkdir_p!(target)

    for config <- Env.configured(), do: copy!(config, target, carry)
    # What Mix is to pack with `:tar`.
    %{release | overlays: ["py_port" | release.overlays]}
  end

  defp carried!([]), do: :auto
  defp carried!(carry_python: carry) when carry in [:auto, true, false], do: carry

  defp carried!(options) do
    raise ArgumentError,
          "the options of a release for PyPort are py_port: [carry_python: :auto], or true, or false, got: #{inspect(options)}"
  end

  defp copy!(%Config{name: name} = config, target, carry) do
    unless Build.current?(Env.base(), config), do: build!(config)
    {:ok, stamp} = Stamp.read(Env.base(), name)
    source = Path.join(Env.base(), stamp.dir)
    dir = Path.join(target, to_string(name))
    original_packages_dir = stamp.python.packages_dir
    IO.puts("* copying the Python environment #{inspect(name)}")

    stamp = if carry?(carry, stamp), do: carry!(stamp, source, dir), else: refer!(stamp, source, dir)
    seal(Path.join(source, original_packages_dir), Path.join(dir, stamp.python.packages_dir))
    Stamp.write!(target, %{stamp | dir: to_string(name)})
  end

  defp build!(config) do
    with {:error, words} <- Env.build(config), do: raise(RuntimeError, words)
  end

  defp carry?(:auto, stamp), do: Env.managed?(stamp.python.base_prefix)
  defp carry?(false, _stamp), do: false

  defp carry?(true, %{python: %{base_prefix: prefix}}) when prefix in ["/usr", "/usr/local", "/"] do
    raise ArgumentError,
          "carry_python: true cannot carry the Python of #{prefix}, which shares that directory with the whole system. " <>
            "Let uv fetch one (python: \"cpython-3.12\", UV_PYTHON_PREFERENCE=only-managed), or leave carry_python: out"
  end

  defp carry?(true, _stamp), do: true

  # The interpreter stays where it is, the environment knows it by its path.
  defp refer!(stamp, source, dir) do
    File.mkdir_p!(dir)
    copy_tree!(Path.join(source, "venv"), Path.join(dir, "venv"))
    # A link to `lib`, which Python finds by itself; an archive of the release would have everything twice.
    File.rm(Path.join(dir, "venv/lib64"))
    stamp
  end

  # The interpreter comes along with the packages inside it: an environment of its own (`pyvenv.cfg`) would name the
  # interpreter by an absolute path, and a release does not know where it will stand.
  defp carry!(stamp, source, dir) do
    %{base_prefix: prefix, base_executable: executable, packages_dir: "venv/" <> library} = stamp.python
    movable!(executable)
    python = Path.join(dir, "python")
    copy_tree!(prefix, python, &own?(&1, library))
    copy_tree!(Path.join([source, "venv", library]), Path.join(python, library))
    copy_tree!(Path.join(source, "venv/bin"), Path.join(python, "bin"), &script?/1)
    name = Path.basename(executable)
    # Scripts of packages call it so.
    File.ln_s(name, Path.join(python, "bin/python"))
    moved = Path.join("python/bin", name)
    compile_library(Path.join(dir, moved), Path.dirname(Path.join(python, library)))
    binaries = Inventory.binaries(python) ++ interpreter(Path.join(dir, moved))
    packages_dir = Path.join("python", library)
    facts = %{stamp.python | executable: moved, packages_dir: packages_dir, base_prefix: "python"}
    %{stamp | kind: :carried, needs: Inventory.needs(binaries), python: facts}
  end

  # Of the Python's own: not the packages that somebody has put into it, nor the programs they brought.
  defp own?("bin/" <> program, _library), do: program =~ ~r/^python[\d.]*$/
  defp own?(path, library), do: path not in @left_behind and Path.dirname(path) != library

  defp script?(name), do: not (name =~ ~r/^(python|activate|deactivate)|\.bat$/)

  # What is found by an absolute path is looked for there, wherever the interpreter has gone.
  defp movable!(executable) do
    with {:ok, %Elf{needed: needed, runpath: runpath}} <- Elf.read(executable),
         "libpython" <> _ = library <- Enum.find(needed, &String.starts_with?(&1, "libpython")),
         false <- String.starts_with?(runpath || "", "$ORIGIN") do
      raise ArgumentError,
            "#{executable} cannot be carried by a release: it finds #{library} by #{runpath || "the system's paths"} alone. " <>
              "Let uv fetch a Python that can be moved (UV_PYTHON_PREFERENCE=only-managed), or set carry_python: false"
    end
  end

  defp interpreter(path) do
    case Elf.read(path) do
      {:ok, elf} -> [{"python", elf}]
      :error -> []
    end
  end

  # Links stay links: the interpreter of an environment is one. What to take is asked two levels deep and at the
  # packages, which is where the answers lie.
  defp copy_tree!(from, to, take? \\ fn _path -> true end, below \\ "") do
    File.mkdir_p!(to)

    for name <- File.ls!(from), path = Path.join(below, name), take?.(path) do
      source = Path.join(from, name)
      target = Path.join(to, name)

      if directory?(source) and length(Path.split(path)) < @filtered_levels,
        do: copy_tree!(source, target, take?, path),
        else: File.cp_r!(source, target)
    end
  end

  defp directory?(path), do: match?({:ok, %{type: :directory}}, File.lstat(path))

  # The time stamps that compiled files are checked against get lost by copies and in image layers. So what was compiled
  # at the build becomes "by hash, unchecked" (PEP 552): 12 bytes behind the magic number say so. Only where the stamp
  # still is its source's; anything else is left for Python to judge.
  defp seal(from, to) do
    for path <- Path.wildcard(Path.join(from, "**/__pycache__/*.pyc")) do
      with {:ok, <<magic::binary-size(4), 0::32, mtime::little-32, size::little-32>>} <- head(path),
           {:ok, %{mtime: ^mtime, size: ^size}} <- path |> source() |> File.stat(time: :posix) do
        write_head(Path.join(to, Path.relative_to(path, from)), <<magic::binary, 1::little-32, 0::64>>)
      end
    end
  end

  defp head(path),
    do: with({:ok, file} <- File.open(path, [:read, :raw, :binary]), do: and_close(file, &:file.read(&1, 16)))

  defp write_head(path, head) do
    with {:ok, file} <- File.open(path, [:read, :write, :raw, :binary]),
         do: and_close(file, &:file.pwrite(&1, 0, head))
  end

  defp and_close(file, fun) do
    fun.(file)
  after
    File.close(file)
  end

  # pkg/__pycache__/name.cpython-312.pyc is compiled from pkg/name.py
  defp source(path) do
    name = path |> Path.basename() |> String.split(".") |> hd()
    Path.join([Path.dirname(path), "..", name <> ".py"])
  end

  # Some files there are no Python of this version; those stay uncompiled, and nothing is lost.
  defp compile_library(python, library) do
    System.cmd(python, ["-I" | @compileall] ++ [library], stderr_to_stdout: true, env: [{"PYTHONHOME", nil}])
  end
end
