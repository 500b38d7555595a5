defmodule PyPort.Env.Elf do
  # What a Linux binary asks of the system it runs on: machine, loader, shared libraries, and the newest glibc
  # symbol version it names. Reads a few kilobytes of the file by its headers (System V ABI, chapters 4 and 5),
  # never the whole of it: some libraries have gigabytes.
  @moduledoc false

  defstruct [:machine, :interpreter, :glibc, :runpath, needed: []]

  @type t :: %__MODULE__{
          machine: String.t(),
          interpreter: String.t() | nil,
          glibc: String.t() | nil,
          runpath: String.t() | nil,
          needed: [String.t()]
        }

  @machines %{
    3 => "i686",
    21 => "ppc64le",
    40 => "armv7l",
    62 => "x86_64",
    183 => "aarch64",
    243 => "riscv64"
  }

  # p_type of program headers, d_tag of dynamic entries.
  @pt_load 1
  @pt_dynamic 2
  @pt_interp 3
  @dt_needed 1
  @dt_strtab 5
  @dt_strsz 10
  @dt_rpath 15
  @dt_runpath 29

  # More than any real header; what claims more is damaged.
  @header_bytes_limit 1_048_576
  @strings_bytes_limit 67_108_864

  @doc "Reads a file; `:error` for one that is no little-endian ELF file, or that is damaged."
  @spec read(Path.t()) :: {:ok, t()} | :error
  def read(path) do
    case :file.open(String.to_charlist(path), [:read, :raw, :binary]) do
      {:ok, file} ->
        try do
          parse(file)
        catch
          :damaged -> :error
        after
          :file.close(file)
        end

      {:error, _reason} ->
        :error
    end
  end

  defp parse(file) do
    case :file.pread(file, 0, 64) do
      {:ok,
       <<0x7F, "ELF", 2, 1, _::binary-size(12), machine::little-16, _::binary-size(12), at::little-64,
         _::binary-size(14), size::little-16, count::little-16, _::binary>>} ->
        parse(file, 64, machine, at, size, count)

      {:ok,
       <<0x7F, "ELF", 1, 1, _::binary-size(12), machine::little-16, _::binary-size(8), at::little-32,
         _::binary-size(10), size::little-16, count::little-16, _::binary>>} ->
        parse(file, 32, machine, at, size, count)

      _other ->
        :error
    end
  end

  defp parse(file, bits, machine, at, size, count) do
    table = pread(file, at, size * count)
    headers = for n <- 0..(count - 1)//1, do: header(bits, binary_part(table, n * size, size))
    strings = strings(file, bits, headers)

    {:ok,
     %__MODULE__{
       machine: Map.get(@machines, machine, "machine #{machine}"),
       interpreter: interpreter(file, headers),
       needed: strings.needed,
       runpath: strings.runpath,
       glibc: newest_glibc(strings.table)
     }}
  end

  defp header(
         64,
         <<type::little-32, _flags::32, offset::little-64, vaddr::little-64, _::64, size::little-64,
           _::binary>>
       ),
       do: {type, offset, vaddr, size}

  defp header(
         32,
         <<type::little-32, offset::little-32, vaddr::little-32, _::32, size::little-32, _::binary>>
       ),
       do: {type, offset, vaddr, size}

  defp header(_bits, _short), do: throw(:damaged)

  defp interpreter(file, headers) do
    with {_type, offset, _vaddr, size} <- List.keyfind(headers, @pt_interp, 0),
         do: file |> pread(offset, size) |> until_zero(0)
  end

  defp strings(file, bits, headers) do
    with {_type, offset, _vaddr, size} <- List.keyfind(headers, @pt_dynamic, 0),
         entries = entries(bits, pread(file, offset, size)),
         {_tag, address} <- List.keyfind(entries, @dt_strtab, 0),
         {_tag, length} <- List.keyfind(entries, @dt_strsz, 0) do
      if length > @strings_bytes_limit, do: throw(:damaged)
      table = pread(file, file_offset(headers, address), length, @strings_bytes_limit)
      runpath = for {tag, at} <- entries, tag in [@dt_rpath, @dt_runpath], do: until_zero(table, at)

      %{
        table: table,
        needed: for({@dt_needed, at} <- entries, do: until_zero(table, at)),
        runpath: List.first(runpath)
      }
    else
      # A static binary asks for nothing.
      nil -> %{table: "", needed: [], runpath: nil}
    end
  end

  defp entries(64, table), do: for(<<tag::little-64, value::little-64 <- table>>, do: {tag, value})
  defp entries(32, table), do: for(<<tag::little-32, value::little-32 <- table>>, do: {tag, value})

  defp file_offset(headers, address) do
    Enum.find_value(headers, fn
      {@pt_load, offset, vaddr, size} when address >= vaddr and address < vaddr + size ->
        offset + address - vaddr

      _other ->
        nil
    end) || throw(:damaged)
  end

  # Names of symbol versions stand among the strings.
  defp newest_glibc(table) do
    ~r/\0GLIBC_(\d+\.\d+(?:\.\d+)?)(?=\0)/
    |> Regex.scan(table, capture: :all_but_first)
    |> Enum.map(fn [version] -> version end)
    |> Enum.max_by(&numbers/1, fn -> nil end)
  end

  @doc "A dotted version as numbers, to be compared."
  @spec numbers(String.t()) :: [non_neg_integer()]
  def numbers(version) do
    for part <- String.split(version, "."), {number, _rest} <- [Integer.parse(part)], do: number
  end

  defp until_zero(binary, at) when at <= byte_size(binary) do
    binary |> binary_part(at, byte_size(binary) - at) |> :binary.split(<<0>>) |> hd()
  end

  defp until_zero(_binary, _at), do: throw(:damaged)

  defp pread(file, at, size, limit \\ @header_bytes_limit)
  defp pread(_file, _at, 0, _limit), do: ""

  defp pread(file, at, size, limit) when size <= limit do
    case :file.pread(file, at, size) do
      {:ok, data} when byte_size(data) == size -> data
      _other -> throw(:damaged)
    end
  end

  defp pread(_file, _at, _size, _limit), do: throw(:damaged)
end
