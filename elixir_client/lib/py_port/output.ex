defmodule PyPort.Output do
  # The process that writes the output of one request to the devices of its caller. It is spawned when the first chunk
  # arrives, so only a request that prints has one. A device that hangs, or has died, holds up neither the owner of the port
  # nor the answer.
  #
  # A chunk is acknowledged when the device has taken it, or will never take it. Python sends no more than its output limit
  # without an acknowledgement, so a slow device makes a slow print and not a growing mailbox.
  #
  # It uses the IO protocol directly: `IO.write/2` waits for its device alone, and could not be told to give up.
  @moduledoc false

  alias PyPort.{Connection, Wire}

  @type device :: IO.device()
  @type devices :: nil | {stdout :: device() | nil, stderr :: device() | nil}

  # Abandoned output is acknowledged with more than any limit, so that Python never waits for it again.
  @everything 0x7FFFFFFF

  @spec start(Connection.t(), Wire.id(), caller :: pid(), devices()) :: pid()
  def start(connection, id, caller, devices) do
    owner = self()

    spawn(fn ->
      {stdout, stderr} = devices || {nil, nil}
      group_leader = group_leader(caller)

      loop(%{
        connection: connection,
        id: id,
        owner: Process.monitor(owner),
        stdout: device(stdout, group_leader),
        stderr: device(stderr, group_leader)
      })
    end)
  end

  # These names mean the device of the process that uses them, which is the caller.
  defp device(name, group_leader) when name in [nil, :stdio, :standard_io], do: group_leader
  defp device(device, _group_leader), do: device

  @spec write(pid(), binary()) :: :ok
  def write(writer, frame) do
    send(writer, {:write, frame})
    :ok
  end

  # The most messages that a writer may have before it: a child writes without waiting for the device.
  @most_waiting 64

  # The same for text of fds 1 and 2, which Python does not count. False if the device does not keep up.
  @spec write_text(pid(), binary()) :: boolean()
  def write_text(writer, text) do
    {:message_queue_len, waiting} =
      Process.info(writer, :message_queue_len) || {:message_queue_len, @most_waiting}

    if waiting < @most_waiting, do: send(writer, {:write_text, text})
    waiting < @most_waiting
  end

  # Ends the writer when all chunks so far have been written, with a `{ref, :flushed}` to the alias `ref`
  # where there is one.
  @spec finish(pid(), reference()) :: :ok
  def finish(writer, ref) do
    send(writer, {:finish, ref})
    :ok
  end

  # How long a device may still take for the output of a request that has its answer.
  @leave_ms 30_000

  # Lets the writer go on for a while, without a process that waits for it.
  @spec leave(pid()) :: :ok
  def leave(writer) do
    Process.send_after(writer, :abandon, @leave_ms)
    :ok
  end

  # Ends the writer now, whatever its device is doing.
  @spec abandon(pid()) :: :ok
  def abandon(writer) do
    send(writer, :abandon)
    :ok
  end

  defp loop(%{owner: owner} = state) do
    receive do
      :abandon ->
        acknowledge(state, @everything)

      {:write, frame} ->
        case chunk(frame, state) do
          :ok -> loop(state)
          :stop -> :ok
        end

      {:write_text, text} ->
        case put(state.stderr, printable(text), state) do
          :ok -> loop(state)
          :stop -> :ok
        end

      {:finish, ref} ->
        send(ref, {ref, :flushed})

      {:DOWN, ^owner, :process, _pid, _reason} ->
        :ok
    end
  end

  defp chunk(frame, state) do
    case Wire.decode(frame) do
      {:ok, {:output, _id, stream, text}} when stream in [:stdout, :stderr] and is_binary(text) ->
        with :ok <- put(Map.fetch!(state, stream), printable(text), state) do
          acknowledge(state, byte_size(text))
          :ok
        end

      _unreadable ->
        :ok
    end
  end

  # Code may write any bytes to `sys.stdout.buffer`. A device would refuse the whole chunk for one byte that is no UTF-8, so
  # such bytes are shown as Python shows them in text.
  defp printable(text),
    do: if(String.valid?(text), do: text, else: text |> shown([]) |> IO.iodata_to_binary())

  defp shown("", done), do: Enum.reverse(done)
  defp shown(<<letter::utf8, rest::binary>>, done), do: shown(rest, [<<letter::utf8>> | done])

  defp shown(<<byte, rest::binary>>, done),
    do: shown(rest, ["\\x" <> Base.encode16(<<byte>>, case: :lower) | done])

  defp acknowledge(state, bytes), do: Connection.command(state.connection, Wire.ack(state.id, bytes))

  # A device that has closed, or refuses the text, loses it.
  defp put(device, text, %{owner: owner} = state) do
    case whereis(device) do
      nil ->
        :ok

      pid ->
        ref = Process.monitor(pid)
        send(pid, {:io_request, self(), ref, {:put_chars, :unicode, text}})

        receive do
          {:io_reply, ^ref, _ok_or_error} ->
            Process.demonitor(ref, [:flush])
            :ok

          {:DOWN, ^ref, :process, _pid, _reason} ->
            :ok

          :abandon ->
            acknowledge(state, @everything)
            :stop

          {:DOWN, ^owner, :process, _pid, _reason} ->
            :stop
        end
    end
  end

  defp whereis(:stderr), do: Process.whereis(:standard_error)
  defp whereis(name) when is_atom(name), do: Process.whereis(name)
  defp whereis(pid) when is_pid(pid), do: pid

  defp whereis(_no_device), do: nil

  # The group leader of `caller`; of this process if the caller has ended, or lives on another node.
  @spec group_leader(pid()) :: pid()
  def group_leader(caller) do
    case node(caller) == node() && Process.info(caller, :group_leader) do
      {:group_leader, leader} -> leader
      _dead_or_remote -> Process.group_leader()
    end
  end
end
