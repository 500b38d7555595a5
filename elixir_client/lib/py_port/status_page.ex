defmodule PyPort.StatusPage do
  # The status page: 64 bytes in a file that the owner makes and Python maps. It can be read while the interpreter is held,
  # while the process is stopped, and after it has ended. The layout stands in docs/protocol.md.
  # Pure, but for making the file.
  @moduledoc false

  @enforce_keys [:phase, :off_main, :running, :heartbeats]
  defstruct @enforce_keys ++ [:last, sent: 0, threads: 0]

  @type t :: %__MODULE__{
          phase: :starting | :serving | :draining,
          # How many requests run off the main thread: the page does not show which.
          off_main: non_neg_integer(),
          # How many of these run in threads of `:threads`.
          threads: non_neg_integer(),
          # The id of the request that the main thread runs.
          running: binary() | nil,
          # The id that the main thread showed last, whether it still runs or not.
          last: PyPort.Wire.id() | nil,
          heartbeats: non_neg_integer(),
          # How many heartbeats Python has written to the port.
          sent: non_neg_integer()
        }

  @type place :: :running | :waiting | :passed | :off_main | :unknown

  @bytes 64
  @longest_id 32
  @phases %{0 => :starting, 1 => :serving, 2 => :draining}

  @spec bytes() :: pos_integer()
  def bytes, do: @bytes

  @spec path(dir :: Path.t()) :: Path.t()
  def path(dir), do: Path.join(dir, "status")

  @spec make(dir :: Path.t()) :: :ok | {:error, :file.posix()}
  def make(dir), do: File.write(path(dir), <<0::size(@bytes)-unit(8)>>, [:exclusive])

  # The page as it is now, for a process that has no file open on it.
  @spec read(dir :: Path.t()) :: t() | nil
  def read(dir) do
    # Raw, since all others go through one process of the VM.
    with {:ok, file} <- :file.open(path(dir), [:read, :raw, :binary]),
         result = :file.read(file, @bytes),
         :ok <- :file.close(file),
         {:ok, bytes} <- result do
      parse(bytes)
    else
      _gone -> nil
    end
  end

  # nil for a page that Python has not mapped, or other bytes.
  @spec parse(binary()) :: t() | nil
  def parse(
        <<"PYP1", phase, off_main::16-little, sent::32-little, _head::binary-size(4), size,
          id::binary-size(@longest_id), heartbeats::64-little, _begun::48-little, threads::16-little>>
      )
      when is_map_key(@phases, phase) and size <= @longest_id do
    %__MODULE__{
      phase: Map.fetch!(@phases, phase),
      off_main: off_main,
      threads: threads,
      running: if(size > 0, do: binary_part(id, 0, size)),
      last: if(binary_part(id, 0, 8) != <<0::64>>, do: binary_part(id, 0, 8)),
      heartbeats: heartbeats,
      sent: sent
    }
  end

  def parse(_other), do: nil

  # How many requests do not keep Python from beginning another, because they await, stand on the event loop, or are streams.
  @spec aside(t() | nil) :: non_neg_integer()
  def aside(nil), do: 0
  def aside(%{off_main: off_main, threads: threads}), do: off_main - threads

  # The place of a request without an answer.
  #
  #   * `:running` - the main thread runs it.
  #   * `:waiting` - it has not begun: no request runs off main, and the one that main runs, or ran last, was sent before it.
  #   * `:passed` - main does not run it. It was sent no later than the one that main runs, or ran last, so it may have
  #     ended, its reply not yet written, or lost.
  #   * `:off_main` - it may be one of those that run off main.
  #   * `:unknown` - the page cannot be read.
  #
  # Ids are numbers in the order of sending, but for callers that were overtaken between drawing one and sending, which
  # takes a microsecond.
  @spec place(t() | nil, PyPort.Wire.id()) :: place()
  def place(nil, _id), do: :unknown
  def place(%{running: id}, id), do: :running
  def place(%{off_main: off_main}, _id) when off_main > 0, do: :off_main
  def place(%{running: nil, last: nil}, _id), do: :waiting
  def place(%{running: nil, last: last}, id) when id > last, do: :waiting
  def place(%{running: running}, id) when running != nil and id > running, do: :waiting
  def place(_page, _id), do: :passed

  # The same page, of a process that may go on: a request that has not begun may begin at any time, so `begun/2` is `false`
  # for none.
  @spec alive(t() | nil) :: t() | nil
  def alive(nil), do: nil
  def alive(%{off_main: off_main} = page), do: %{page | off_main: max(off_main, 1)}

  # Whether a request of a dead process had begun, which has no answer: `nil` where that cannot be known.
  @spec begun(t() | nil, PyPort.Wire.id()) :: boolean() | nil
  def begun(page, id) do
    case place(page, id) do
      :running -> true
      :waiting -> false
      _no_telling -> nil
    end
  end
end
