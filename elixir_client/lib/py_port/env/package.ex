defmodule PyPort.Env.Package do
  # The port server's own way into an environment: a wheel that fits, else one built here, else its bare source on the
  # codec in Python; and the two packages it needs, at the versions and hashes this library was released with.
  #
  # They are no part of the application's lock: that one is about the application's packages, and must not change
  # because this library does. What the application's own lock has brought already stays as it is.
  @moduledoc false

  alias PyPort.Env.{Config, Elf, Platform}
  alias PyPort.Uv

  # Part of a wheel, and no reason to build one.
  @prose ~w(README.md LICENSE)

  # A wheel of the stable ABI serves CPython as most people have it, and nothing else.
  @stable_abi "cpython"

  @doc "Where the Python source stands that this library carries."
  @spec source_dir() :: Path.t()
  def source_dir, do: Path.join(priv(), "python")

  defp package_dir, do: Path.join(priv(), "package")
  defp priv, do: to_string(:code.priv_dir(:py_port))

  @doc "The state of that source, to see when an environment holds an older one."
  @spec digest() :: String.t()
  def digest do
    files = for {name, path} <- sources(), name not in @prose, do: [name, 0, File.read!(path), 0]
    Config.fingerprint([files, read(Path.join(package_dir(), "requirements.txt"))])
  end

  defp read(path) do
    case File.read(path) do
      {:ok, text} -> text
      {:error, _reason} -> ""
    end
  end

  # Everything a wheel is built from: name in the source tree => file.
  defp sources do
    root = source_dir()

    code =
      for path <- Path.wildcard(Path.join(root, "port_server/**/*.{py,pyi,c,h,typed}")),
          do: {Path.relative_to(path, root), path}

    build =
      for name <- ~w(pyproject.toml setup.py README.md LICENSE), do: {name, Path.join(package_dir(), name)}

    Enum.sort(code ++ build)
  end

  @doc "Installs the server into the environment of an interpreter, whose facts (`PyPort.Env.Build`) are given."
  @spec install(Uv.t(), Config.t(), map(), Path.t(), Uv.print()) :: :ok | {:error, String.t()}
  def install(uv, config, python, scratch, print) do
    with :ok <- install_requirements(uv, config, python, scratch, print) do
      case prebuilt(python) || cached(config, python) || build(uv, config, python, scratch, print) do
        nil -> copy_source(python, print)
        wheel -> install_wheel(uv, config, python, wheel, print)
      end
    end
  end

  defp install_wheel(uv, config, python, wheel, print) do
    args = [
      "pip",
      "install",
      "--quiet",
      "--python",
      python.executable,
      "--no-deps",
      "--compile-bytecode",
      wheel
    ]

    with {:ok, _said} <- Uv.run(uv, config, args, print: print), do: :ok
  end

  # --- what it needs ----------------------------------------------------------------------------

  defp install_requirements(uv, config, python, scratch, print) do
    case Enum.reject(requirements(), fn {name, _lines} -> installed?(python.purelib, name) end) do
      [] ->
        :ok

      missing ->
        file = Path.join(scratch, "requirements.txt")
        File.write!(file, for({_name, lines} <- missing, do: lines))
        args = ["pip", "install", "--python", python.executable, "--no-deps", "--require-hashes", "-r", file]
        with {:ok, _said} <- Uv.run(uv, config, args ++ Config.index_args(config), print: print), do: :ok
    end
  end

  # `name==1.2 \` and its hashes on the lines that follow.
  @doc false
  def requirements do
    Path.join(package_dir(), "requirements.txt")
    |> read()
    |> String.split(~r/\n(?=[A-Za-z])/, trim: true)
    |> Enum.reject(&String.starts_with?(&1, "#"))
    |> Enum.map(fn entry -> {entry |> String.split("==") |> hd() |> normal(), [String.trim(entry), "\n"]} end)
  end

  defp installed?(purelib, name) do
    Enum.any?(Path.wildcard(Path.join(purelib, "*.dist-info")), fn path ->
      path |> Path.basename(".dist-info") |> String.split("-") |> hd() |> normal() == name
    end)
  end

  defp normal(name), do: name |> String.downcase() |> String.replace(~r/[-_.]+/, "-")

  # --- wheels -----------------------------------------------------------------------------------

  # `make wheel` puts them there; more than one platform's may be there.
  defp prebuilt(python) do
    if python.implementation == @stable_abi and not python.free_threaded do
      Enum.find(Path.wildcard(Path.join(priv(), "wheels/*.whl")), &(fits?(&1) and current?(&1)))
    end
  end

  # `linux_x86_64` in a wheel's name says nothing of the libc, so its binary is asked.
  defp fits?(wheel) do
    with {:ok, binary} <- native(wheel) do
      aside =
        Path.join(
          System.tmp_dir() || "/tmp",
          "py_port-#{System.pid()}-#{System.unique_integer([:positive])}.so"
        )

      try do
        File.write!(aside, binary)
        match?({:ok, _elf}, Elf.read(aside)) and runs_here?(aside)
      after
        File.rm(aside)
      end
    else
      :error -> false
    end
  end

  defp runs_here?(path) do
    {:ok, elf} = Elf.read(path)
    %{machine: machine, libc: libc} = Platform.here()
    elf.machine == machine and libc_fits?(libc, elf)
  end

  defp libc_fits?({:musl, _version}, elf), do: elf.glibc == nil
  defp libc_fits?({:glibc, _version}, %Elf{glibc: nil, needed: needed}), do: "libc.so.6" in needed
  defp libc_fits?({:glibc, version}, elf), do: Elf.numbers(elf.glibc) <= Elf.numbers(version)
  defp libc_fits?(:unknown, _elf), do: false

  defp native(wheel) do
    case :zip.unzip(String.to_charlist(wheel), [:memory, {:file_filter, &native_entry?/1}]) do
      {:ok, [{_name, binary}]} -> {:ok, binary}
      _none_or_damaged -> :error
    end
  end

  defp native_entry?(entry),
    do: elem(entry, 0) == :zip_file and to_string(elem(entry, 1)) =~ ~r{^port_server/etf/native\..*so$}

  # A wheel of an older source beside a newer one would be a server that does not know its own client.
  defp current?(wheel) do
    case :zip.unzip(String.to_charlist(wheel), [:memory]) do
      {:ok, files} ->
        inside = Map.new(files, fn {name, data} -> {to_string(name), data} end)
        Enum.all?(sources(), fn {name, path} -> not packed?(name) or inside[name] == File.read!(path) end)

      {:error, _reason} ->
        false
    end
  end

  defp packed?(name),
    do: String.starts_with?(name, "port_server/") and Path.extname(name) in [".py", ".c", ".h"]

  defp cached(config, python) do
    case Path.wildcard(Path.join(cache_dir(config, python), "*.whl")) do
      [wheel | _rest] -> wheel
      [] -> nil
    end
  end

  # A binary of the stable ABI is the same for all; any other belongs to one version.
  defp cache_dir(config, python) do
    abi =
      if python.implementation == @stable_abi and not python.free_threaded,
        do: "abi3",
        else: "#{python.implementation}-#{python.version}#{if python.free_threaded, do: "t"}"

    %{os: os, machine: machine, libc: libc} = Platform.here()
    platform = "#{os}-#{machine}-#{libc |> Platform.words() |> String.replace(" ", "")}"
    Path.join([Config.cache_dir(config), "wheels", "#{digest()}-#{platform}-#{abi}"])
  end

  # --- building ---------------------------------------------------------------------------------

  defp build(uv, config, python, scratch, print) do
    print.("==> PyPort: building the port server for this Python\n")
    source = Path.join(scratch, "port-server")
    out = Path.join(scratch, "wheel")

    for {name, path} <- sources() do
      File.mkdir_p!(Path.dirname(Path.join(source, name)))
      File.cp!(path, Path.join(source, name))
    end

    args = [
      "build",
      "--wheel",
      "--quiet",
      "--no-config",
      "--python",
      python.executable,
      "--out-dir",
      out,
      source
    ]

    case Uv.run(uv, config, args ++ Config.index_args(config), cd: scratch) do
      {:ok, _said} -> keep(Path.wildcard(Path.join(out, "*.whl")), config, python, print)
      {:error, said} -> complain("it could not be built", said, print)
    end
  end

  # One without the binary works, and is not kept: a compiler may come.
  defp keep([wheel], config, python, print) do
    case native(wheel) do
      {:ok, _binary} ->
        kept = Path.join(cache_dir(config, python), Path.basename(wheel))
        aside = "#{kept}.#{System.pid()}-#{System.unique_integer([:positive])}"

        # A cache that cannot be written costs time, and is no reason to fail.
        with :ok <- File.mkdir_p(Path.dirname(kept)),
             :ok <- File.cp(wheel, aside),
             :ok <- File.rename(aside, kept) do
          kept
        else
          {:error, _reason} -> wheel
        end

      :error ->
        complain("no C compiler or no Python headers", "", print)
        wheel
    end
  end

  defp keep(_none, _config, _python, print), do: complain("the build has left no wheel", "", print)

  defp complain(why, said, print) do
    print.(
      "==> PyPort: note: the native codec is missing (#{why}), so the slower one in Python answers. Debian: apt-get " <>
        "install gcc libc6-dev python3-dev; Alpine: apk add gcc musl-dev python3-dev; then mix py_port.sync --force\n"
    )

    if said != "",
      do: print.(said |> String.split("\n", trim: true) |> Enum.take(-5) |> Enum.map(&["    ", &1, "\n"]))

    nil
  end

  # Not even the build's own tools could be had. The source as it is works, on erlang-py.
  defp copy_source(python, print) do
    for {"port_server/" <> _ = name, path} <- sources() do
      target = Path.join(python.purelib, name)
      File.mkdir_p!(Path.dirname(target))
      File.cp!(path, target)
    end

    print.("==> PyPort: the port server was installed as it stands\n")
    :ok
  end
end
