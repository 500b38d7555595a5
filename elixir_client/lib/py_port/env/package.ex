defmodule PyPort.Env.Package do
  # Installs the port server into an environment: from a wheel that fits, else from one that is built here. Without
  # either it runs from the source that this library carries, on the codec in Python. The two packages that it needs
  # come at the versions and hashes that this library was released with.
  #
  # None of them is part of the application's lock, which must not change because this library does. Versions that the
  # application's own lock has brought stay.
  @moduledoc false

  alias PyPort.Env.{Config, Inventory, Platform, Uv}

  # Part of a wheel, and no reason to build one.
  @prose ~w(README.md LICENSE)

  @codec "import sys; sys.path += sys.argv[1:]; from port_server.etf import codec_name; print(codec_name)"

  @doc "The directory with the source, for the path of a Python."
  @spec source_dir() :: Path.t()
  def source_dir, do: Path.join(priv(), "python")

  defp package_dir, do: Path.join(priv(), "package")
  defp priv, do: to_string(:code.priv_dir(:py_port))

  @doc "A fingerprint of the source: an environment with another one holds an earlier port server."
  @spec digest() :: String.t()
  def digest do
    files = for {name, path} <- sources(), name not in @prose, do: [name, 0, File.read!(path), 0]
    Config.fingerprint([files, requirements_text()])
  end

  # Everything that a wheel is built from: {name in the source tree, file}
  defp sources do
    root = source_dir()
    code = Path.wildcard(Path.join(root, "port_server/**/*.{py,pyi,c,h,typed}"))

    build =
      for name <- ~w(pyproject.toml setup.py README.md LICENSE), do: {name, Path.join(package_dir(), name)}

    Enum.sort(for(path <- code, do: {Path.relative_to(path, root), path}) ++ build)
  end

  @doc """
  The directory name of wheels of this source for this machine. The kind of libc stands in it, because the tag of a
  wheel that was built here (`linux_x86_64`) does not tell it.
  """
  @spec wheel_dir() :: String.t()
  def wheel_dir do
    %{os: os, machine: machine, libc: libc} = Platform.here()
    Enum.join([digest(), os, machine] ++ if(libc == :unknown, do: [], else: [elem(libc, 0)]), "-")
  end

  @doc "Installs the server and gives the codec that it runs on."
  @spec install(Uv.t(), Config.t(), python :: Path.t(), purelib :: Path.t(), scratch :: Path.t(), Uv.print()) ::
          {:ok, codec :: String.t()} | {:error, String.t()}
  def install(uv, config, python, purelib, scratch, print) do
    kept = Path.join([Config.cache_dir(config), "wheels", wheel_dir()])
    # A wheel for another glibc or Python installs, and does not load.
    native? = fn dir -> wheel(uv, config, python, dir) == :ok and codec(python) == {:ok, "native"} end

    with :ok <- requirements(uv, config, python, purelib, print) do
      unless Enum.any?([Path.join([priv(), "wheels", wheel_dir()]), kept], native?),
        do: build(uv, config, python, kept, scratch, print)

      codec(python)
    end
  end

  defp wheel(uv, config, python, dir) do
    args =
      ~w(pip install --quiet --no-deps --no-index --reinstall --find-links #{dir} --python #{python} port-server)

    with [_ | _] <- Path.wildcard(Path.join(dir, "*.whl")), {:ok, _said} <- Uv.run(uv, config, args), do: :ok
  end

  defp codec(python) do
    case System.cmd(python, ["-I", "-c", @codec, source_dir()], stderr_to_stdout: true) do
      {said, 0} -> {:ok, said |> String.split() |> List.last()}
      {said, _status} -> {:error, "the port server does not work in the new environment:\n#{said}"}
    end
  end

  defp requirements(uv, config, python, purelib, print) do
    installed = for %{name: name} <- Inventory.packages(purelib), do: normal(name)
    # `name==1.2 \` and its hashes on the lines that follow.
    entries = requirements_text() |> String.split(~r/\n(?=\w)/, trim: true)
    missing = Enum.reject(entries, &((&1 |> String.split("==") |> hd() |> normal()) in installed))
    file = Path.join(Path.dirname(purelib), "port-server-requirements.txt")

    args =
      ~w(pip install --no-deps --require-hashes --python #{python} -r #{file}) ++ Config.index_args(config)

    if missing == [] do
      :ok
    else
      File.write!(file, Enum.intersperse(missing, "\n"))
      result = Uv.run(uv, config, args, print: print)
      File.rm(file)
      with {:ok, _said} <- result, do: :ok
    end
  end

  defp requirements_text, do: File.read!(Path.join(package_dir(), "requirements.txt"))

  defp normal(name), do: name |> String.downcase() |> String.replace(~r/[-_.]+/, "-")

  defp build(uv, config, python, kept, scratch, print) do
    print.("==> PyPort: building the port server for this Python\n")
    source = Path.join(scratch, "port-server")

    for {name, path} <- sources() do
      File.mkdir_p!(Path.dirname(Path.join(source, name)))
      File.cp!(path, Path.join(source, name))
    end

    out = Path.join(scratch, "wheel")
    args = ~w(build --wheel --quiet --no-config --python #{python} --out-dir #{out} #{source})

    with {:ok, _said} <- Uv.run(uv, config, args ++ Config.index_args(config), cd: scratch),
         :ok <- wheel(uv, config, python, out) do
      # A wheel without the binary is not kept: a compiler may come. A cache that cannot be written costs time only.
      if codec(python) == {:ok, "native"},
        do: with(:ok <- File.mkdir_p(kept), do: File.cp_r(out, kept)),
        else: complain("no C compiler or no Python headers", "", print)
    else
      {:error, said} -> complain("it could not be built", said, print)
      [] -> complain("the build has left no wheel", "", print)
    end
  end

  defp complain(why, said, print) do
    print.(
      "==> PyPort: note: the native codec is missing (#{why}), so the slower one in Python answers. Debian: apt-get " <>
        "install gcc libc6-dev python3-dev; Alpine: apk add gcc musl-dev python3-dev; then mix py_port.sync --force\n"
    )

    print.(for line <- said |> String.split("\n", trim: true) |> Enum.take(-5), do: ["    ", line, "\n"])
  end
end
