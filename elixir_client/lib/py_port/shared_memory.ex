defmodule PyPort.SharedMemory do
  # Large requests beside the pipe, in memory that Python and this node share; the layout stands in docs/protocol.md. Python
  # makes a file, which is called /proc/PID/fd/N and ends with it. A request is written there by its caller, because a raw file
  # belongs to the process that opens it.
  #
  # A slot of the file is free while its last generation is the one that Python has written into the first page. A process that
  # takes a slot leaves a row, {slot, pid}, until its request is sent: so the server frees the slots of those that die.
  @moduledoc false

  alias PyPort.Wire

  @enforce_keys [:path, :token, :stride, :slots, :rows, :counters, :most_bytes]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          path: Path.t(),
          token: binary(),
          # From slot to slot, in bytes.
          stride: pos_integer(),
          slots: pos_integer(),
          rows: :ets.tid(),
          # The last generation of each slot; then how many bytes of each have had pages; then when one was last taken, in ms,
          # or 0.
          counters: :atomics.atomics_ref(),
          most_bytes: pos_integer()
        }

  @page_bytes 4_096
  @token_bytes 16
  @generations_at 64
  @last_generation 0xFFFFFFFF
  @alignment 64
  # A binary of that size is data, and not a part of the term around it.
  @data_bytes 65_536

  # After so long without a large request the pages go back to the system.
  @idle_ms 30_000

  # Notes in a table of the server what its Python has made, as its hello says; false if that is nothing, or nothing that this
  # node can open.
  @spec open(:ets.tid(), hello :: map(), most_bytes :: pos_integer()) :: boolean()
  def open(table, %{os_pid: os_pid, shared_memory: %{fd: fd} = info}, most_bytes) do
    %{token: token, stride: stride, slots: slots} = info

    shared = %__MODULE__{
      path: "/proc/#{os_pid}/fd/#{fd}",
      token: token,
      stride: stride,
      slots: slots,
      rows: :ets.new(:py_port_shared_memory, [:public]),
      counters: :atomics.new(2 * slots + 1, signed: false),
      most_bytes: most_bytes
    }

    open? = with_page(shared, fn _file, _done -> true end) == true
    if open?, do: :ets.insert(table, {:shared_memory, shared})
    open?
  end

  def open(_table, _hello, _most_bytes), do: false

  @spec of(:ets.tid()) :: t() | nil
  def of(table) do
    case :ets.lookup(table, :shared_memory) do
      [{:shared_memory, shared}] -> shared
      [] -> nil
    end
  rescue
    # The server has ended, and its tables with it.
    ArgumentError -> nil
  end

  # Gives `send` a frame that says where this one stands, or this one if there is no room for it.
  @spec through(:ets.tid(), iodata(), non_neg_integer(), (iodata(), non_neg_integer() -> result)) ::
          result
        when result: :ok | {:full, non_neg_integer()}
  def through(table, frame, bytes, send) do
    shared = of(table)

    case shared && put(shared, frame, bytes) do
      slot when is_integer(slot) ->
        place = Wire.segment(slot, generation(shared, slot), offset(frame), bytes)
        result = send.(place, byte_size(place))
        if result != :ok, do: with_page(shared, fn file, _done -> free(shared, file, slot) end)
        forget(shared, slot)
        result

      nil ->
        send.(frame, bytes)
    end
  end

  defp put(shared, frame, bytes) do
    with_page(shared, fn file, done ->
      slot = take(shared, done, bytes)

      cond do
        slot == nil ->
          nil

        :file.pwrite(file, @page_bytes + slot * shared.stride + offset(frame), frame) == :ok ->
          slot

        # The system has no memory.
        true ->
          free(shared, file, slot)
          forget(shared, slot)
          nil
      end
    end)
  rescue
    ArgumentError -> nil
  end

  # Where the frame begins in its slot, so that its first large binary, the numbers of an array, is aligned.
  defp offset(frame), do: Integer.mod(-before_data(frame, 0), @alignment)

  defp before_data([part | rest], bytes) when is_binary(part) and byte_size(part) < @data_bytes,
    do: before_data(rest, bytes + byte_size(part))

  defp before_data([part | _rest], bytes) when is_binary(part), do: bytes
  defp before_data(_other, _bytes), do: 0

  # Takes a free slot, if possible one whose pages are there already.
  defp take(shared, done, bytes) do
    pages = for slot <- slots(shared), do: pages(shared, slot)
    left = shared.most_bytes - Enum.sum(pages)
    :atomics.put(shared.counters, 2 * shared.slots + 1, now())

    found =
      for {has, slot} <- Enum.with_index(pages), more = max(bytes - has, 0), more <= left, do: {more, slot}

    found
    |> Enum.sort()
    |> Enum.find_value(fn {more, slot} ->
      if claim(shared, done, slot) do
        :atomics.add(shared.counters, shared.slots + slot + 1, more)
        slot
      end
    end)
  end

  # Whether this process has the slot now, with a new generation. Only the process of a slot's row changes its generation, so one
  # that is done now was done when the page was read.
  defp claim(shared, done, slot) do
    generation = generation(shared, slot)

    if done(done, slot) == generation and :ets.insert_new(shared.rows, {slot, self()}) do
      free? = generation(shared, slot) == generation

      if free?,
        do: :atomics.put(shared.counters, slot + 1, rem(generation, @last_generation) + 1),
        else: forget(shared, slot)

      free?
    end
  end

  # Frees the slots of processes that have died, and gives pages back after a while. In the server.
  @spec sweep(:ets.tid(), (iodata() -> :ok)) :: :ok
  def sweep(table, send) do
    if shared = of(table) do
      for {slot, pid} <- :ets.tab2list(shared.rows),
          not Process.alive?(pid),
          do: give_back(shared, slot, send)

      taken_at = :atomics.get(shared.counters, 2 * shared.slots + 1)
      if taken_at > 0 and now() - taken_at > @idle_ms, do: give_back_all(shared, send)
    end

    :ok
  end

  defp give_back_all(shared, send) do
    :atomics.put(shared.counters, 2 * shared.slots + 1, 0)

    with_page(shared, fn _file, done ->
      for slot <- slots(shared), pages(shared, slot) > 0, claim(shared, done, slot) do
        :atomics.put(shared.counters, shared.slots + slot + 1, 0)
        give_back(shared, slot, send)
      end
    end)
  end

  # A segment without bytes. Whether another one was sent before, Python knows.
  defp give_back(shared, slot, send) do
    send.(Wire.segment(slot, generation(shared, slot), 0, 0))
    forget(shared, slot)
  end

  # Gives `use` the file, and the generations that Python is done with; nil if the file is gone. Its number may be another
  # file's by now, because code in Python can close any file: hence the token.
  defp with_page(%{path: path, token: token, slots: slots}, use) do
    case :file.open(path, [:read, :write, :raw, :binary]) do
      {:ok, file} ->
        found =
          case :file.pread(file, 0, @page_bytes) do
            {:ok, <<^token::binary-size(@token_bytes), _::binary>> = page} ->
              use.(file, binary_part(page, @generations_at, 4 * slots))

            _another_file ->
              nil
          end

        :file.close(file)
        found

      {:error, _gone} ->
        nil
    end
  end

  defp free(shared, file, slot),
    do: :file.pwrite(file, @generations_at + 4 * slot, <<generation(shared, slot)::native-32>>)

  defp forget(shared, slot) do
    :ets.delete(shared.rows, slot)
    :ok
  rescue
    ArgumentError -> :ok
  end

  defp slots(shared), do: 0..(shared.slots - 1)

  defp done(done, slot) do
    <<generation::native-32>> = binary_part(done, 4 * slot, 4)
    generation
  end

  defp generation(shared, slot), do: :atomics.get(shared.counters, slot + 1)
  defp pages(shared, slot), do: :atomics.get(shared.counters, shared.slots + slot + 1)
  defp now, do: System.os_time(:millisecond)
end
