defmodule PyPort.Server.Handle do
  # What a caller needs to reach a server without asking its owner for anything.
  @moduledoc false

  @enforce_keys [:owner, :port, :table, :calls, :counter, :os_pid, :start_time, :dir]
  defstruct @enforce_keys ++
              [
                :max_frame_bytes,
                :max_queued_bytes,
                :max_pending,
                :max_objects_per_owner,
                patience: 0,
                ready: false
              ]

  @type t :: %__MODULE__{
          owner: pid(),
          port: port(),
          # Rows {id, alias, caller, extra}: the requests that have no final reply yet. Its size is the load.
          table: :ets.tid(),
          # What calls of this Python into the BEAM need. Rows {worker, call id}: the processes that serve one; those of
          # PyPort.Callbacks, which begin with a request's id; {:allow, list}, what it may call by name; and
          # {{:owns, owner}, count}, how many objects an owner has, if they are many. A handle is copied for each request, so what a request has no use for is not in it.
          calls: :ets.tid(),
          # The number of the last request; whether no more are taken in (1); how many large
          # frames were written, and how many of these the port is known to be rid of.
          counter: :atomics.atomics_ref(),
          os_pid: pos_integer(),
          start_time: non_neg_integer(),
          dir: Path.t(),
          max_frame_bytes: pos_integer(),
          max_queued_bytes: pos_integer(),
          max_pending: pos_integer(),
          max_objects_per_owner: pos_integer(),
          # How long after its timeout a request has its answer at the latest, in ms.
          patience: non_neg_integer(),
          ready: boolean()
        }

  @typedoc "What a request has beyond the plain one; nil there, since the plain one shall not pay for it."
  @type extra :: nil | %{devices: PyPort.Output.devices(), functions?: boolean()}

  @spec next_id(t()) :: PyPort.Wire.id()
  def next_id(handle), do: <<:atomics.add_get(handle.counter, 1, 1)::64>>

  # Below this a frame is small: `max_pending` of them are nothing that memory need be looked after for.
  @small_frame_bytes 4_096

  @doc """
  Writes a frame. A port that has died meanwhile is no news: whoever needs to know is told by the server's heir, or has
  its exit status.

  As a message of the port's owner, and not by `Port.command/2`: where several write at once, or the port is just read,
  that one waits until the port has taken the frame and has said so, to no one's benefit, and 64 callers on two cores
  get a third fewer requests through.
  """
  @spec command(t(), iodata()) :: :ok
  def command(%__MODULE__{port: port, owner: owner, counter: counter}, frame) do
    send(port, {owner, {:command, frame}})
    # After the frame, so that who sees it and looks at the port finds the frame there, or written.
    if :erlang.iolist_size(frame) > @small_frame_bytes, do: :atomics.add(counter, 3, 1), else: :ok
  end

  @doc """
  How many bytes wait in the port to be read by Python, if it can be many: a large frame may be among them, or small ones
  may add up. Else 0, for a port may be busy, and then it makes everybody wait who asks it.
  """
  @spec queued_bytes(t(), frame_bytes :: non_neg_integer(), open :: non_neg_integer()) :: non_neg_integer()
  def queued_bytes(%__MODULE__{counter: counter} = handle, frame_bytes, open) do
    large = :atomics.get(counter, 3)

    if large != :atomics.get(counter, 4) or frame_bytes > @small_frame_bytes or
         open * @small_frame_bytes > handle.max_queued_bytes,
       do: ask_port(handle, large),
       else: 0
  end

  defp ask_port(%__MODULE__{port: port, counter: counter}, large) do
    case Port.info(port, :queue_size) do
      {:queue_size, 0} ->
        :atomics.put(counter, 4, large)
        0

      {:queue_size, queued} ->
        queued

      # A closed port: the heir will tell why.
      nil ->
        0
    end
  end

  @doc """
  Puts the row of a request into the table. Where it gives `false`, the server has ended, or takes nothing in any more:
  then nothing may be sent to it.
  """
  @spec insert(t(), tuple()) :: boolean()
  def insert(handle, row) do
    :ets.insert(handle.table, row)
    # After the row, as who has closed the intake looks for rows after it has: one of the two sees the other.
    :atomics.get(handle.counter, 2) == 0 or withdraw(handle, elem(row, 0))
  rescue
    ArgumentError -> false
  end

  defp withdraw(handle, id) do
    :ets.delete(handle.table, id)
    false
  end

  @doc "Lets no request in any more, if there is none now."
  @spec close_intake(t()) :: boolean()
  def close_intake(handle) do
    :atomics.put(handle.counter, 2, 1)
    empty? = pending(handle) == 0
    unless empty?, do: :atomics.put(handle.counter, 2, 0)
    empty?
  end

  @doc "Lets no request in any more, whatever there is: its server is about to stop, or has ended."
  @spec refuse(t() | :atomics.atomics_ref()) :: :ok
  def refuse(%__MODULE__{counter: counter}), do: refuse(counter)
  def refuse(counter), do: :atomics.put(counter, 2, 1)

  @doc "Whether it lets no request in."
  @spec refuses?(t()) :: boolean()
  def refuses?(%__MODULE__{counter: counter}), do: :atomics.get(counter, 2) == 1

  @doc "How many requests it was ever asked."
  @spec requests(t()) :: non_neg_integer()
  def requests(handle), do: :atomics.get(handle.counter, 1)

  @doc "The number of the oldest request that is open, if any is."
  @spec oldest(t()) :: pos_integer() | nil
  def oldest(handle) do
    # An atom is more than any number.
    number = :ets.foldl(fn {<<number::64>>, _, _, _}, least -> min(number, least) end, :none, handle.table)
    if number != :none, do: number
  end

  @spec pending(t()) :: non_neg_integer()
  def pending(handle) do
    case :ets.info(handle.table, :size) do
      :undefined -> 0
      size -> size
    end
  end
end
