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
          # What calls of this Python into the BEAM need. Rows {worker, call id}: the processes that serve one; those of
          # PyPort.Callbacks, which begin with a request's id; and {:allow, list}, what it may call by name. A handle is copied for each request, so what a request has no use for is not in it.
          calls: :ets.tid(),
          # The number of the last request, and whether no more are taken in (1).
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
  @type extra :: nil | %{devices: PyPort.Output.devices(), functions?: boolean()}

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

  @doc """
  Puts the row of a request into the table. Where it gives `false`, the server has ended, or takes nothing in any more:
  then nothing may be sent to it.
  """
  @spec insert(t(), tuple()) :: boolean()
  def insert(handle, row) do
    :ets.insert(handle.table, row)
    # After the row, as close_intake/1 looks for rows after it has closed: one of the two sees the other.
    :atomics.get(handle.counter, 2) == 0 or not take(handle, elem(row, 0))
  rescue
    ArgumentError -> false
  end

  @doc "Lets no request in any more, if there is none now."
  @spec close_intake(t()) :: boolean()
  def close_intake(handle) do
    :atomics.put(handle.counter, 2, 1)
    empty? = pending(handle) == 0
    unless empty?, do: :atomics.put(handle.counter, 2, 0)
    empty?
  end

  @doc "Lets no request in any more, whatever there is: its server is about to stop."
  @spec refuse(t()) :: :ok
  def refuse(handle), do: :atomics.put(handle.counter, 2, 1)

  @doc "How many requests it was ever asked."
  @spec requests(t()) :: non_neg_integer()
  def requests(handle), do: :atomics.get(handle.counter, 1)

  @doc "Whether the row was still there: whoever takes it decides about the request."
  @spec take(t(), PyPort.Wire.id()) :: boolean()
  def take(handle, id) do
    :ets.take(handle.table, id) != []
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
