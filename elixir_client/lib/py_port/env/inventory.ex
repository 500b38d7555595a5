defmodule PyPort.Env.Inventory do
  # The packages of an environment, and the glibc that their binaries need. Reads files only.
  @moduledoc false

  alias PyPort.Env.{Config, Manifest, Platform}

  @doc "The installed packages: name, version and a fingerprint of the list of their files."
  @spec packages(Path.t()) :: [Manifest.package()]
  def packages(purelib) do
    for dir <- purelib |> Path.join("*.dist-info") |> Path.wildcard() |> Enum.sort() do
      [name, version] = dir |> Path.basename(".dist-info") |> String.split("-", parts: 2)
      %{name: name, version: version, record: record(dir)}
    end
  end

  @doc "The fingerprint of a package's list of files, \"\" without one."
  @spec record(Path.t()) :: String.t()
  def record(dist_info) do
    case File.read(Path.join(dist_info, "RECORD")) do
      {:ok, text} -> Config.fingerprint(text)
      {:error, _none} -> ""
    end
  end

  @doc """
  The oldest glibc on which the packages run, nil for any: wheels of an index state it in their tags (PEP 600). A
  package that was compiled here states none; the loader names the version when it is imported.
  """
  @spec glibc(Path.t()) :: String.t() | nil
  def glibc(purelib) do
    needed =
      for path <- Path.wildcard(Path.join(purelib, "*.dist-info/WHEEL")),
          tags = for([_, tag] <- Regex.scan(~r/^Tag: .*-manylinux_(\d+_\d+)_/m, File.read!(path)), do: tag),
          tags != [],
          do: tags |> Enum.map(&String.replace(&1, "_", ".")) |> Enum.min_by(&Platform.numbers/1)

    Enum.max_by(needed, &Platform.numbers/1, fn -> nil end)
  end
end
