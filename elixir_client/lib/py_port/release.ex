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
  the release wherever it is moved to. docs/deployment.md says what a release carries. A Python that uv fetched comes along;
  another one is referenced, and has to be on the target, at the same path. `carry_python:` under `:py_port` in the release's
  options decides otherwise:

      my_app: [steps: [...], py_port: [carry_python: true]]

  `:auto` (the default) carries what uv fetched, `true` any Python that has a prefix of its own (pyenv's, for one; its
  shared libraries outside of that prefix still have to be on the target), `false` none.
  """

  alias PyPort.Env
  alias PyPort.Env.{Build, Config, Manifest}

  # Valid without a look at the source (PEP 552): copies and image layers do not keep time stamps.
  @compileall ~w(-I -m compileall -f -q -j 0 --invalidation-mode unchecked-hash -x /tests?/)

  # Where the libpython of a running Python is, for one that links it.
  @libpython """
  import sys
  for line in open("/proc/self/maps") if sys.platform == "linux" else ():
      if "/libpython3." in line:
          print(line.split()[-1])
          break
  """

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
    # An environment of an earlier release must not stand in for one that is missing now.
    File.rm_rf!(target)
    File.mkdir_p!(target)

    for config <- Env.configured(), do: copy!(config, target, carry)
    # Mix packs these with `:tar`.
    %{release | overlays: ["py_port" | release.overlays]}
  end

  defp carried!([]), do: :auto
  defp carried!(carry_python: carry) when carry in [:auto, true, false], do: carry

  defp carried!(options) do
    raise ArgumentError,
          "the options of a release for PyPort are py_port: [carry_python: :auto], or true, or false, got: #{inspect(options)}"
  end

  defp copy!(%Config{name: name} = config, target, carry) do
    unless Build.current?(Env.base(), config) do
      with {:error, words} <- Env.build(config), do: raise(RuntimeError, words)
    end

    {:ok, manifest, source} = Manifest.read(Env.base(), name)
    dir = Path.join(target, to_string(name))
    File.mkdir_p!(dir)
    IO.puts("* copying the Python environment #{inspect(name)}")
    copy = if carry?(carry, manifest), do: &carry!/3, else: &refer!/3
    manifest = copy.(manifest, source, dir)
    # A file that is not Python of this version stays uncompiled, and nothing is lost.
    compiled = Path.join(dir, if(manifest.kind == :venv, do: "venv/lib", else: "python/lib"))
    python(Path.join(dir, manifest.python.executable), @compileall ++ [compiled])
    Manifest.write!(target, %{manifest | dir: to_string(name)})
  end

  defp python(executable, args),
    do: System.cmd(executable, args, stderr_to_stdout: true, env: [{"PYTHONHOME", nil}])

  defp carry?(:auto, manifest), do: Env.managed?(manifest.python.base_prefix)
  defp carry?(false, _manifest), do: false

  defp carry?(true, %{python: %{base_prefix: prefix}}) when prefix in ["/usr", "/usr/local", "/"] do
    raise ArgumentError,
          "carry_python: true cannot carry the Python of #{prefix}, which shares that directory with the whole system. " <>
            "Let uv fetch one (python: \"cpython-3.12\", UV_PYTHON_PREFERENCE=only-managed), or leave carry_python: out"
  end

  defp carry?(true, _manifest), do: true

  # The interpreter stays where it is; the environment has its path.
  defp refer!(manifest, source, dir) do
    File.cp_r!(Path.join(source, "venv"), Path.join(dir, "venv"))
    # A link to `lib` that Python does not need; an archive of the release would hold everything twice.
    File.rm(Path.join(dir, "venv/lib64"))
    manifest
  end

  # The interpreter comes along with the packages inside it: an environment of its own (`pyvenv.cfg`) would name the
  # interpreter by an absolute path, and the place of a release is not known before it runs.
  defp carry!(manifest, source, dir) do
    %{base_prefix: prefix, base_executable: executable, packages_dir: "venv/" <> library} = manifest.python
    carried = Path.join(dir, "python")
    bin = Path.join(carried, "bin")
    File.cp_r!(prefix, carried)
    # Its own packages, with their programs, and parts that no release needs.
    for path <- [library, "include", "share", "lib/pkgconfig"], do: File.rm_rf!(Path.join(carried, path))
    for name <- File.ls!(bin), not (name =~ ~r/^python[\d.]*$/), do: File.rm_rf!(Path.join(bin, name))
    File.cp_r!(Path.join([source, "venv", library]), Path.join(carried, library))

    for name <- File.ls!(Path.join(source, "venv/bin")),
        not (name =~ ~r/^(python|activate|deactivate)|\.bat$/),
        do: File.cp_r!(Path.join([source, "venv/bin", name]), Path.join(bin, name))

    moved = Path.join("python/bin", Path.basename(executable))
    # Scripts of packages call it so.
    File.ln_s(Path.basename(executable), Path.join(bin, "python"))
    movable!(Path.join(dir, moved), executable, carried)
    facts = %{executable: moved, packages_dir: Path.join("python", library), base_prefix: "python"}
    %{manifest | kind: :carried, glibc: glibc(manifest), python: Map.merge(manifest.python, facts)}
  end

  # A Python that was compiled here needs the glibc of this system; uv's run on every one.
  defp glibc(%{libc: {:glibc, version}, python: %{base_prefix: prefix}} = manifest),
    do: if(Env.managed?(prefix), do: manifest.glibc, else: version)

  defp glibc(manifest), do: manifest.glibc

  defp movable!(moved, executable, carried) do
    {said, 0} = python(moved, ["-I", "-c", @libpython])

    unless said == "" or String.starts_with?(said, carried) do
      raise ArgumentError,
            "#{executable} cannot be carried by a release: it finds its libpython at #{String.trim(said)} alone. Let uv fetch " <>
              "a Python that can be moved (UV_PYTHON_PREFERENCE=only-managed), or set carry_python: false"
    end
  end
end
