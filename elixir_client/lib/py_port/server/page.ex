defmodule PyPort.Server.Page do
  # The status page: 64 bytes in a file that the owner makes and Python maps. What Python writes there can be read while
  # the interpreter is held, while the process is stopped, and after it has died. The layout stands in docs/protocol.md.
  # Pure, but for making the file.
  @moduledoc false

  @enforce_keys [:phase, :elsewhere, :running, :beats]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          phase: :starting | :serving | :draining,
          # How many requests are under way elsewhere than in the main lane: there nobody can see which.
          elsewhere: non_neg_integer(),
          # The id of the request that the main lane runs.
          running: binary() | nil,
          beats: non_neg_integer()
        }

  @bytes 64
  @longest_id 32
  @phases %{0 => :starting, 1 => :serving, 2 => :draining}

  @spec bytes() :: pos_integer()
  def bytes, do: @bytes

  @spec path(dir :: Path.t()) :: Path.t()
  def path(dir), do: Path.join(dir, "status")

  @spec make(dir :: Path.t()) :: :ok | {:error, :file.posix()}
  def make(dir), do: File.write(path(dir), <<0::size(@bytes)-unit(8)>>, [:exclusive])

  @doc "nil for a page that Python has not mapped, or that is none."
  @spec parse(binary()) :: t() | nil
  def parse(
        <<"PYP1", phase, elsewhere::16-little, _unused::binary-size(8), size, id::binary-size(@longest_id),
          beats::64-little, _begun::64-little>>
      )
      when is_map_key(@phases, phase) and size <= @longest_id do
    %__MODULE__{
      phase: Map.fetch!(@phases, phase),
      elsewhere: elsewhere,
      running: if(size > 0, do: binary_part(id, 0, size)),
      beats: beats
    }
  end

  def parse(_other), do: nil

  @doc """
  Where a request without an answer stands.

    * `:running` - the main lane runs it.
    * `:waiting` - it has not begun: nothing is under way elsewhere, and main runs none, or one that was sent before it.
    * `:passed` - main does not run it. It was sent before the one that main runs, so it may have ended, its reply not
      yet written.
    * `:elsewhere` - it may be one of those that are under way elsewhere.
    * `:unknown` - there is no page.

  Ids are numbers in the order of sending, but for callers that were overtaken between drawing one and sending, which
  takes a microsecond.
  """
  @spec place(t() | nil, PyPort.Wire.id()) :: :running | :waiting | :passed | :elsewhere | :unknown
  def place(nil, _id), do: :unknown
  def place(%{running: id}, id), do: :running
  def place(%{elsewhere: elsewhere}, _id) when elsewhere > 0, do: :elsewhere
  def place(%{running: nil}, _id), do: :waiting
  def place(%{running: running}, id) when id > running, do: :waiting
  def place(_page, _id), do: :passed

  @doc "Whether a request had begun, which has no answer and will have none: `nil` where nobody can tell."
  @spec begun(t() | nil, PyPort.Wire.id()) :: boolean() | nil
  def begun(page, id) do
    case place(page, id) do
      :running -> true
      :waiting -> false
      _no_telling -> nil
    end
  end
end
