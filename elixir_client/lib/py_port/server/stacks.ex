defmodule PyPort.Server.Stacks do
  # Where each thread of a Python is: SIGUSR2 makes faulthandler write it to the stderr file, also while the interpreter is
  # held. Runs in any process, and asks the server for nothing.
  @moduledoc false

  alias PyPort.{Error, Reaper, StderrFile}
  alias PyPort.Server.Handle

  # A dump takes 1 ms. It is whole when the file has stopped growing for so long.
  @quiet_ms 10
  @step_ms 5
  # A process that is stopped never writes it.
  @most_ms 500

  # SIGUSR2 is number 12, on every Linux that Erlang runs on; masks count from bit 0.
  @usr2_bit 11

  @doc """
  The stacks as faulthandler writes them. The process must catch SIGUSR2, or it would be ended by it: one that has just
  been started does not yet.
  """
  @spec take(Handle.t()) :: {:ok, String.t()} | {:error, Error.t()}
  def take(handle) do
    cond do
      not catches?(handle.os_pid) ->
        {:error,
         unavailable(
           "Python (process #{handle.os_pid}) does not listen to SIGUSR2, with which it is asked for its stacks: it is " <>
             "just starting, has ended, or its code has taken the signal away"
         )}

      true ->
        path = StderrFile.path(handle.dir)
        before = size(path)
        Reaper.dump(handle.owner)
        await(path, before, before, 0, 0)
    end
  end

  @doc "How much has been written to stderr, before a dump."
  @spec mark(Handle.t()) :: non_neg_integer()
  def mark(handle), do: handle.dir |> StderrFile.path() |> size()

  @doc "What has been written of a dump since then, whole or not."
  @spec since(Handle.t(), mark :: non_neg_integer()) :: String.t() | nil
  def since(handle, mark) do
    path = StderrFile.path(handle.dir)

    case read(path, mark, size(path)) do
      {:ok, text} -> text
      {:error, _none} -> nil
    end
  end

  defp await(path, before, last, quiet, waited) do
    Process.sleep(@step_ms)
    size = size(path)

    cond do
      # The owner has cut it meanwhile.
      size < before -> await(path, 0, size, 0, waited + @step_ms)
      size > before and size == last and quiet + @step_ms >= @quiet_ms -> read(path, before, size)
      waited >= @most_ms -> read(path, before, size)
      size == last -> await(path, before, last, quiet + @step_ms, waited + @step_ms)
      true -> await(path, before, size, 0, waited + @step_ms)
    end
  end

  defp read(path, before, size) do
    with {:ok, file} <- :file.open(path, [:read, :raw, :binary]) do
      result = :file.pread(file, before, max(size - before, 1))
      _ = :file.close(file)

      case result do
        {:ok, text} -> text |> StderrFile.stacks() |> found()
        _nothing -> found(nil)
      end
    else
      {:error, _reason} -> found(nil)
    end
  end

  defp found(nil),
    do:
      {:error,
       unavailable("Python wrote no stacks within #{@most_ms} ms: its process is stopped, or has ended")}

  defp found(text), do: {:ok, text}

  # Where there is no /proc, it is taken at its word: it is ready, so it listens.
  defp catches?(os_pid) do
    with {:ok, status} <- File.read("/proc/#{os_pid}/status"),
         [_, mask] <- Regex.run(~r/^SigCgt:\s*([0-9a-f]+)$/m, status) do
      Bitwise.band(String.to_integer(mask, 16), Bitwise.bsl(1, @usr2_bit)) != 0
    else
      _no_proc -> not File.exists?("/proc/self")
    end
  end

  defp size(path) do
    case File.stat(path) do
      {:ok, %{size: size}} -> size
      {:error, _reason} -> 0
    end
  end

  defp unavailable(message), do: %Error{kind: :unavailable, begun: false, message: message}
end
