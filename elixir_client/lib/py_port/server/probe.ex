defmodule PyPort.Server.Probe do
  # Looks at a Python process from outside: /proc/PID/stat and the status page, each through a file that is kept open (8 µs
  # and 2 µs a look), and the bytes that have come through its port. PyPort.Server.Liveness interprets the samples.
  #
  # Any frame counts as a heartbeat. Frames are not counted one by one: the port counts the bytes of whole frames.
  @moduledoc false

  alias PyPort.{Connection, StatusPage}
  alias PyPort.Server.Liveness

  @enforce_keys [:port, :table, :start_time, :stat, :page]
  defstruct @enforce_keys ++ [:pipe]

  @type t :: %__MODULE__{
          port: port(),
          table: :ets.tid(),
          start_time: non_neg_integer(),
          # nil where there is no /proc.
          stat: :file.fd() | nil,
          page: :file.fd() | nil,
          # See `hold_pipe/3`.
          pipe: :file.fd() | nil
        }

  # The name in it is at most 64 bytes long, and the numbers up to the 22nd field fit well.
  @stat_bytes 512

  # The unit of CPU time in /proc, on every Linux.
  @ms_per_tick 10

  # Only the process that opened it may look.
  @spec open(Connection.t()) :: t()
  def open(connection) do
    %__MODULE__{
      port: connection.port,
      table: connection.table,
      start_time: connection.start_time,
      stat: open_file("/proc/#{connection.os_pid}/stat"),
      page: open_file(StatusPage.path(connection.dir))
    }
  end

  # Keeps the pipe to Python open for reading here as well, from its `hello` on, and never reads. A port that is writing when
  # the last reader ends dies of EPIPE, and the exit status would be lost.
  @spec hold_pipe(t(), os_pid :: pos_integer(), info :: map()) :: t()
  def hold_pipe(probe, os_pid, %{os_pid: os_pid, port_fd: port_fd}) when is_integer(port_fd),
    do: %{probe | pipe: open_file("/proc/#{os_pid}/fd/#{port_fd}")}

  # A child of the process that was started: its pid on this machine is not known.
  def hold_pipe(probe, _os_pid, _info), do: probe

  @spec close(t() | nil) :: :ok
  def close(nil), do: :ok

  def close(probe) do
    for fd when fd != nil <- [probe.stat, probe.page, probe.pipe], do: :file.close(fd)
    :ok
  end

  @spec page(t() | nil) :: StatusPage.t() | nil
  def page(%__MODULE__{page: fd}) when fd != nil do
    case :file.pread(fd, 0, StatusPage.bytes()) do
      {:ok, bytes} -> StatusPage.parse(bytes)
      _unreadable -> nil
    end
  end

  def page(_none), do: nil

  # How long the death of a process that was killed is waited for. It takes some ms; with much memory, longer.
  @death_ms 40
  @look_ms 1

  # The page as a killed process leaves it. If the process is not seen to be dead within a moment, a request that the page
  # does not show may have begun.
  @spec last_page(t() | nil) :: StatusPage.t() | nil
  def last_page(probe), do: last_page(probe, div(@death_ms, @look_ms))

  defp last_page(nil, _looks), do: nil

  defp last_page(probe, looks) do
    cond do
      dead?(process(probe)) ->
        page(probe)

      looks == 0 ->
        StatusPage.alive(page(probe))

      true ->
        Process.sleep(@look_ms)
        last_page(probe, looks - 1)
    end
  end

  defp dead?({:alive, state, _cpu}), do: state in [?Z, ?X]
  defp dead?(process), do: process == :absent

  @spec sample(t()) :: Liveness.sample()
  def sample(probe) do
    page = page(probe)
    received = received(probe.port)

    %{
      heard: {received, page && page.heartbeats},
      received: received,
      sent: if(page, do: page.sent, else: 0),
      process: process(probe),
      open?: :ets.info(probe.table, :size) > 0
    }
  end

  defp received(port) do
    case Port.info(port, :input) do
      {:input, bytes} -> bytes
      nil -> nil
    end
  end

  # A kept file of /proc never shows another process that has the same pid: reading it fails then. That the first
  # one was already another is what the start time is for.
  defp process(%{stat: nil}), do: :unknown

  defp process(%{stat: fd, start_time: start_time}) do
    case :file.pread(fd, 0, @stat_bytes) do
      {:ok, stat} -> process(stat, start_time)
      _gone -> :absent
    end
  end

  # Field 2 is a name that may hold anything, so fields are counted from behind its last parenthesis.
  @spec process(binary(), non_neg_integer()) :: {:alive, char(), non_neg_integer()} | :absent | :unknown
  def process(stat, start_time) do
    with [_ | _] = parentheses <- :binary.matches(stat, ")"),
         {at, 1} = List.last(parentheses),
         [<<state>> | numbers] <- stat |> binary_part(at + 1, byte_size(stat) - at - 1) |> String.split(),
         {:ok, user} <- number(numbers, 10),
         {:ok, system} <- number(numbers, 11),
         {:ok, started} <- number(numbers, 18) do
      if start_time in [0, started], do: {:alive, state, (user + system) * @ms_per_tick}, else: :absent
    else
      _unreadable -> :unknown
    end
  end

  defp number(fields, index) do
    case fields |> Enum.at(index, "") |> Integer.parse() do
      {number, ""} -> {:ok, number}
      _none -> :error
    end
  end

  defp open_file(path) do
    case :file.open(path, [:read, :raw, :binary]) do
      {:ok, fd} -> fd
      {:error, _reason} -> nil
    end
  end
end
