defmodule PyPort.Server.Traffic do
  # The frames of a Python that runs: each goes, undecoded, to the process or the module that it is for. Every reply passes
  # here.
  @moduledoc false

  alias PyPort.{Callbacks, Connection, Output, SharedMemory, Wire}
  alias PyPort.Pool.{Members, Queue}
  alias PyPort.Server.{AsyncDelivery, Cancellation, Health, Ownership, Requests, State, Stderr}

  # Gives back frames that it does not know.
  @spec frame(Wire.routed(), binary(), State.t()) :: {:ok, State.t()} | :other
  def frame(route, frame, state) do
    case route do
      {:reply, id} -> {:ok, reply(state, id, frame, false)}
      {:yield, id} -> {:ok, item(state, id, frame, false)}
      {:output, id} -> {:ok, output(state, id, frame)}
      {:reply_with_objects, id} -> {:ok, reply(state, id, frame, true)}
      {:yield_with_objects, id} -> {:ok, item(state, id, frame, true)}
      {:invoke, id, call_id} -> {:ok, invoke(state, id, call_id, frame)}
      :log -> {:ok, log(state, frame)}
      {:progress, id} -> {:ok, progress(state, id, frame)}
      :stderr -> {:ok, stderr(state, frame)}
      :send -> {:ok, send_on(state, frame)}
      {:pong, id} -> {:ok, pong(state, id, frame)}
      {:running, id} -> {:ok, running(state, id)}
      _other -> :other
    end
  end

  # Cancels the requests of callers that have died, and forgets requests that are over.
  @spec sweep(State.t()) :: State.t()
  def sweep(%{phase: :ready, connection: %{table: table} = connection} = state) do
    rows = if :ets.info(table, :size) > 0, do: :ets.match(table, {:"$1", :_, :"$2", :_}), else: []

    state =
      for [id, caller] <- rows, node(caller) == node(), not Process.alive?(caller), reduce: state do
        state -> Cancellation.orphaned(state, id)
      end

    state =
      for id <- Requests.ids(state) ++ Cancellation.ids(state), not :ets.member(table, id), reduce: state do
        state -> over(state, id)
      end

    SharedMemory.sweep(connection.calls, &Connection.command(connection, &1))

    # Kept by workers that were ended meanwhile.
    for id <- Callbacks.kept(connection),
        id != "",
        not :ets.member(table, id),
        do: Callbacks.forget(connection, id)

    state
  end

  def sweep(state), do: state

  # The watched caller of a request has died.
  @spec caller_down(State.t(), Wire.id()) :: State.t()
  def caller_down(state, id) do
    case Requests.caller_down(state, id) do
      {:open, state} -> Cancellation.orphaned(state, id)
      {:over, state} -> state
    end
  end

  # A process that served a call into the BEAM has ended.
  @spec worker_ended(State.t(), pid(), term()) :: State.t()
  def worker_ended(state, worker, reason) do
    case Requests.worker_ended(state, worker, reason) do
      {nil, state} -> state
      {call_id, state} -> Ownership.cast(state, {:disclaim, {:call, call_id}})
    end
  end

  # A request without a reader is over.
  defp over(state, id), do: state |> Cancellation.forget(id) |> Requests.abandon(id)

  defp pong(state, id, frame) do
    case Wire.decode(frame) do
      {:ok, {:pong, _id, %{} = said}} -> Cancellation.pong(state, id, said)
      _unreadable -> state
    end
  end

  # --- replies --------------------------------------------------------------------------------

  defp reply(state, id, frame, objects?) do
    case :ets.take(state.connection.table, id) do
      [{_id, ref, reader, _extra}] ->
        state = if objects?, do: objects(state, id, reader, frame), else: state

        state = Cancellation.ended(state, id, frame)

        # An alias that is not listened to any more drops it.
        if writer = Requests.writer(state, id) do
          send(ref, {ref, frame, writer})
          Output.finish(writer, ref)
        else
          send(ref, {ref, frame})
        end

        state |> Requests.forget(id) |> next_turn(frame)

      # No process has asked.
      [] ->
        if objects?, do: Ownership.release_in(state.connection, frame)
        state |> over(id) |> next_turn(frame)
    end
  end

  # Those that wait at the pool of this server get its turns.
  defp next_turn(%{options: %{queue: nil}} = state, _frame), do: state

  defp next_turn(%{options: %{queue: queue, threads: threads}, connection: connection} = state, frame) do
    unless Queue.empty?(queue),
      do: Queue.give(queue, connection, Members.room(connection, fn -> Health.page(state) end, threads))

    # The answer to `recall` comes while a long request runs.
    unless Wire.cancelled?(frame), do: Connection.replied(connection)
    state
  end

  defp objects(state, id, reader, frame) do
    if Cancellation.answered?(state, id) do
      Ownership.release_in(state.connection, frame)
      state
    else
      Ownership.claim(state, {:reply, id}, reader, frame)
    end
  end

  # How many items of a stream are taken out of the mailbox at once, before others have their turn.
  @most_items 256

  # An item of a stream: not the last word, so the row stays. Items come in droves; those of the same stream that are
  # here already go together, for one look-up and one message (a third of what an item costs here). None of them
  # overtakes another, and the final reply stays behind them.
  defp item(state, <<number::64>> = id, frame, objects?) do
    frames = [{objects?, frame} | more_items(state.connection.port, number, @most_items)]

    case :ets.lookup(state.connection.table, id) do
      [{_id, ref, reader, _extra}] ->
        state =
          for {true, frame} <- frames, reduce: state do
            state -> Ownership.claim(state, {:reply, id}, reader, frame)
          end

        send(ref, {ref, Enum.map(frames, &elem(&1, 1))})
        state

      [] ->
        for {true, frame} <- frames, do: Ownership.release_in(state.connection, frame)
        state
    end
  end

  defp more_items(_port, _number, 0), do: []

  defp more_items(port, number, left) do
    receive do
      {^port, {:data, <<131, 104, arity, 119, 5, "yield", 109, 8::32, ^number::64, _::binary>> = frame}} ->
        [{arity != 3, frame} | more_items(port, number, left - 1)]
    after
      0 -> []
    end
  end

  # --- output ---------------------------------------------------------------------------------

  defp output(state, id, frame) do
    case writer(state, id) do
      {nil, state} ->
        deliver(state, {:output, id, frame})

      {writer, state} ->
        Output.write(writer, frame)
        state
    end
  end

  # Output of a request that no process waits for goes to Logger.
  defp writer(state, id) do
    cond do
      writer = Requests.writer(state, id) ->
        {writer, state}

      Cancellation.answered?(state, id) ->
        {nil, state}

      true ->
        case :ets.lookup(state.connection.table, id) do
          [{_id, _ref, caller, extra}] -> Requests.start_writer(state, id, caller, extra && extra.devices)
          [] -> {nil, state}
        end
    end
  end

  # Text on fds 1 and 2, which children and C code write: it is the output of the request that runs, if only one does.
  @spec pass_on_stderr(State.t()) :: State.t()
  def pass_on_stderr(%{phase: :ready} = state), do: pass_on(state, under_way(state), false)
  def pass_on_stderr(state), do: pass_on(state, [], false)

  # Sent before the last reply of a request.
  defp stderr(state, frame) do
    case Wire.decode(frame) do
      {:ok, {:stderr, ids}} when is_list(ids) -> pass_on(state, ids, true)
      _unreadable -> state
    end
  end

  defp pass_on(state, ids, all?) do
    {text, state} = Stderr.read(state, all?)
    # A dump of stacks, which the server itself has asked for, is no output.
    ids = if :binary.match(text, "(most recent call first)") == :nomatch, do: ids, else: []

    with true <- text != "",
         [id] <- ids,
         {writer, state} when writer != nil <- writer(state, id),
         true <- Output.write_text(writer, text) do
      state
    else
      _nothing_or_no_device ->
        Stderr.log(state, ids, text)
        state
    end
  end

  defp under_way(%{connection: connection} = state) do
    case {:ets.select(connection.table, [{{:"$1", :_, :_, :_}, [], [:"$1"]}]), Health.page(state)} do
      {[_, _ | _], %{running: <<_::64>> = id, off_main: 0}} -> [id]
      {ids, _page} -> ids
    end
  end

  # The caller has asked for it, or it is dropped.
  defp progress(state, id, frame) do
    with [{_id, ref, _caller, %{on_progress: report}}] when report != nil <-
           :ets.lookup(state.connection.table, id),
         false <- Cancellation.answered?(state, id),
         do: send(ref, {ref, {:progress, report, frame}})

    state
  end

  # --- calls into the BEAM --------------------------------------------------------------------

  defp invoke(%{connection: connection} = state, id, call_id, frame) do
    objects? = Callbacks.objects?(frame)

    case caller(state, id) do
      {:ok, caller, state} ->
        state = if objects?, do: Ownership.claim(state, {:call, call_id}, caller, frame), else: state
        Requests.start_call(state, id, call_id, caller, frame)

      :none ->
        if objects?, do: Ownership.release_in(connection, frame)
        Connection.command(connection, Callbacks.too_late(call_id))
        state
    end
  end

  # The process that waits for the request that calls.
  defp caller(state, id) do
    case :ets.lookup(state.connection.table, id) do
      [{_id, _ref, caller, _extra}] ->
        if Cancellation.answered?(state, id) or Requests.caller_dead?(state, id),
          do: :none,
          else: {:ok, caller, Requests.watch_caller(state, id, caller)}

      # Outside any request: from a thread of init_code, say. The server itself stands in for a caller.
      [] ->
        if id == "", do: {:ok, self(), state}, else: :none
    end
  end

  # A request has run for longer than most.
  defp running(state, id) do
    case :ets.lookup(state.connection.table, id) do
      [{_id, _ref, caller, _extra}] -> Requests.watch_caller(state, id, caller)
      [] -> state
    end
  end

  # --- async delivery -------------------------------------------------------------------------

  defp log(%{options: %{logger: false}} = state, _frame), do: state

  defp log(state, frame) do
    caller =
      with id when id != nil <- Wire.log_request(frame),
           [{_id, _ref, caller, _extra}] <- :ets.lookup(state.connection.table, id) do
        caller
      else
        _no_request -> nil
      end

    deliver(state, {:log, frame, caller})
  end

  defp send_on(state, <<131, 104, 3, _::binary>> = frame), do: deliver(state, {:send, frame, nil})

  # With objects inside: their holder is the process of the delivery until they have an owner.
  defp send_on(state, frame) do
    claim = {:send, make_ref()}
    state |> Ownership.claim(claim, state.delivery, frame) |> deliver({:send, frame, claim})
  end

  defp deliver(state, message) do
    AsyncDelivery.post(state.delivery, message)
    state
  end
end
