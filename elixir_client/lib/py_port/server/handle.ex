defmodule PyPort.Server.Handle do
  # What a caller needs to reach a server without asking its owner for anything.
  @moduledoc false

  @enforce_keys [:owner, :port, :table, :calls, :counter, :os_pid, :start_time, :dir]
  defstruct @enforce_keys ++
              [:max_frame_bytes, :max_queued_bytes, :max_pending, patience: 0, ready: false]

  @type t :: %__MODULE__{
          owner: pid(),
          port: port(),
          # Rows {id, alias, caller, deadline, extra}: the requests that have no final reply yet. Its size is the load.
          table: :ets.tid(),
          # Rows {worker, call id}: the processes that serve a call of this Python into the BEAM; and {:allow, list}, what
          # it may call by name. A handle is copied for each request, so what a request has no use for is not in it.
          calls: :ets.tid(),
          counter: :atomics.atomics_ref(),
          os_pid: pos_integer(),
          start_time: non_neg_integer(),
          dir: Path.t(),
          max_frame_bytes: pos_integer(),
          max_queued_bytes: pos_integer(),
          max_pending: pos_integer(),
          # How long after its timeout a request has its answer at the latest, in ms.
          patience: non_neg_integer(),
          ready: boolean()
        }

  @typedoc "What a request has beyond the plain one; nil there, since the plain one shall not pay for it."
  @type extra :: nil | %{devices: PyPort.Output.devices(), servant: pid() | nil}

  @spec next_id(t()) :: PyPort.Wire.id()
  def next_id(handle), do: <<:atomics.add_get(handle.counter, 1, 1)::64>>

  @doc "Writes a frame. A port that has died meanwhile is no news: whoever needs to know has a monitor, or its exit status."
  @spec command(t() | port(), iodata()) :: boolean()
  def command(%__MODULE__{port: port}, frame), do: command(port, frame)

  def command(port, frame) do
    Port.command(port, frame)
  rescue
    ArgumentError -> false
  end

  # The table can be gone by now, and the port with it.

  @spec insert(t(), tuple()) :: boolean()
  def insert(handle, row) do
    :ets.insert(handle.table, row)
  rescue
    ArgumentError -> false
  end

  @spec pending(t()) :: non_neg_integer()
  def pending(handle) do
    case :ets.info(handle.table, :size) do
      :undefined -> 0
      size -> size
    end
  end
end
