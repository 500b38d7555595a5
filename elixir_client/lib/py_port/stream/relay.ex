defmodule PyPort.Stream.Relay do
  # Between the server and the consumer of one stream: takes the items as they come, hands them over as the consumer
  # asks, gives Python new credit, and cancels when the consumer stops or dies.
  #
  # A process of its own, because a consumer asks from a function that is called again and again: a reference cannot
  # stay in one `receive` there, and every item would be searched for behind all that stands in the consumer's mailbox.
  # `more/2` makes a new one each time. It also halves the cost of an item, since many are handed over at once.
  @moduledoc false

  alias PyPort.{Admission, Callbacks, Connection, Error, Output, Reply, Request, Wire}

  @flush_ms 5_000

  # `:not_sent` if the server had just ended or was taken out, an error if it takes no more for now: in both cases Python has
  # not heard of the stream. `:recalled` if it was behind another request for too long, and has not begun.
  @type ending ::
          {:frame, binary()}
          | {:down, reason :: term()}
          | {:timed_out, begun :: boolean() | nil, where :: String.t() | {:importing, String.t()} | nil,
             Error.culprit() | nil}
          | :not_sent
          | :recalled
          | {:full | :error, Error.t()}

  # Sends the request, for a consumer that is the calling process, or one on another node for which it stands in. `pool?` is whether
  # another server may take it as well.
  @type request :: {Wire.id(), iodata(), Connection.extra(), [Callbacks.row()]}
  @spec start(Connection.t(), request(), credit :: pos_integer(), consumer :: pid(), pool? :: boolean()) ::
          pid()
  def start(connection, {id, frame, extra, functions}, credit, consumer, pool?) do
    logger_metadata = :logger.get_process_metadata()
    callers = Process.get(:"$callers", [])

    spawn(fn ->
      # It stands in the row as the caller: log records and calls into the BEAM look here for what the consumer has.
      if logger_metadata != :undefined, do: :logger.set_process_metadata(logger_metadata)
      Process.put(:"$callers", [consumer | callers])

      # A stream lasts, so the cost of a monitor does not count. The news of the server's end may come from the heir of its
      # table, too.
      ref = :erlang.monitor(:process, connection.owner, alias: :demonitor)

      state = %{
        connection: connection,
        id: id,
        ref: ref,
        consumer: Process.monitor(consumer),
        # Handed over at once at the most, and given as new credit: so the other half can be made meanwhile.
        half: max(div(credit, 2), 1),
        # Latest first.
        items: [],
        count: 0,
        # Items that the consumer has taken since it was last told Python.
        owed: 0,
        # Items it has been given, which it has taken when it asks for more.
        given: 0,
        # The consumer's reference, while it waits.
        asking: nil,
        # The last frame, and who still writes what was printed.
        final: nil,
        ending: nil,
        recalled?: false
      }

      case Admission.send_request(connection, {id, ref, self(), extra}, functions, frame) do
        {:ok, open} ->
          # Others are before it.
          if pool? and open > 1, do: look_later()
          loop(state)

        not_sent ->
          ended(state, not_sent)
      end
    end)
  end

  # The items that have come, one at least, or the last of them with how the stream ended.
  @spec more(pid(), timeout()) :: {:items, [binary()]} | {:last, [binary()], ending()} | :timeout
  def more(relay, timeout) do
    with {:down, reason} <- ask(relay, :more, timeout), do: {:last, [], {:down, reason}}
  end

  # The consumer has waited long enough: how the stream ended when it was told to, where that is known in time.
  @spec give_up(pid(), timeout()) :: ending()
  def give_up(relay, timeout) do
    with :timeout <- ask(relay, :give_up, timeout), do: {:timed_out, nil, nil, nil}
  end

  defp ask(relay, question, timeout) do
    ref = :erlang.monitor(:process, relay, alias: :demonitor)
    # A node that does not read must not hold up the consumer.
    :erlang.send_nosuspend(relay, {question, ref})

    receive do
      {^ref, answer} ->
        Process.demonitor(ref, [:flush])
        answer

      {:DOWN, ^ref, :process, _relay, reason} ->
        {:down, reason}
    after
      timeout ->
        Process.demonitor(ref, [:flush])

        receive do
          {^ref, answer} -> answer
        after
          0 -> :timeout
        end
    end
  end

  # Ends the stream for a consumer that wants no more. The generator's `finally` has run when this returns, and may have
  # printed; unless Python is at another request, or `patience` has passed, in ms.
  @spec stop(pid(), non_neg_integer()) :: :ok
  def stop(relay, patience) do
    ref = Process.monitor(relay)
    :erlang.send_nosuspend(relay, :stop)

    receive do
      {:DOWN, ^ref, :process, _relay, _reason} -> :ok
    after
      patience -> Process.demonitor(ref, [:flush])
    end

    :ok
  end

  # Every message is matched: the aliases drop late answers.
  defp loop(%{ref: ref, consumer: consumer} = state) do
    receive do
      {^ref, items} when is_list(items) ->
        state |> keep(items) |> hand_over() |> loop()

      {^ref, frame} when is_binary(frame) ->
        ended(state, ending(frame, state))

      # Python leaves it alone if it has begun.
      :recall ->
        if Request.recall?(state.connection) do
          Connection.command(state.connection, Wire.recall(state.id))
          loop(%{state | recalled?: true})
        else
          look_later()
          loop(state)
        end

      # The final reply of a stream that printed: its output is written first. A device that hangs must not hold up the end
      # for ever.
      {^ref, frame, writer} ->
        Process.send_after(self(), :flushed_enough, @flush_ms)
        loop(%{state | final: {frame, writer}})

      {^ref, :flushed} ->
        ended(state, {:frame, elem(state.final, 0)})

      :flushed_enough ->
        {frame, writer} = state.final
        Output.leave(writer)
        ended(state, {:frame, frame})

      {:more, asking} ->
        %{state | asking: asking} |> taken() |> hand_over() |> loop()

      {:DOWN, ^ref, :process, _owner, reason} ->
        ended(state, {:down, reason})

      {:give_up, asking} ->
        ending = cancel(state, :timeout)
        send(asking, {asking, ending})
        after_the_end(%{state | ending: ending, items: [], count: 0})

      :stop ->
        cancel(state, :stopped)

      {:DOWN, ^consumer, :process, _pid, _reason} ->
        cancel(state, :stopped)
    end
  end

  defp look_later, do: Process.send_after(self(), :recall, Request.recall_ms())

  defp ending(frame, %{recalled?: false}), do: {:frame, frame}

  defp ending(frame, _state) do
    case Reply.outcome(frame) do
      {:error, %Error{kind: :cancelled, begun: false}} -> :recalled
      _ended -> {:frame, frame}
    end
  end

  defp keep(state, items),
    do: %{state | items: :lists.reverse(items, state.items), count: state.count + length(items)}

  # A consumer that asks for more has taken the items before.
  defp taken(%{owed: owed, given: given, half: half} = state) when owed + given >= half do
    Connection.command(state.connection, Wire.credit(state.id, owed + given))
    %{state | owed: 0, given: 0}
  end

  defp taken(state), do: %{state | owed: state.owed + state.given, given: 0}

  defp hand_over(%{asking: nil} = state), do: state

  defp hand_over(%{items: []} = state) do
    if state.ending, do: last(state, []), else: state
  end

  defp hand_over(%{count: count, half: half} = state) when count <= half do
    items = Enum.reverse(state.items)

    if state.ending do
      last(state, items)
    else
      send(state.asking, {state.asking, {:items, items}})
      %{state | items: [], count: 0, given: count, asking: nil}
    end
  end

  # The oldest stand last.
  defp hand_over(%{count: count, half: half} = state) do
    {later, first} = Enum.split(state.items, count - half)
    send(state.asking, {state.asking, {:items, Enum.reverse(first)}})
    %{state | items: later, count: count - half, given: half, asking: nil}
  end

  defp last(state, items) do
    send(state.asking, {state.asking, {:last, items, state.ending}})
    %{state | items: [], count: 0, given: 0, asking: nil}
  end

  # Python is done; the consumer may not be. Its claims on handles stand in this process's name until it stops.
  defp ended(state, ending), do: %{state | ending: ending} |> hand_over() |> after_the_end()

  defp after_the_end(%{consumer: consumer} = state) do
    receive do
      {:more, asking} ->
        %{state | asking: asking} |> hand_over() |> after_the_end()

      {:give_up, asking} ->
        send(asking, {asking, state.ending})
        after_the_end(state)

      :stop ->
        :ok

      {:DOWN, ^consumer, :process, _pid, _reason} ->
        :ok
    end
  end

  # Its row stays until the reply: code in `finally` belongs to this request, and may print. The server makes it end; a
  # stream that waits behind another request need not be waited for.
  defp cancel(%{final: {frame, writer}}, _why) do
    Output.leave(writer)
    {:frame, frame}
  end

  defp cancel(%{ref: ref} = state, why) do
    Request.cancel(state.connection, state.id, why)
    await_reply(ref)
  end

  defp await_reply(ref) do
    receive do
      {^ref, items} when is_list(items) -> await_reply(ref)
      {^ref, frame} when is_binary(frame) -> {:frame, frame}
      {^ref, frame, _writer} -> {:frame, frame}
      {^ref, {:so_far, _begun, _stack, _culprit}} -> await_reply(ref)
      {^ref, {:timed_out, _begun, _stack, _culprit} = ending} -> ending
      {:DOWN, ^ref, :process, _owner, reason} -> {:down, reason}
    end
  end
end
