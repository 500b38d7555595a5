defmodule PyPort.Output do
  # The process that writes what one request printed to the devices of its caller. It is spawned when
  # the first chunk arrives, so a request that prints nothing has none; and it is a process of its own, so
  # that a device that hangs, or has died, holds up neither the owner of the port nor the answer.
  @moduledoc false

  @type device :: IO.device()
  @type devices :: nil | {stdout :: device() | nil, stderr :: device() | nil}

  @spec start(caller :: pid(), devices()) :: pid()
  def start(caller, devices) do
    owner = self()

    spawn(fn ->
      monitor = Process.monitor(owner)
      {stdout, stderr} = devices || {nil, nil}
      group_leader = group_leader(caller)
      loop(%{stdout: stdout || group_leader, stderr: stderr || group_leader}, monitor)
    end)
  end

  @spec write(pid(), binary()) :: :ok
  def write(writer, frame) do
    send(writer, {:write, frame})
    :ok
  end

  @doc """
  Ends the writer when all chunks so far have been written, with a `{ref, :flushed}` to the alias `ref`
  where there is one.
  """
  @spec finish(pid(), reference() | nil) :: :ok
  def finish(writer, ref) do
    send(writer, {:finish, ref})
    :ok
  end

  defp loop(devices, monitor) do
    receive do
      {:write, frame} ->
        with {:ok, {:output, _id, stream, text}} <- PyPort.Wire.decode(frame), do: put(devices, stream, text)
        loop(devices, monitor)

      {:finish, nil} ->
        :ok

      {:finish, ref} ->
        send(ref, {ref, :flushed})

      {:DOWN, ^monitor, :process, _owner, _reason} ->
        :ok
    end
  end

  defp put(devices, stream, text) do
    # A device that has closed, or refuses the text, is the caller's loss and nobody else's.
    IO.write(Map.fetch!(devices, stream), text)
  rescue
    _error -> :ok
  catch
    _kind, _reason -> :ok
  end

  defp group_leader(caller) do
    case node(caller) == node() && Process.info(caller, :group_leader) do
      {:group_leader, leader} -> leader
      _dead_or_remote -> Process.group_leader()
    end
  end
end
