defmodule PyPort.Connection do
  # A server as its callers see it: they reach its Python without a message to its owner.
  @moduledoc false

  alias PyPort.SharedMemory

  @enforce_keys [:owner, :port, :table, :calls, :counter, :os_pid, :start_time, :dir]
  defstruct @enforce_keys ++
              [:max_frame_bytes, :max_queued_bytes, :max_pending, :max_objects_per_owner] ++
              [patience: 0, shm_threshold: :infinity, ready: false]

  @type t :: %__MODULE__{
          owner: pid(),
          port: port(),
          # Rows {id, alias, caller, extra}: the requests that have no final reply yet. Its size is the load.
          table: :ets.tid(),
          # Rows for calls of this Python into the BEAM: {worker, call id, request} of the processes that serve one; the functions that
          # Python was given and the contexts of requests, see PyPort.Callbacks; {:allow, list}, the functions that it may call by name; {:shared_memory, PyPort.SharedMemory}; and
          # {{:owns, owner}, count} of the owners of many objects. They are not in the connection, which is copied for each request.
          calls: :ets.tid(),
          # The number of the last request; whether no more are taken in (1); how many bytes were handed to the port,
          # and how many of these it is known to have written; how many calls into the BEAM are being served; when the last
          # reply came, in native units of the monotonic clock, and how long replies take to follow each other of late.
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
          # From how many bytes on a frame goes through PyPort.SharedMemory; an atom is more than any number.
          shm_threshold: pos_integer() | :infinity,
          ready: boolean()
        }

  # A request is short where a reply has come no longer ago than this. Of short requests those are open at once that take so long
  # together, or so many.
  @quick System.convert_time_unit(1, :millisecond, :native)
  @pipelined_time System.convert_time_unit(10, :millisecond, :native)
  @least_pipelined 64

  # The last element of the row of a request: nil for a plain one, which must not pay for it.
  @type extra :: nil | %{devices: PyPort.Output.devices(), on_progress: term()}

  # The counter of a new connection.
  @spec counter() :: :atomics.atomics_ref()
  def counter do
    counter = :atomics.new(7, signed: true)
    # The clock may have begun below 0.
    :atomics.put(counter, 6, :erlang.monotonic_time())
    :atomics.put(counter, 7, @quick)
    counter
  end

  @spec next_id(t()) :: PyPort.Wire.id()
  def next_id(connection), do: <<:atomics.add_get(connection.counter, 1, 1)::64>>

  # Writes a frame. A port that has died meanwhile is no error: the heir of the server's table tells the callers.
  #
  # As a message of the port's owner, and not by `Port.command/2`: if several processes write at once, or the port is just
  # read, that function waits until the port has taken the frame, and 64 callers on two cores get a third fewer requests
  # through.
  @spec command(t(), iodata()) :: :ok
  def command(%__MODULE__{counter: counter} = connection, frame) do
    carry(connection, frame, fn frame, bytes ->
      :atomics.add(counter, 3, bytes)
      write(connection, frame)
    end)
  end

  defp carry(%__MODULE__{shm_threshold: threshold, calls: table}, frame, write) do
    case :erlang.iolist_size(frame) do
      bytes when bytes >= threshold -> SharedMemory.through(table, frame, bytes, write)
      bytes -> write.(frame, bytes)
    end
  end

  defp write(%__MODULE__{port: port, owner: owner}, frame) do
    send(port, {owner, {:command, frame}})
    :ok
  end

  # Closes a port, which may have ended by itself just now.
  @spec close(port()) :: true
  def close(port) do
    Port.close(port)
  rescue
    ArgumentError -> true
  end

  # Writes the frame of a request, unless more than `max_queued_bytes` wait before it: then it gives how many do. So one
  # frame of any size passes, and no more wait than that limit and one frame.
  #
  # The bytes are counted before it is known whether they may be written, so of callers that come together each sees those
  # that came before it. The port is asked only when the count says that it may be full: a port may be busy, and makes
  # everybody wait who asks it.
  @spec submit(t(), iodata()) :: :ok | {:full, non_neg_integer()}
  def submit(connection, frame), do: carry(connection, frame, &submit(connection, &1, &2))

  defp submit(%__MODULE__{counter: counter, max_queued_bytes: most} = connection, frame, bytes) do
    if :atomics.add_get(counter, 3, bytes) - bytes - :atomics.get(counter, 4) <= most do
      write(connection, frame)
    else
      # Before the port is asked: a caller that is killed there must leave no bytes counted.
      :atomics.sub(counter, 3, bytes)
      waiting = waiting_bytes(connection)
      if waiting > most, do: {:full, waiting}, else: submit(connection, frame, bytes)
    end
  end

  # The bytes handed to the port, whether it has seen them or not, less the bytes that it has written. It is asked in this
  # order, so that frames that come in between make the result too large and not too small.
  defp waiting_bytes(%__MODULE__{port: port, counter: counter}) do
    sent = :atomics.get(counter, 3)

    with {:output, taken} <- Port.info(port, :output),
         {:queue_size, queued} <- Port.info(port, :queue_size) do
      written = max(taken - queued, 0)
      :atomics.put(counter, 4, written)
      max(sent - written, 0)
    else
      # A closed port: the heir will tell why.
      nil ->
        :atomics.put(counter, 4, sent)
        0
    end
  end

  # Puts the row of a request into the table. `false` if the server has ended, or takes no request any more: then none may be
  # sent to it.
  @spec insert(t(), tuple()) :: boolean()
  def insert(connection, row) do
    :ets.insert(connection.table, row)
    # After the row, as who has closed the intake looks for rows after it has: one of the two sees the other.
    :atomics.get(connection.counter, 2) == 0 or not withdraw(connection, elem(row, 0))
  rescue
    ArgumentError -> false
  end

  # Lets no request in any more, if there is none now.
  @spec close_intake(t()) :: boolean()
  def close_intake(connection) do
    :atomics.put(connection.counter, 2, 1)
    empty? = pending(connection) == 0
    unless empty?, do: :atomics.put(connection.counter, 2, 0)
    empty?
  end

  # Lets no request in any more, whatever there is: its server is about to stop, or has ended.
  @spec refuse(t() | :atomics.atomics_ref()) :: :ok
  def refuse(%__MODULE__{counter: counter}), do: refuse(counter)
  def refuse(counter), do: :atomics.put(counter, 2, 1)

  # Whether it lets no request in.
  @spec refuses?(t()) :: boolean()
  def refuses?(%__MODULE__{counter: counter}), do: :atomics.get(counter, 2) == 1

  # A call into the BEAM is served from now on (1), or no more (-1).
  @spec count_call(t(), 1 | -1) :: :ok
  def count_call(connection, change), do: :atomics.add(connection.counter, 5, change)

  @spec serving?(t()) :: boolean()
  def serving?(connection), do: :atomics.get(connection.counter, 5) > 0

  # A reply has come.
  @spec replied(t()) :: :ok
  def replied(%__MODULE__{counter: counter}) do
    now = :erlang.monotonic_time()
    # Processes that do this at the same moment may do it in another order.
    after_the_last = (now - :atomics.exchange(counter, 6, now)) |> max(0) |> min(@quick)
    :atomics.put(counter, 7, div(31 * :atomics.get(counter, 7) + after_the_last, 32))
  end

  # How long ago the last reply came, in native units.
  @spec quiet(t()) :: integer()
  def quiet(%__MODULE__{counter: counter}), do: :erlang.monotonic_time() - :atomics.get(counter, 6)

  # Whether the last reply has come just now: its requests are short.
  @spec quick?(t()) :: boolean()
  def quick?(connection), do: quiet(connection) < @quick

  # How many requests may be open while they are short, so that Python has the next one at hand: of the shortest, as many as
  # take a few milliseconds.
  @spec pipelined(t()) :: pos_integer()
  def pipelined(%__MODULE__{counter: counter, max_pending: most}),
    do: div(@pipelined_time, :atomics.get(counter, 7) + 1) |> max(@least_pipelined) |> min(most)

  # How many requests it was ever asked.
  @spec requests(t()) :: non_neg_integer()
  def requests(connection), do: :atomics.get(connection.counter, 1)

  # The number of the oldest request that is open, if any is.
  @spec oldest(t()) :: pos_integer() | nil
  def oldest(connection) do
    # An atom is more than any number.
    number =
      :ets.foldl(fn {<<number::64>>, _, _, _}, least -> min(number, least) end, :none, connection.table)

    if number != :none, do: number
  end

  # Takes back the row of a request that was not sent.
  @spec withdraw(t(), PyPort.Wire.id()) :: true
  def withdraw(connection, id) do
    :ets.delete(connection.table, id)
  rescue
    ArgumentError -> true
  end

  @spec pending(t()) :: non_neg_integer()
  def pending(connection) do
    case :ets.info(connection.table, :size) do
      :undefined -> 0
      size -> size
    end
  end
end
