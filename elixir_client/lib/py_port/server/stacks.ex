defmodule PyPort.Server.Stacks do
  # The stacks of all threads of a Python. Python's control thread writes them when it gets the interpreter. While code in C
  # holds that, SIGUSR2 makes faulthandler write them to the stderr file; faulthandler reads frames that may run, and can
  # crash the process, so the signal is only for a process that is about to be killed. Runs in any process.
  @moduledoc false

  import PyPort.Deadline, only: [deadline: 1, now: 0]
  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{Connection, Error, Reaper, Reply, StderrFile, Wire}

  # Python answers within a few ms of having the interpreter; a crowded machine takes longer.
  @answer_ms 500

  # A dump takes 1 ms. It is whole when the file has stopped growing for so long.
  @quiet_ms 10
  @step_ms 5
  # A process that is stopped never writes it.
  @most_ms 500

  # SIGUSR2 is number 12, on every Linux that Erlang runs on; masks count from bit 0.
  @usr2_bit 11

  @status_bytes 4_096

  # The stacks as Python tells them, within `answer_ms`.
  @spec take(Connection.t(), answer_ms :: pos_integer()) :: {:ok, String.t()} | {:error, Error.t()}
  def take(connection, answer_ms \\ @answer_ms) do
    id = Connection.next_id(connection)
    ref = :erlang.alias()

    if Connection.insert(connection, {id, ref, self(), nil}) do
      Connection.command(connection, Wire.stacks(id))
      await_answer(connection, id, ref, answer_ms)
    else
      {:error, unavailable("Python (process #{connection.os_pid}) has ended, or is about to be stopped")}
    end
  end

  defp await_answer(connection, id, ref, answer_ms) do
    receive do
      {^ref, frame} when is_binary(frame) -> Reply.outcome(frame)
      {:DOWN, ^ref, :process, _owner, reason} -> {:error, Error.of_exit(reason)}
    after
      answer_ms ->
        forget(connection, id, ref)

        why =
          "has not answered within #{answer_ms} ms: code in C holds the interpreter, or the process is stopped " <>
            "(PyPort.status/1 tells which). If a request is stuck, the `stack` of its error shows it when its timeout has passed"

        {:error, unavailable("Python (process #{connection.os_pid}) #{why}")}
    end
  end

  # An answer that comes later has no row any more, and the server drops it.
  defp forget(connection, id, ref) do
    :erlang.unalias(ref)
    :ets.delete(connection.table, id)

    receive do
      {^ref, _frame} -> :ok
    after
      0 -> :ok
    end
  rescue
    ArgumentError -> :ok
  end

  # The stacks of a process that is about to be killed: as Python tells them within `answer_ms`, else as faulthandler writes
  # them. The process must catch SIGUSR2, or the signal would end it: a process that has just been started does not yet.
  @spec take_before_kill(Connection.t(), answer_ms :: non_neg_integer()) ::
          {:ok, String.t()} | {:error, Error.t()}
  def take_before_kill(connection, 0), do: dump(connection)

  def take_before_kill(connection, answer_ms) do
    with {:error, _held} <- take(connection, answer_ms), do: dump(connection)
  end

  defp dump(connection) do
    if catches?(connection.os_pid) do
      with_stderr(connection, fn file ->
        before = size(file)
        Reaper.dump(connection.owner)
        file |> await(before, before, now(), deadline(@most_ms)) |> found()
      end)
    else
      why =
        "does not listen to SIGUSR2, with which it is asked for its stacks: it is just starting, has ended, or its code " <>
          "has taken the signal away"

      {:error, unavailable("Python (process #{connection.os_pid}) #{why}")}
    end
  end

  # Those of several Pythons, each under a heading; an error where none of them answers.
  @spec take_all([Connection.t()]) :: {:ok, String.t()} | {:error, Error.t()}
  def take_all([connection]), do: take(connection)

  def take_all(connections) do
    taken = Enum.map(connections, &{&1.os_pid, take(&1)})

    if Enum.any?(taken, &match?({_os_pid, {:ok, _text}}, &1)) do
      {:ok,
       Enum.map_join(taken, "\n", fn {os_pid, outcome} ->
         "Python, process #{os_pid}:\n\n" <> text(outcome)
       end)}
    else
      taken |> hd() |> elem(1)
    end
  end

  defp text({:ok, text}), do: text
  defp text({:error, error}), do: Exception.message(error) <> "\n"

  # How much has been written to stderr, before a dump.
  @spec mark(Connection.t()) :: non_neg_integer()
  def mark(connection) do
    case with_stderr(connection, &{:ok, size(&1)}) do
      {:ok, size} -> size
      {:error, _gone} -> 0
    end
  end

  # The part of a dump that has been written since the mark.
  @spec since(Connection.t(), mark :: non_neg_integer()) :: String.t() | nil
  def since(connection, mark) do
    case with_stderr(connection, &(&1 |> read(mark, size(&1)) |> found())) do
      {:ok, text} -> text
      {:error, _none} -> nil
    end
  end

  # Raw files, since all others go through one process of the VM, which may be busy when this matters.
  defp with_stderr(connection, fun) do
    with {:ok, file} <- :file.open(StderrFile.path(connection.dir), [:read, :raw, :binary]) do
      try do
        fun.(file)
      after
        :file.close(file)
      end
    else
      {:error, _reason} -> {:error, unavailable("Python has ended")}
    end
  end

  # Until it has stopped growing; how long it takes on a crowded machine is known to the clock alone.
  defp await(file, before, last, quiet_since, deadline) do
    Process.sleep(@step_ms)
    now = now()
    size = size(file)

    cond do
      # The owner has cut it meanwhile.
      size < before -> await(file, 0, size, now, deadline)
      size > before and size == last and now - quiet_since >= @quiet_ms -> read(file, before, size)
      now >= deadline -> read(file, before, size)
      size == last -> await(file, before, last, quiet_since, deadline)
      true -> await(file, before, size, now, deadline)
    end
  end

  defp read(file, before, size) do
    case :file.pread(file, before, max(size - before, 1)) do
      {:ok, text} -> StderrFile.stacks(text)
      _nothing -> nil
    end
  end

  defp size(file) do
    case :file.position(file, :eof) do
      {:ok, size} -> size
      {:error, _reason} -> 0
    end
  end

  defp found(nil),
    do:
      {:error,
       unavailable("Python wrote no stacks within #{@most_ms} ms: its process is stopped, or has ended")}

  defp found(text), do: {:ok, text}

  # Without /proc a Python that is ready is taken to listen.
  defp catches?(os_pid) do
    with {:ok, file} <- :file.open("/proc/#{os_pid}/status", [:read, :raw, :binary]),
         result = :file.read(file, @status_bytes),
         :ok <- :file.close(file),
         {:ok, status} <- result,
         [_, mask] <- Regex.run(~r/^SigCgt:\s*([0-9a-f]+)$/m, status) do
      Bitwise.band(String.to_integer(mask, 16), Bitwise.bsl(1, @usr2_bit)) != 0
    else
      _no_proc -> not File.exists?("/proc/self")
    end
  end
end
