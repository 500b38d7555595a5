defmodule PyPort.StderrFile do
  # The file that a Python process has as its stderr: reads on from the last position, gives its last lines, and keeps it
  # small. Python appends to it; the server reads it.
  #
  # A file and not a pipe: it can be read after any end of Python, and a writer never blocks.
  @moduledoc false

  @enforce_keys [:path, :device]
  defstruct [:path, :device, offset: 0, size: 0, dropped: 0, quoted_from: 0, mark: {0, 0}]

  @type t :: %__MODULE__{
          path: Path.t(),
          device: :file.fd(),
          # How far it was read.
          offset: non_neg_integer(),
          # As of the last call of `limit/2`.
          size: non_neg_integer(),
          # Bytes that `limit/2` has dropped unread, since the last call of `read/3`.
          dropped: non_neg_integer(),
          # Everything before this is older than every open request.
          quoted_from: non_neg_integer(),
          # {number of the last request, size of the file} at a moment when older requests were open.
          mark: {non_neg_integer(), non_neg_integer()}
        }

  # A larger file is emptied when all of it has been read to Logger.
  @max_bytes 1_048_576
  @read_bytes 65_536
  @tail_bytes 16_384

  # Its path in the directory of a server.
  @spec path(dir :: Path.t()) :: Path.t()
  def path(dir), do: Path.join(dir, "stderr")

  @spec open(Path.t()) :: {:ok, t()} | {:error, :file.posix()}
  def open(path) do
    with {:ok, device} <- :file.open(path, [:read, :write, :raw, :binary, :exclusive]) do
      {:ok, %__MODULE__{path: path, device: device}}
    end
  end

  @spec close(t()) :: :ok
  def close(file) do
    _ = :file.close(file.device)
    :ok
  end

  # Empties a file that has grown beyond `most` bytes, read or not: a process that writes faster than its lines are read must
  # not fill the disk. Tells whether it has grown since the last call.
  @spec limit(t(), most :: pos_integer()) :: {grown? :: boolean(), t()}
  def limit(file, most) do
    case :file.position(file.device, :eof) do
      {:ok, size} when size > most ->
        {:ok, 0} = :file.position(file.device, 0)
        _ = :file.truncate(file.device)
        {true, emptied(%{file | dropped: file.dropped + max(size - file.offset, 0)})}

      {:ok, size} ->
        {size > file.size, %{file | size: size}}

      {:error, _reason} ->
        {false, file}
    end
  end

  defp emptied(file), do: %{file | offset: 0, size: 0, quoted_from: 0, mark: {elem(file.mark, 0), 0}}

  # The text that was written since the last call, and how many bytes before it were dropped. `reads` times 64 KiB at the
  # most. Without `all?` a last line without an end is left for the next call.
  @spec read(t(), reads :: non_neg_integer(), all? :: boolean()) ::
          {binary(), dropped :: non_neg_integer(), t()}
  def read(file, reads, all? \\ false) do
    {texts, read} = read(%{file | dropped: 0}, reads, all?, [])
    {IO.iodata_to_binary(texts), file.dropped, read}
  end

  defp read(file, 0, _all?, texts), do: {texts, file}

  defp read(file, reads, all?, texts) do
    case :file.pread(file.device, file.offset, @read_bytes) do
      {:ok, data} ->
        text = if all?, do: data, else: complete_lines(data)
        file = shorten(%{file | offset: file.offset + byte_size(text)})
        read(file, if(text == "", do: 0, else: reads - 1), all?, [texts, text])

      _nothing_new ->
        {texts, file}
    end
  end

  # The lines of a text, without the empty ones.
  @spec lines(binary()) :: [String.t()]
  def lines(text), do: text |> String.split("\n", trim: true) |> Enum.map(&printable/1)

  # Notes what is older than the requests to come. `last` is the number of the last request, `oldest` that of the oldest
  # one which is open, if any is.
  @spec note(t(), last :: non_neg_integer(), oldest :: pos_integer() | nil) :: t()
  def note(file, last, oldest) do
    with true <- oldest == nil or oldest > elem(file.mark, 0),
         {:ok, size} <- :file.position(file.device, :eof) do
      %{file | quoted_from: elem(file.mark, 1), mark: {last, size}}
    else
      _older_or_unreadable -> file
    end
  end

  # The last `count` lines that are not older than the oldest open request, for the report of a death.
  @spec last_lines(t(), pos_integer(), oldest :: pos_integer() | nil) :: [String.t()]
  def last_lines(file, count, oldest \\ nil) do
    file |> tail(oldest) |> lines() |> Enum.take(-count)
  end

  # The stack that faulthandler wrote at the end of a process, if it did: the text from its first line on.
  @spec fatal_stack(t(), oldest :: pos_integer() | nil) :: String.t() | nil
  def fatal_stack(file, oldest \\ nil) do
    data = tail(file, oldest)

    with [_ | _] = matches <- :binary.matches(data, ["Fatal Python error: ", "Python Fatal Error: "]) do
      {at, _size} = List.last(matches)
      data |> binary_part(at, byte_size(data) - at) |> stacks()
    else
      [] -> nil
    end
  end

  defp tail(%{mark: {number, at}} = file, oldest) do
    from = if oldest != nil and oldest > number, do: at, else: file.quoted_from

    with {:ok, size} <- :file.position(file.device, :eof),
         {:ok, data} <- :file.pread(file.device, max(size - @tail_bytes, from), @tail_bytes) do
      data
    else
      _nothing -> ""
    end
  end

  # The stacks of one dump in a text that may hold other lines, and further dumps; nil where there is none.
  @spec stacks(binary()) :: String.t() | nil
  def stacks(text) do
    text
    |> String.split("\n")
    |> Enum.drop_while(&(not headline?(&1)))
    |> one_dump([], MapSet.new())
    |> case do
      [] -> nil
      lines -> lines |> Enum.map_join("\n", &printable/1) |> String.trim()
    end
  end

  # faulthandler gives each thread a headline with its number, and indents what belongs to it.
  defp headline?(line), do: line =~ ~r/^(?:Current thread|Thread|Stack) (?:0x[0-9a-f]+|\()/

  # A thread that comes again belongs to the next dump. Lines of others, written meanwhile, are left out, as is a thread
  # that is being started: it has no frame, and still the number of the thread that starts it.
  defp one_dump([], lines, _threads), do: Enum.reverse(lines)

  defp one_dump(["Thread " <> _, "  <no Python frame>" | rest], lines, threads),
    do: one_dump(rest, lines, threads)

  defp one_dump(["" | rest], lines, threads), do: one_dump(rest, ["" | lines], threads)
  defp one_dump(["  " <> _ = line | rest], lines, threads), do: one_dump(rest, [line | lines], threads)

  defp one_dump([line | rest], lines, threads) do
    number = Regex.run(~r/0x[0-9a-f]+|^Stack/, line)

    cond do
      not headline?(line) -> one_dump(rest, lines, threads)
      MapSet.member?(threads, number) -> Enum.reverse(lines)
      true -> one_dump(rest, [line | lines], MapSet.put(threads, number))
    end
  end

  # A line longer than a whole read is taken as it is, or it would hold up all that follows.
  defp complete_lines(data) do
    case :binary.matches(data, "\n") do
      [] when byte_size(data) == @read_bytes -> data
      [] -> ""
      matches -> binary_part(data, 0, elem(List.last(matches), 0) + 1)
    end
  end

  # Python opened the file in append mode, so its next write lands at the new end. All that was written has
  # been read by then, but for what lands between the look and the cut.
  defp shorten(%{offset: offset} = file) when offset < @max_bytes, do: file

  defp shorten(file) do
    with {:ok, size} when size == file.offset <- :file.position(file.device, :eof),
         {:ok, 0} <- :file.position(file.device, 0),
         :ok <- :file.truncate(file.device) do
      emptied(file)
    else
      _more_to_read -> file
    end
  end

  defp printable(line) do
    if String.valid?(line), do: line, else: line |> inspect(binaries: :as_binaries, limit: 512)
  end
end
