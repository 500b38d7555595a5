defmodule PyPort.Env.Package do
  # Installs the port server into an environment: from a wheel that `make wheel` has put into priv, else from the source
  # that this library carries; if neither can be installed it runs from that source, on the codec in Python. The two
  # packages that it needs come at the versions and hashes that this library was released with.
  #
  # None of them is part of the application's lock, which must not change because this library does. Versions that the
  # application's own lock has brought stay.
  @moduledoc false

  alias PyPort.Env.{Config, Inventory, Platform, Uv}

  # uv builds a directory that is named by a command each time, and one that a file names once.
  @from_source "from-source.txt"

  @codec "import sys; sys.path += sys.argv[1:]; from port_server.etf import codec_name; print(codec_name)"

  @doc "The directory with the source, for the path of a Python."
  @spec source_dir() :: Path.t()
  def source_dir, do: Path.join(priv(), "python")

  defp package_dir, do: Path.join(priv(), "package")
  defp priv, do: to_string(:code.priv_dir(:py_port))

  @doc "A fingerprint of the source: an environment with another one holds an earlier port server."
  @spec digest() :: String.t()
  def digest do
    files =
      for {name, path} <- sources(), name not in ~w(README.md LICENSE), do: [name, 0, File.read!(path), 0]

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

  @doc "The name of the directory for this source on this platform. The tag of a wheel does not tell the kind of libc."
  @spec directory() :: String.t()
  def directory, do: "#{digest()}-#{Platform.kind()}"

  @doc "Installs the server and gives the codec that it runs on."
  @spec install(Uv.t(), Config.t(), python :: Path.t(), purelib :: Path.t(), Uv.print()) ::
          {:ok, codec :: String.t()} | {:error, String.t()}
  def install(uv, config, python, purelib, print) do
    source = source!(config)
    args = ~w(pip install --no-deps --python #{python})

    run = fn more, options ->
      Uv.run(uv, config, args ++ more ++ Config.index_args(config), [cd: source] ++ options)
    end

    with {:ok, _said} <- requirements(purelib, source, &run.(&1, print: print)) do
      wheels = Path.wildcard(Path.join([priv(), "wheels", directory(), "*.whl"]))

      # uv keeps what it has built: for another libc, or before there was a compiler. Then it builds once more.
      own = ["-r", Path.join(source, @from_source)]
      tries = for(wheel <- wheels, do: [wheel]) ++ [own, ["--reinstall-package=port-server" | own]]

      Enum.reduce_while(tries, nil, fn what, _last ->
        if what == own, do: print.("==> PyPort: building the port server for this Python\n")
        result = run.(["--quiet" | what], [])
        if codec(python) == {:ok, "native"}, do: {:halt, nil}, else: {:cont, result}
      end)
      |> complain(print)

      codec(python)
    end
  end

  # At one path for each version, because uv caches what it builds by the path.
  defp source!(config) do
    dir = Path.join([Config.cache_dir(config), "port-server", directory()])
    aside = "#{dir}.#{System.pid()}-#{System.unique_integer([:positive])}"

    unless File.dir?(dir) do
      for {name, path} <- sources() do
        File.mkdir_p!(Path.dirname(Path.join(aside, name)))
        File.cp!(path, Path.join(aside, name))
      end

      File.write!(Path.join(aside, @from_source), "port-server @ file://#{URI.encode(dir)}\n")
      # Another process may have been faster.
      with {:error, _exists} <- File.rename(aside, dir), do: File.rm_rf(aside)
    end

    dir
  end

  defp codec(python) do
    case System.cmd(python, ["-I", "-c", @codec, source_dir()], stderr_to_stdout: true) do
      {said, 0} -> {:ok, said |> String.split() |> List.last()}
      {said, _status} -> {:error, "the port server does not work in the new environment:\n#{said}"}
    end
  end

  defp requirements(purelib, scratch, install) do
    installed = for %{name: name} <- Inventory.packages(purelib), do: normal(name)
    # `name==1.2 \` and its hashes on the lines that follow.
    entries = requirements_text() |> String.split(~r/\n(?=\w)/, trim: true)
    missing = Enum.reject(entries, &((&1 |> String.split("==") |> hd() |> normal()) in installed))
    file = Path.join(scratch, "requirements-#{System.pid()}.txt")
    File.write!(file, Enum.intersperse(missing, "\n"))
    result = if missing == [], do: {:ok, ""}, else: install.(["--require-hashes", "-r", file])
    File.rm(file)
    result
  end

  defp requirements_text, do: File.read!(Path.join(package_dir(), "requirements.txt"))

  defp normal(name), do: name |> String.downcase() |> String.replace(~r/[-_.]+/, "-")

  defp complain(nil, _print), do: :ok

  defp complain(result, print) do
    said = with {:ok, _said} <- result, do: {:error, ""}

    print.(
      "==> PyPort: note: the native codec is missing (no C compiler or no Python headers), so the slower one in Python " <>
        "answers. Debian: apt-get install gcc libc6-dev python3-dev; Alpine: apk add gcc musl-dev python3-dev; then mix " <>
        "py_port.sync --force\n"
    )

    print.(
      for line <- said |> elem(1) |> String.split("\n", trim: true) |> Enum.take(-5), do: ["    ", line, "\n"]
    )
  end
end
