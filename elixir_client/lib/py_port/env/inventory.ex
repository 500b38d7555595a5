defmodule PyPort.Env.Inventory do
  # What is in an environment: its packages, and what their binaries ask of the system. Reads files only.
  @moduledoc false

  alias PyPort.Env.{Config, Elf}

  @doc "The installed packages: name, version and a fingerprint of the list of their files."
  @spec packages(Path.t()) :: [%{name: String.t(), version: String.t(), record: String.t()}]
  def packages(purelib) do
    for dir <- purelib |> Path.join("*.dist-info") |> Path.wildcard() |> Enum.sort() do
      [name, version] = dir |> Path.basename(".dist-info") |> String.split("-", parts: 2)
      %{name: name, version: version, record: record(dir)}
    end
  end

  @doc false
  def record(dist_info) do
    case File.read(Path.join(dist_info, "RECORD")) do
      {:ok, text} -> Config.fingerprint(text)
      {:error, _none} -> ""
    end
  end

  @doc "Every shared library and extension of a directory, read."
  @spec binaries(Path.t()) :: [{Path.t(), Elf.t()}]
  def binaries(dir) do
    for path <- Path.wildcard(Path.join(dir, "**/*.so*")), {:ok, elf} <- [Elf.read(path)] do
      {Path.relative_to(path, dir), elf}
    end
  end

  @doc "What binaries need of a system: the oldest glibc, and the libraries that none of them brings."
  @spec needs([{Path.t(), Elf.t()}]) :: %{glibc: String.t() | nil, libraries: [{String.t(), String.t()}]}
  def needs(binaries) do
    own = MapSet.new(binaries, fn {path, _elf} -> Path.basename(path) end)

    libraries =
      for {path, elf} <- binaries,
          soname <- elf.needed,
          not MapSet.member?(own, soname),
          not (soname =~ libc()),
          uniq: true do
        {soname, path |> Path.split() |> hd()}
      end

    glibc = for({_path, %{glibc: version}} when is_binary(version) <- binaries, do: version)

    %{
      glibc: Enum.max_by(glibc, &Elf.numbers/1, fn -> nil end),
      libraries: Enum.uniq_by(libraries, &elem(&1, 0))
    }
  end

  # These are libc itself, under its several names.
  defp libc do
    ~r/^(ld-linux|ld64|ld-musl|libc\.|libm\.so|libpthread|libdl\.so|librt\.so|libutil\.so|libresolv|libnsl)/
  end
end
