defmodule PyPort.Env.Inventory do
  # The packages of an environment, and the glibc that their binaries need. Reads files only.
  @moduledoc false

  alias PyPort.Env.{Config, Manifest, Platform}

  # A larger binary without a manylinux tag is not searched: reading it takes too long.
  @searched_bytes 16_777_216

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

  @doc "The oldest glibc on which the packages run, nil for any."
  @spec glibc(Path.t()) :: String.t() | nil
  def glibc(purelib) do
    purelib
    |> Path.join("*.dist-info")
    |> Path.wildcard()
    |> Enum.flat_map(&needed(&1, purelib))
    |> Enum.max_by(&Platform.numbers/1, fn -> nil end)
  end

  # A wheel from an index states it in its tag (PEP 600). The tag of one that was compiled here says `linux` alone, but
  # its binaries contain the names of the symbol versions that they need.
  defp needed(dist_info, purelib) do
    with {:ok, wheel} <- File.read(Path.join(dist_info, "WHEEL")),
         [] <- scan(~r/^Tag: .*-manylinux_(\d+)_(\d+)_/m, wheel),
         true <- wheel =~ ~r/^Tag: .*-linux_/m do
      for path <- binaries(dist_info, purelib),
          version <- scan(~r/\0GLIBC_(\d+)\.(\d+)/, File.read!(path)),
          do: version
    else
      [_ | _] = versions -> [Enum.min_by(versions, &Platform.numbers/1)]
      _pure_or_unknown -> []
    end
  end

  defp scan(pattern, text),
    do: for([_, major, minor] <- Regex.scan(pattern, text), uniq: true, do: "#{major}.#{minor}")

  defp binaries(dist_info, purelib) do
    for line <- dist_info |> Path.join("RECORD") |> File.stream!(),
        [file | _hash] = String.split(line, ","),
        file =~ ~r/\.so(\.|$)/,
        path = Path.join(purelib, file),
        match?({:ok, %{size: size}} when size <= @searched_bytes, File.stat(path)),
        do: path
  end
end
