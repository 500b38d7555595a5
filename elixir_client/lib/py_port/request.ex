defmodule PyPort.Request do
  # One request from its caller's side: alias, row, command, receive, decode. All of it runs in the caller's process; the
  # owner of the port sees a row of a table and forwards bytes.
  #
  # The alias is made and received on in this one module, each clause matching `^ref`, because only then does the BEAM skip
  # older messages of the mailbox (1.5 µs against 800 with 200,000 messages).
  @moduledoc false

  import PyPort.Deadline, only: [deadline: 1, remaining: 1]

  alias PyPort.{
    Admission,
    Callbacks,
    Connection,
    Deadline,
    Error,
    Locator,
    Object,
    Options,
    Output,
    Ownership
  }

  alias PyPort.{Registry, Remote, Reply, Values, Wire}

  # Time for the server to report the end of a request, however small its graces are.
  @least_patience_ms 50

  # How long an answer that comes at the last moment, or after it, waits for its output to be written. A device takes
  # microseconds; one that hangs must not hold up the answer.
  @flush_ms 100

  # A request is recalled from its server, to wait for the next that can begin it, where no reply has come for this long from
  # those before it. It is looked at after this time, and again.
  @recall_ms 5

  # Interval at which a waiting caller checks that the server is alive. The heir of the server's table tells it before.
  @look_ms 1_000

  @type outcome :: {:ok, term()} | {:error, Error.t()}
  @type target :: String.t() | Object.t() | {Object.t(), String.t()}
  # A request as the caller wrote it.
  @type asked ::
          {:eval, String.t() | PyPort.Code.t(), map()}
          | {:call, target(), list(), map()}
          # With structs that another node has encoded.
          | {:encoded, asked()}
  # A request that has no server yet.
  @type draft :: %{
          verb: :eval | :call,
          # The options for Python, the first element, are filled in last.
          body: tuple(),
          small?: boolean(),
          target: Object.t() | nil,
          found: Values.found()
        }

  # Sends a request with valid options, and waits for its outcome.
  @spec ask(asked(), Options.request()) :: outcome()
  def ask(asked, %{timeout: timeout} = options), do: ask(asked, options, deadline(timeout), timeout, nil)

  # To look at the clock takes 0.1 µs, a percent of a plain request: so the time left goes along where it is known.
  defp ask(asked, options, deadline, left, turn) do
    draft = draft(asked)
    place = Locator.place(options, draft.target, draft.found.objects)

    with {how, connection, id, frame, extra, functions} <-
           prepare(draft, options, place, deadline, self(), turn) do
      left = if how in [:ok, :member], do: left, else: remaining(deadline)
      recall = recall(options, how)

      case exchange(connection, id, frame, left, deadline, options.timeout, extra, functions, recall) do
        {:ok, _value} = outcome ->
          outcome

        # Another request takes long on that server. The first to arrive is the first to go on.
        :recalled ->
          Callbacks.drop(connection, functions)
          ask(asked, options, deadline, remaining(deadline), arrived(options, deadline))

        # The server had just ended, or been taken out, so Python has not heard of the request; to ask another server of
        # its pool is therefore no repetition. A moment later the pool knows that the server is gone.
        :not_sent ->
          Callbacks.drop(connection, functions)

          if Locator.again?(place, deadline),
            do: ask(asked, options, deadline, remaining(deadline), arrived(options, deadline)),
            else: Locator.not_taken(place)

        # Others that came at the same moment have taken the last of its places.
        {:full, error} ->
          Callbacks.drop(connection, functions)

          if Locator.again?(place, deadline),
            do: ask(asked, options, deadline, remaining(deadline), arrived(options, deadline)),
            else: {:error, error}

        # The server has ended before it began the request.
        {:error, %Error{kind: kind, begun: false}} = outcome
        when kind in [:exited, :killed] and options.retry > 0 and how in [:member, :turn] ->
          Callbacks.drop(connection, functions)
          options = %{options | retry: options.retry - 1}

          if remaining(deadline) > 0,
            do: ask(asked, options, deadline, remaining(deadline), arrived(options, deadline)),
            else: outcome

        outcome ->
          owned(outcome, connection, id, options, functions)
      end
    else
      {:remote, node, server} -> ask_remote(node, server, encoded(asked, draft), options, deadline)
      {:error, error} -> {:error, error}
    end
  end

  # A request that has been sent tells PyPort.Cast, or may be recalled. Those of PyPort.Cast keep their order.
  defp recall(%{sent: ref}, _how), do: {:tell, ref}
  defp recall(_options, how) when how in [:member, :turn], do: :may
  defp recall(_options, _how), do: nil

  # When a request was made that waits again: it keeps its place in the order.
  defp arrived(%{timeout: :infinity}, _deadline), do: System.monotonic_time()

  defp arrived(%{timeout: timeout}, deadline),
    do: System.convert_time_unit(deadline - timeout, :millisecond, :native)

  defp owned({:objects, value, ids}, %{owner: owner}, id, options, functions) do
    with :ok <- Ownership.take_over(owner, {:reply, id}, ids, options.owner),
         {:ok, value} <- Callbacks.restore(owner, value, ids, functions),
         do: {:ok, Ownership.collectable(value, ids, options.owner)}
  end

  defp owned({:failed, error, ids}, %{owner: owner}, id, options, _functions) do
    with :ok <- Ownership.take_over(owner, {:reply, id}, ids, options.owner), do: {:error, error}
  end

  defp owned({:unread, error}, connection, id, _options, _functions) do
    Ownership.disclaim(connection.owner, {:reply, id})
    {:error, error}
  end

  # No code of such a request has run, so Python holds none of its functions.
  defp owned({:error, %Error{kind: kind, begun: begun}} = outcome, connection, _id, _options, functions)
       when kind in [:decode, :protocol] or begun == false do
    Callbacks.drop(connection, functions)
    outcome
  end

  defp owned(outcome, _connection, _id, _options, _functions), do: outcome

  # --- on other nodes -------------------------------------------------------------------------

  # A request for another node: its structs are encoded here, see `Values.encoded/1`, and its functions are what they are.
  @spec encoded(asked(), draft()) :: asked()
  def encoded({:encoded, asked}, draft), do: encoded(asked, draft)

  def encoded({:eval, code, _globals}, %{body: {_options, _code, globals}, found: found}),
    do: {:encoded, {:eval, code, Values.restore(globals, Map.new(found.funs))}}

  def encoded({:call, target, _args, _kwargs}, %{body: {_options, _target, args, kwargs}, found: found}) do
    funs = Map.new(found.funs)
    {:encoded, {:call, target, Values.restore(args, funs), Values.restore(kwargs, funs)}}
  end

  defp ask_remote(node, server, asked, options, deadline) do
    place = options.server || PyPort.Default
    {owner, heir} = if is_tuple(options.owner), do: options.owner, else: Ownership.pair(options.owner)
    there = options |> Remote.options(server, deadline) |> Map.put(:owner, {owner, heir})

    case Remote.call(node, __MODULE__, :serve, [asked, there], deadline) do
      # The pool of the other node has no server ready, either: it takes a moment for all nodes to know.
      {:ok, {{:error, %Error{kind: :unavailable, begun: false}} = outcome, _none}}
      when is_pid(server) and server != place ->
        if Locator.again?(place, deadline),
          do: ask(asked, options, deadline, remaining(deadline), nil),
          else: outcome

      {:ok, {outcome, taken_over}} ->
        if heir || owner == self(),
          do: Enum.each(taken_over, fn {whose, ids} -> Ownership.note_in_scope(whose, ids) end)

        outcome

      {:error, error} ->
        {:error, error}
    end
  end

  # For a caller of another node, for which this process stands in.
  @spec serve(asked(), Options.request()) :: {outcome(), Ownership.taken_over()}
  def serve(asked, options), do: Ownership.collect(fn -> ask(asked, options) end)

  # --- sessions -------------------------------------------------------------------------------

  # Opens a session on the server of these options, for the process `:owner`, by default this one.
  @spec open_session(map()) :: {:ok, PyPort.Session.t()} | {:error, Error.t()}
  def open_session(%{timeout: timeout} = options), do: open_session(options, deadline(timeout))

  defp open_session(%{timeout: timeout} = options, deadline) do
    place = options.server || PyPort.Default
    opener = options.owner || self()

    with {how, connection} when how in [:ok, :waited, :member, :turn] <-
           Locator.connection(place, deadline, :at_once) do
      <<number::64>> = id = Connection.next_id(connection)
      name = Integer.to_string(number)
      # Known to the server before it is known to Python: whatever ends its opener from here on closes it.
      Ownership.tell(connection.owner, {:session_opened, name, opener})

      frame = Wire.open_session(id, name)

      case exchange(connection, id, frame, remaining(deadline), deadline, timeout, nil, [], nil) do
        {:ok, _nil} ->
          {:ok, %PyPort.Session{server: connection.owner, name: name}}

        :not_sent ->
          Ownership.tell(connection.owner, {:session_closed, name})

          if Locator.again?(place, deadline),
            do: open_session(options, deadline),
            else: Locator.not_taken(place)

        {_error_full_or_unread, error} ->
          close_session(connection, name)
          {:error, error}
      end
    else
      {:remote, node, server} ->
        options = %{options | owner: opener, server: server, timeout: remaining(deadline)}
        with {:ok, outcome} <- Remote.call(node, __MODULE__, :open_session, [options], deadline), do: outcome

      {:error, error} ->
        {:error, error}
    end
  end

  @spec close_session(Connection.t(), String.t()) :: :ok
  def close_session(connection, name) do
    Connection.command(connection, Wire.close_session(name))
    Registry.forget_session(connection.owner, name)
    Ownership.tell(connection.owner, {:session_closed, name})
  end

  # --- drafts and frames ----------------------------------------------------------------------

  @spec draft(asked()) :: draft()
  def draft({:encoded, asked}), do: draft(asked, Values.none_of_encoded())
  def draft(asked), do: draft(asked, Values.none())

  defp draft({:eval, code, globals}, none) do
    {globals, small?, found} = scan(globals, none)
    %{verb: :eval, body: {nil, code(code), globals}, small?: small?, target: nil, found: found}
  end

  defp draft({:call, target, args, kwargs} = asked, none) do
    {args, small?, found} = scan(args, none)
    {kwargs, small_too?, found} = scan(kwargs, found)
    body = {nil, target, args, kwargs}
    %{verb: :call, body: body, small?: small? and small_too?, target: target(asked), found: found}
  end

  # Small values have no function and no handle among them.
  defp scan(values, found) do
    if Wire.small?(values) do
      {values, true, found}
    else
      {values, found} = Values.scan(values, found)
      {values, false, found}
    end
  end

  defp code(%PyPort.Code{source: source, file: file, line: line}), do: {:code, source, file, line}
  defp code(source), do: source

  # The object that is called, or whose attribute is.
  @spec target(asked()) :: Object.t() | nil
  def target({:call, %Object{} = object, _args, _kwargs}), do: object
  def target({:call, {%Object{} = object, _attribute}, _args, _kwargs}), do: object
  def target(_other), do: nil

  # A request of `caller` for the server of its place, ready to be sent.
  @spec prepare(draft(), map(), Locator.place(), Deadline.t(), caller :: pid(), Locator.turn()) ::
          {Locator.how(), Connection.t(), Wire.id(), iodata(), Connection.extra(), [Callbacks.row()]}
          | {:error, Error.t()}
          | Locator.remote()
  def prepare(%{verb: verb, body: body, small?: small?, found: found}, options, place, deadline, caller, turn) do
    with {how, connection} when how in [:ok, :waited, :member, :turn] <-
           Locator.connection(place, deadline, turn),
         :ok <- Locator.same_server(found.objects, connection),
         id = Connection.next_id(connection),
         body = put_elem(body, 0, wire_options(options, Callbacks.parent(connection))),
         frame = Wire.request(verb, id, body, small?),
         :ok <- Admission.fits(connection, frame) do
      {how, connection, id, frame, extra(options), Callbacks.rows(found.funs, caller)}
    end
  end

  # The plain request first, which has at most these three.
  defp wire_options(
         %{session: session, return: :value, error_value: false, arrays: nil, tables: nil} = options,
         nil
       )
       when not is_map_key(options, :typed)
       when :erlang.map_get(:typed, options) == false,
       do: options |> plain_options() |> with_option(:session, session && session.name)

  defp wire_options(%{session: session, return: return} = options, parent) do
    options
    |> plain_options()
    |> with_option(:session, session && session.name)
    |> with_option(:return, return != :value && return)
    |> with_option(:error_value, Map.get(options, :error_value))
    |> with_option(:arrays, options[:arrays])
    |> with_option(:tables, options[:tables])
    |> with_option(:typed, Map.get(options, :typed))
    |> with_option(:parent, parent)
  end

  defp with_option(options, _name, value) when value in [nil, false], do: options
  defp with_option(options, name, value), do: Map.put(options, name, value)

  # A stream's timeout is for each of its items, so there is no deadline to tell.
  defp plain_options(%{credit: credit, binary_as: nil}), do: %{stream: true, credit: credit}
  defp plain_options(%{credit: credit, binary_as: as}), do: %{stream: true, credit: credit, binary_as: as}
  defp plain_options(%{timeout: :infinity, binary_as: nil}), do: %{}
  defp plain_options(%{timeout: timeout, binary_as: nil}), do: %{deadline_ms: timeout}
  defp plain_options(%{timeout: :infinity, binary_as: as}), do: %{binary_as: as}
  defp plain_options(%{timeout: timeout, binary_as: as}), do: %{deadline_ms: timeout, binary_as: as}

  # The last element of the row of a request: nil for a plain one.
  defp extra(%{stdout: nil, stderr: nil, on_progress: nil}), do: nil

  defp extra(%{stdout: stdout, stderr: stderr, on_progress: report}),
    do: %{devices: {stdout, stderr}, on_progress: report}

  # --- sending and waiting --------------------------------------------------------------------

  # Alias, row, command, in this order: a reply can only come after the command, and finds the row; so does the end of the
  # server, which can come at any time, by the heir of its table.
  #
  # `:recalled` is for a request that may be recalled (`recall` is `:may`), and has not begun.
  defp exchange(connection, id, frame, left, deadline, timeout, extra, functions, recall) do
    ref = :erlang.alias()

    case Admission.send_request(connection, {id, ref, self(), extra}, functions, frame) do
      {:ok, open} ->
        await(ref, connection, id, left, deadline, timeout, sent(recall, open))

      not_sent ->
        forget(ref)
        not_sent
    end
  end

  defp sent({:tell, ref}, _open) do
    send(ref, {ref, :sent})
    nil
  end

  # None is before it.
  defp sent(_recall, 1), do: nil
  defp sent(recall, _open), do: recall

  defp await(ref, connection, id, left, deadline, timeout, recall) do
    receive do
      {^ref, frame} when is_binary(frame) ->
        :erlang.unalias(ref)
        frame |> Reply.outcome() |> recalled(recall)

      {^ref, {:progress, report, frame}} ->
        progress(report, frame)
        await(ref, connection, id, remaining(deadline), deadline, timeout, recall)

      # The request has printed: the answer is whole, its output is on its way to a device.
      {^ref, frame, writer} ->
        printed(ref, frame, writer, later(deadline, deadline(@flush_ms)))

      {:DOWN, ^ref, :process, _owner, reason} ->
        :erlang.unalias(ref)
        {:error, Error.of_exit(reason, id)}
    after
      min(left, if(recall == :may, do: @recall_ms, else: @look_ms)) ->
        look(ref, connection, id, remaining(deadline), deadline, timeout, recall)
    end
  end

  defp progress(report, frame) do
    with {:ok, {:progress, _id, %{} = map}} <- Wire.decode(frame) do
      case report do
        {pid, ref} -> send(pid, {ref, :progress, map})
        report -> report.(map)
      end
    end
  end

  defp recalled({:error, %Error{kind: :cancelled, begun: false}}, :sent), do: :recalled
  defp recalled(outcome, _recall), do: outcome

  defp look(ref, connection, id, 0, _deadline, timeout, _recall), do: timed_out(ref, connection, id, timeout)

  defp look(ref, connection, id, left, deadline, timeout, :may) do
    if recall?(connection) do
      Connection.command(connection, Wire.recall(id))
      await(ref, connection, id, left, deadline, timeout, :sent)
    else
      await(ref, connection, id, left, deadline, timeout, :may)
    end
  end

  defp look(ref, connection, id, left, deadline, timeout, recall) do
    if Process.alive?(connection.owner),
      do: await(ref, connection, id, left, deadline, timeout, recall),
      # The heir is just telling why; or it was killed with the server, and tells no caller.
      else: await_end(ref, connection, id, timeout, deadline(@least_patience_ms), :killed)
  end

  defp later(:infinity, _deadline), do: :infinity
  defp later(one, other), do: max(one, other)

  # The writer ends without `:flushed` if its server does.
  defp printed(ref, frame, writer, deadline) do
    monitor = Process.monitor(writer)

    receive do
      {^ref, :flushed} -> :ok
      {:DOWN, ^monitor, :process, _writer, _reason} -> :ok
    after
      remaining(deadline) -> Output.leave(writer)
    end

    Process.demonitor(monitor, [:flush])
    forget(ref)
    Reply.outcome(frame)
  end

  # Python is told to end the request, and its row stays until it has. The server makes it end, and tells the caller if it
  # need not wait for that. An answer that comes meanwhile is the answer.
  defp timed_out(ref, connection, id, timeout) do
    cancel(connection, id, :timeout)
    patience = patience(connection)
    Remote.late(patience)
    # As long as it is so.
    deadlock = Callbacks.deadlock(connection)

    ref
    |> await_end(connection, id, timeout, deadline(patience), {nil, nil, nil})
    |> late(timeout)
    |> explained(deadlock)
  end

  # Python's last word on a request that it was told to end.
  defp late({:error, %Error{kind: :cancelled} = error}, timeout), do: {:error, Error.timeout(timeout, error)}
  defp late(outcome, _timeout), do: outcome

  defp explained({:error, %Error{kind: :timeout, begun: begun} = error}, why)
       when begun != true and why != nil,
       do: {:error, %{error | message: error.message <> ". " <> why}}

  defp explained(outcome, _why), do: outcome

  # After how long it is looked at whether a request of a pool is to be recalled, in ms.
  @spec recall_ms() :: pos_integer()
  def recall_ms, do: @recall_ms

  @recall System.convert_time_unit(@recall_ms, :millisecond, :native)
  @spec recall?(Connection.t()) :: boolean()
  def recall?(connection), do: Connection.quiet(connection) >= @recall

  # How long after its timeout a request has its answer at the latest, in ms.
  @spec patience(Connection.t()) :: pos_integer()
  def patience(connection), do: max(connection.patience, @least_patience_ms)

  # Cancels a request. The server is told before Python, whose last word may be quick.
  @spec cancel(Connection.t(), Wire.id(), :timeout | :stopped) :: :ok
  def cancel(connection, id, why) do
    GenServer.cast(connection.owner, {:cancel, id, why})
    Connection.command(connection, Wire.cancel(id))
  end

  # `so_far` is what is known when the last deadline has passed.
  defp await_end(ref, connection, id, timeout, deadline, so_far) do
    receive do
      {^ref, frame} when is_binary(frame) ->
        forget(ref)
        Reply.outcome(frame)

      {^ref, frame, writer} ->
        printed(ref, frame, writer, deadline(@flush_ms))

      # The request goes on; the answer is still to come.
      {^ref, {:so_far, begun, stack, culprit}} ->
        await_end(ref, connection, id, timeout, deadline, {begun, stack, culprit})

      {^ref, {:timed_out, begun, stack, culprit}} ->
        forget(ref)
        {:error, Error.timeout(timeout, begun, stack, culprit)}

      {:DOWN, ^ref, :process, _owner, reason} ->
        :erlang.unalias(ref)
        {:error, Error.of_exit(reason, id)}
    after
      remaining(deadline) -> give_up(ref, connection, id, timeout, so_far)
    end
  end

  # The server itself is held up, or was killed. No message is delivered under the reference from here on; an answer that was
  # delivered before is the answer.
  defp give_up(ref, connection, id, timeout, so_far) do
    :erlang.unalias(ref)

    receive do
      {^ref, frame} when is_binary(frame) ->
        Reply.outcome(frame)

      {^ref, frame, writer} ->
        Output.leave(writer)
        forget(ref)
        Reply.outcome(frame)
    after
      0 ->
        forget(ref)
        gave_up(connection, id, timeout, so_far)
    end
  end

  defp gave_up(_connection, id, _timeout, :killed), do: {:error, Error.of_exit(:killed, id)}

  defp gave_up(connection, id, timeout, {begun, stack, culprit}) do
    GenServer.cast(connection.owner, {:gave_up, id})
    {:error, Error.timeout(timeout, begun, stack, culprit)}
  end

  defp forget(ref) do
    :erlang.unalias(ref)
    drain(ref)
  end

  defp drain(ref) do
    receive do
      {^ref, _} -> drain(ref)
      {^ref, _, _} -> drain(ref)
      {:DOWN, ^ref, _, _, _} -> drain(ref)
    after
      0 -> :ok
    end
  end
end
