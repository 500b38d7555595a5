defmodule PyPort.Server.Traffic do
  # What the server does with the frames of a Python that runs: each goes, undecoded, to whom it belongs. This is
  # the hot path of every reply; birth and death are PyPort.Server's.
  @moduledoc false

  alias PyPort.{Callbacks, Connection, Output, Wire}
  alias PyPort.Server.{AsyncDelivery, Cancellation, Ownership}

  @type state :: map()

  @doc "Gives back frames that it does not know."
  @spec frame(Wire.routed(), binary(), state()) :: {:ok, state()} | :other
  def frame(route, frame, state) do
    case route do
      {:reply, id} -> {:ok, reply(state, id, frame, false)}
      {:yield, id} -> {:ok, item(state, id, frame, false)}
      {:output, id} -> {:ok, output(state, id, frame)}
      {:reply_with_objects, id} -> {:ok, reply(state, id, frame, true)}
      {:yield_with_objects, id} -> {:ok, item(state, id, frame, true)}
      {:invoke, id, call_id} -> {:ok, invoke(state, id, call_id, frame)}
      :log -> {:ok, log(state, frame)}
      :send -> {:ok, mail(state, {:send, frame})}
      {:pong, id} -> {:ok, pong(state, id, frame)}
      {:running, id} -> {:ok, running(state, id)}
      _other -> :other
    end
  end

  @doc """
  What a request that nobody waits for any more has left here: its output is abandoned, with what Python may
  still print of it, and the calls that it made into the BEAM are ended.
  """
  @spec abandon(state(), Wire.id()) :: state()
  def abandon(state, id) do
    case Map.pop(state.attached, id) do
      {nil, _attached} ->
        state

      {attached, rest} ->
        if attached.writer, do: Output.abandon(attached.writer)
        listen_no_more(%{state | attached: rest}, id, attached.caller)
    end
  end

  @doc "Sets what belongs to a request besides its row, until its final reply."
  @spec attach(state(), Wire.id(), :writer | :caller | :cancel, term()) :: state()
  def attach(state, id, what, value) do
    attached = Map.get(state.attached, id, %{writer: nil, caller: nil, cancel: nil})
    %{state | attached: Map.put(state.attached, id, Map.put(attached, what, value))}
  end

  @doc "Callers that died leave a row behind: what they asked for is cancelled, and leaves nothing here."
  @spec sweep(state()) :: state()
  def sweep(%{phase: :ready, connection: %{table: table}} = state) do
    rows = if :ets.info(table, :size) > 0, do: :ets.match(table, {:"$1", :_, :"$2", :_}), else: []

    state =
      for [id, caller] <- rows, node(caller) == node(), not Process.alive?(caller), reduce: state do
        state -> orphaned(state, id)
      end

    over = for {id, _attached} <- state.attached, not :ets.member(table, id), do: id
    state = Enum.reduce(over, state, &abandon(&2, &1))
    # Kept by workers that were ended meanwhile.
    for id <- Callbacks.kept(state.connection),
        id != "",
        not :ets.member(table, id),
        do: Callbacks.forget(state.connection, id)

    state
  end

  def sweep(state), do: state

  # It may have died before it told Python to end the request, or of the request at all; to be told twice does no harm.
  defp orphaned(state, id) do
    Connection.command(state.connection, Wire.cancel(id))

    case state.attached do
      %{^id => %{cancel: %{why: :caller_down}}} -> ask_after(state, id)
      %{^id => %{cancel: %{}}} -> state
      _not_cancelled -> state |> Cancellation.cancel(id, :caller_down) |> ask_after(id)
    end
  end

  # What of the request was sent, was sent before its caller's death, and this comes behind it.
  defp ask_after(state, id) do
    Connection.command(state.connection, Wire.ping(id))
    state
  end

  defp pong(state, id, frame) do
    case Wire.decode(frame) do
      {:ok, {:pong, _id, %{} = said}} -> state |> Cancellation.heard(said[:blocking]) |> pong_of(id, said)
      _unreadable -> state
    end
  end

  # No answer has come of a request that was cancelled before this was asked, and none will: its caller was killed with the
  # row in the table and the frame in its hands. All others were sent.
  defp pong_of(state, id, said) do
    case {state.attached, said} do
      {%{^id => %{cancel: %{why: :caller_down} = entry}}, %{open: false}} ->
        :ets.delete(state.connection.table, id)
        state |> Cancellation.never_sent(id, entry) |> abandon(id)

      _open_or_not_asked_after ->
        Cancellation.pong(state, id, said)
    end
  end

  # --- replies --------------------------------------------------------------------------------

  defp reply(state, id, frame, objects?) do
    case :ets.take(state.connection.table, id) do
      [{_id, ref, reader, extra}] ->
        if extra != nil and extra.functions?, do: Callbacks.forget(state.connection, id)

        case state.attached do
          %{^id => attached} ->
            state |> objects(id, attached, reader, frame, objects?) |> last(id, attached, ref, frame)

          _nothing ->
            state = if objects?, do: Ownership.claim(state, {:reply, id}, reader, frame), else: state
            to_reader(state, ref, frame)
        end

      # Nobody has asked.
      [] ->
        if objects?, do: Ownership.release_in(state.connection, frame)
        abandon(state, id)
    end
  end

  defp objects(state, _id, _attached, _reader, _frame, false), do: state

  defp objects(state, id, attached, reader, frame, true) do
    if Cancellation.answered?(attached) do
      Ownership.release_in(state.connection, frame)
      state
    else
      Ownership.claim(state, {:reply, id}, reader, frame)
    end
  end

  defp to_reader(state, ref, frame) do
    send(ref, {ref, frame})
    state
  end

  # An alias that is not listened to any more drops it.
  defp last(state, id, attached, ref, frame) do
    state = if attached.cancel, do: Cancellation.ended(state, id, attached.cancel, frame), else: state

    if attached.writer do
      send(ref, {ref, frame, attached.writer})
      Output.finish(attached.writer, ref)
    else
      send(ref, {ref, frame})
    end

    listen_no_more(%{state | attached: Map.delete(state.attached, id)}, id, attached.caller)
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
        state = claim_items(state, id, reader, frames)
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

  defp claim_items(state, id, reader, frames) do
    Enum.reduce(frames, state, fn
      {true, frame}, state -> Ownership.claim(state, {:reply, id}, reader, frame)
      {false, _frame}, state -> state
    end)
  end

  # --- output ---------------------------------------------------------------------------------

  defp output(state, id, frame) do
    case state.attached do
      %{^id => %{writer: writer}} when writer != nil ->
        Output.write(writer, frame)
        state

      %{^id => %{cancel: %{answered?: true}}} ->
        mail(state, {:output, id, frame})

      _none_yet ->
        case :ets.lookup(state.connection.table, id) do
          [{_id, _ref, caller, extra}] ->
            writer = Output.start(state.connection, id, caller, extra && extra.devices)
            Output.write(writer, frame)
            attach(state, id, :writer, writer)

          # What is printed for nobody goes to Logger.
          [] ->
            mail(state, {:output, id, frame})
        end
    end
  end

  # --- calls into the BEAM --------------------------------------------------------------------

  defp invoke(state, id, call_id, frame) do
    case caller(state, id) do
      {:ok, caller, state} ->
        state =
          if Callbacks.objects?(frame),
            do: Ownership.claim(state, {:call, call_id}, caller, frame),
            else: state

        # Before it can ask for anything.
        Connection.count_call(state.connection, 1)
        worker = Callbacks.start(state.connection, id, call_id, caller, frame)
        %{state | workers: Map.put(state.workers, worker, {id, call_id})}

      :none ->
        if Callbacks.objects?(frame), do: Ownership.release_in(state.connection, frame)
        Connection.command(state.connection, Callbacks.too_late(call_id))
        state
    end
  end

  # The process that waits for the request that calls.
  defp caller(state, id) do
    case {:ets.lookup(state.connection.table, id), state.attached} do
      {_row, %{^id => %{cancel: %{answered?: true}}}} ->
        :none

      {_row, %{^id => %{caller: :dead}}} ->
        :none

      {[{_id, _ref, caller, _extra}], _attached} ->
        {:ok, caller, watch_caller(state, id, caller)}

      # Outside any request: from a thread of init_code, say. The server itself stands in for a caller.
      {[], _attached} when id == "" ->
        {:ok, self(), state}

      {[], _attached} ->
        :none
    end
  end

  @doc "A worker has ended."
  @spec worker_ended(state(), pid(), term()) :: state()
  def worker_ended(state, worker, reason) do
    Connection.count_call(state.connection, -1)

    case Map.pop(state.workers, worker) do
      {{:stopped, call_id}, workers} ->
        Callbacks.forget(state.connection, worker)
        disclaim(%{state | workers: workers}, call_id)

      {{_id, call_id}, workers} ->
        Callbacks.ended(state.connection, worker, call_id, reason)
        state = %{state | workers: workers}
        if reason == :normal, do: state, else: disclaim(state, call_id)
    end
  end

  # What it has adopted, it has said before its end. What it has not, is nobody's.
  defp disclaim(state, call_id), do: Ownership.cast(state, {:disclaim, {:call, call_id}})

  # A request has run for longer than most.
  defp running(state, id) do
    case :ets.lookup(state.connection.table, id) do
      [{_id, _ref, caller, _extra}] -> watch_caller(state, id, caller)
      [] -> state
    end
  end

  # From now on the death of the caller is known at once; one that is dead already is known now.
  defp watch_caller(state, id, caller) do
    case state.attached do
      %{^id => %{caller: watched}} when watched != nil -> state
      _not_watched -> attach(state, id, :caller, :erlang.monitor(:process, caller, tag: {:caller_down, id}))
    end
  end

  @doc "The caller of a request has died that was watched."
  @spec caller_down(state(), Wire.id()) :: state()
  def caller_down(state, id) do
    case state.attached do
      %{^id => _attached} -> state |> end_calls(id) |> attach(id, :caller, :dead) |> orphaned(id)
      _over -> state
    end
  end

  @doc "Ends the calls of a request: there is nobody any more whom they are for."
  @spec end_calls(state(), Wire.id()) :: state()
  def end_calls(state, id) do
    Callbacks.forget(state.connection, id)

    for {worker, {^id, call_id}} <- state.workers, reduce: state do
      state ->
        Callbacks.stop(state.connection, worker, call_id)
        %{state | workers: Map.put(state.workers, worker, {:stopped, call_id})}
    end
  end

  # Its calls, too, where there have been any.
  defp listen_no_more(state, _id, nil), do: state

  defp listen_no_more(state, id, monitor) do
    if is_reference(monitor), do: Process.demonitor(monitor, [:flush])
    end_calls(state, id)
  end

  # --- mail -----------------------------------------------------------------------------------

  defp log(%{options: %{logger: false}} = state, _frame), do: state

  defp log(state, frame) do
    caller =
      with id when id != nil <- Wire.log_request(frame),
           [{_id, _ref, caller, _extra}] <- :ets.lookup(state.connection.table, id) do
        caller
      else
        _nobody -> nil
      end

    mail(state, {:log, frame, caller})
  end

  defp mail(state, letter) do
    AsyncDelivery.post(state.mail, letter)
    state
  end
end
