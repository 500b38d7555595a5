defmodule PyPort.Request do
  # One request from its caller's side: alias, row, command, receive, decode. All of it runs in the
  # caller's process; the owner of the port sees a row of a table and forwards bytes.
  #
  # The alias is made and received on in this one module, each clause matching `^ref`, because
  # only then does the BEAM skip what stood in the mailbox before (1.5 µs against 800 with 200,000 messages).
  @moduledoc false

  import PyPort.Locator, only: [deadline: 1, remaining: 1]

  alias PyPort.{Callbacks, Connection, Error, Locator, Object, Options, Output, Remote, Values, Wire}
  alias PyPort.Server.Ownership

  # Time for the server to say what became of a request, however small its graces are.
  @least_patience_ms 50

  # How long an answer that comes at the last moment, or after it, waits for its output to be written. A device takes
  # microseconds; one that hangs must not hold up the answer.
  @flush_ms 100

  # How often who waits looks whether there is still somebody to wait for. Nobody should ever find out that way.
  @look_ms 1_000

  @type outcome :: {:ok, term()} | {:error, Error.t()}
  @type target :: String.t() | Object.t() | {Object.t(), String.t()}
  @typedoc "What the caller wrote."
  @type asked :: {:eval, String.t() | PyPort.Code.t(), map()} | {:call, target(), list(), map()}
  @typedoc "What is known of a request before it has a server."
  @type draft :: %{
          verb: :eval | :call,
          # The options for Python, the first element, are filled in last.
          body: tuple(),
          small?: boolean(),
          target: Object.t() | nil,
          found: Values.found()
        }

  @spec eval(String.t() | PyPort.Code.t(), map(), keyword()) :: outcome()
  def eval(code, globals, options) do
    ask({:eval, code, globals}, Options.request!(options))
  end

  @spec call(target(), list(), map(), keyword()) :: outcome()
  def call(target, args, kwargs, options) do
    ask({:call, target, args, kwargs}, Options.call!(options))
  end

  @doc "Asks for what the caller wrote, with options that are valid."
  @spec ask(asked(), map()) :: outcome()
  def ask(asked, options), do: ask(asked, options, deadline(options.timeout))

  defp ask(asked, options, deadline) do
    case sent(asked, options, deadline) do
      {:ok, _value} = outcome -> outcome
      {:not_sent, place} -> ask_again(place, asked, options, deadline)
      {:elsewhere, node, server} -> ask_elsewhere(node, server, asked, options, deadline)
      outcome -> outcome
    end
  end

  defp ask_elsewhere(node, server, asked, options, deadline) do
    place = options.server || PyPort.Default

    case Remote.ask(node, server, asked, options, deadline) do
      # The pool that was to stand in has nobody ready, either: it takes a moment for all nodes to know.
      {:error, %Error{kind: :unavailable, begun: false}} = outcome when is_pid(server) and server != place ->
        if Locator.again?(place, deadline), do: ask(asked, options, deadline), else: outcome

      outcome ->
        outcome
    end
  end

  defp sent({:eval, code, globals}, options, deadline) do
    if Wire.small?(globals),
      do: run_plain(:eval, {nil, code(code), globals}, options, deadline),
      else: code |> draft_eval(globals) |> run(options, deadline)
  end

  defp sent({:call, target, args, kwargs}, options, deadline) do
    if is_binary(target) and Wire.small?(args) and Wire.small?(kwargs),
      do: run_plain(:call, {nil, target, args, kwargs}, options, deadline),
      else: target |> draft_call(args, kwargs) |> run(options, deadline)
  end

  # The server had just ended, or been taken out, so Python was told nothing; to ask another one of its pool is
  # therefore no repetition. A moment later the pool knows that it is gone.
  defp ask_again(place, asked, options, deadline) do
    if Locator.again?(place, deadline),
      do: ask(asked, options, deadline),
      else: Locator.not_taken(place)
  end

  @doc "Opens a session under `name` on the server of these options."
  @spec open_session(map()) :: {:ok, PyPort.Session.t()} | {:error, Error.t()}
  def open_session(%{timeout: timeout} = options), do: open_session(options, deadline(timeout))

  defp open_session(%{timeout: timeout} = options, deadline) do
    place = options.server || PyPort.Default

    with {:ok, connection} <- Locator.connection(place, deadline) do
      <<number::64>> = id = Connection.next_id(connection)
      name = Integer.to_string(number)
      # Known to the server before it is known to Python: whatever ends its opener from here on closes it.
      GenServer.cast(connection.owner, {:property, {:session_opened, name, options[:opener] || self()}})

      case exchange(
             connection,
             id,
             Wire.open_session(id, name),
             remaining(deadline),
             deadline,
             timeout,
             nil,
             nil
           ) do
        {:ok, _nil} ->
          {:ok, %PyPort.Session{server: connection.owner, name: name}}

        :not_sent ->
          GenServer.cast(connection.owner, {:property, {:session_closed, name}})

          if Locator.again?(place, deadline),
            do: open_session(options, deadline),
            else: Locator.not_taken(place)

        {_error_or_unread, error} ->
          close_session(connection.owner, connection, name)
          {:error, error}
      end
    else
      {:elsewhere, node, server} -> Remote.open_session(node, server, options, deadline)
      {:error, error} -> {:error, error}
    end
  end

  @spec close_session(pid(), Connection.t(), String.t()) :: :ok
  def close_session(owner, connection, name) do
    Connection.command(connection, Wire.close_session(name))
    GenServer.cast(owner, {:property, {:session_closed, name}})
  end

  # --- what is sent ---------------------------------------------------------------------------

  @spec draft_eval(String.t() | PyPort.Code.t(), map()) :: draft()
  def draft_eval(code, globals) do
    {globals, found} =
      if Wire.small?(globals), do: {globals, Values.none()}, else: Values.scan(globals, Values.none())

    %{verb: :eval, body: {nil, code(code), globals}, small?: Wire.small?(globals), target: nil, found: found}
  end

  @spec draft_call(target(), list(), map()) :: draft()
  def draft_call(target, args, kwargs) do
    small? = Wire.small?(args) and Wire.small?(kwargs)

    {args, kwargs, found} =
      if small? do
        {args, kwargs, Values.none()}
      else
        {args, found} = Values.scan(args, Values.none())
        {kwargs, found} = Values.scan(kwargs, found)
        {args, kwargs, found}
      end

    body = {nil, target, args, kwargs}
    %{verb: :call, body: body, small?: small?, target: target_object(target), found: found}
  end

  defp code(%PyPort.Code{source: source, file: file, line: line}), do: {:code, source, file, line}
  defp code(source), do: source

  defp target_object(%Object{} = object), do: object
  defp target_object({%Object{} = object, _attribute}), do: object
  defp target_object(_name), do: nil

  @spec frame(draft(), Connection.t(), Wire.id(), map()) :: iodata()
  def frame(%{verb: verb, body: body, small?: small?}, connection, id, options) do
    Wire.request(verb, id, put_elem(body, 0, wire_options(options, Callbacks.parent(connection))), small?)
  end

  # The plain request first, which has at most these two.
  defp wire_options(%{session: nil, return: :value} = options, nil), do: plain_options(options)

  defp wire_options(%{session: session, return: return} = options, parent) do
    options = plain_options(options)
    options = if session, do: Map.put(options, :session, session.name), else: options
    options = if return == :value, do: options, else: Map.put(options, :return, return)
    if parent, do: Map.put(options, :parent, parent), else: options
  end

  # A stream's timeout is for each of its items, so there is no deadline to tell.
  defp plain_options(%{credit: credit, binary_as: as}), do: %{stream: true, credit: credit, binary_as: as}
  defp plain_options(%{timeout: :infinity, binary_as: :str}), do: %{}
  defp plain_options(%{timeout: timeout, binary_as: :str}), do: %{deadline_ms: timeout}
  defp plain_options(%{timeout: :infinity, binary_as: as}), do: %{binary_as: as}
  defp plain_options(%{timeout: timeout, binary_as: as}), do: %{deadline_ms: timeout, binary_as: as}

  @doc "What stands in the row of a request beyond what each has."
  @spec extra(map(), Callbacks.context() | nil) :: Connection.extra()
  def extra(%{stdout: nil, stderr: nil}, nil), do: nil
  def extra(%{stdout: nil, stderr: nil}, _context), do: %{devices: nil, functions?: true}

  def extra(%{stdout: stdout, stderr: stderr}, context),
    do: %{devices: {stdout, stderr}, functions?: context != nil}

  @doc "What calls of the functions among the values of a request have to know; nil where there are none."
  @spec context(Values.found(), Wire.id(), caller :: pid()) :: Callbacks.context() | nil
  def context(%{funs: []}, _id, _caller), do: nil
  def context(%{funs: funs}, id, caller), do: Callbacks.context(id, funs, caller)

  # --- sending --------------------------------------------------------------------------------

  # The request that is asked for a million times: a few plain values, no handle and no function among them. It is
  # `run/2` with nothing in it that such a request does not need: where its server is ready, all of the time is left.
  defp run_plain(verb, body, %{timeout: timeout} = options, deadline) do
    place = options.session || options.server || PyPort.Default

    case Locator.ready(place) do
      nil ->
        with {:ok, connection} <- Locator.connection(place, deadline),
             do: run_plain(verb, body, options, deadline, place, connection, remaining(deadline))

      connection ->
        run_plain(verb, body, options, deadline, place, connection, timeout)
    end
  end

  defp run_plain(verb, body, options, deadline, place, connection, left) do
    id = Connection.next_id(connection)
    wire_options = wire_options(options, Callbacks.parent(connection))
    frame = Wire.request(verb, id, put_elem(body, 0, wire_options), true)

    with :ok <- Locator.fits(connection, frame) do
      connection
      |> exchange(id, frame, left, deadline, options.timeout, extra(options, nil), nil)
      |> mine(connection, id, options, place)
    end
  end

  defp run(draft, %{timeout: timeout} = options, deadline) do
    found = draft.found
    place = Locator.place(options, draft.target, found.objects)

    with {:ok, connection} <- Locator.connection(place, deadline),
         :ok <- Locator.belong(found.objects, connection) do
      id = Connection.next_id(connection)
      frame = frame(draft, connection, id, options)

      with :ok <- Locator.fits(connection, frame) do
        context = context(found, id, self())

        connection
        |> exchange(id, frame, remaining(deadline), deadline, timeout, extra(options, context), context)
        |> mine(connection, id, options, place)
      end
    end
  end

  # Alias, row, command, in this order: a reply can only come after the command, and finds the row; so does a death,
  # which can come at any time, by the server's heir.
  defp exchange(connection, id, frame, left, deadline, timeout, extra, context) do
    ref = :erlang.alias()

    case Locator.send_request(connection, {id, ref, self(), extra}, context, frame) do
      :ok ->
        await(ref, connection, id, left, deadline, timeout)

      not_sent ->
        forget(ref)
        not_sent
    end
  end

  defp mine({:ok, _value} = outcome, _connection, _id, _options, _place), do: outcome
  defp mine(:not_sent, _connection, _id, _options, place), do: {:not_sent, place}

  defp mine({:objects, value, ids}, connection, id, options, _place) do
    with :ok <- Ownership.adopt(connection.owner, {:reply, id}, ids, options.owner), do: {:ok, value}
  end

  defp mine({:unread, error}, connection, id, _options, _place) do
    Ownership.disclaim(connection.owner, {:reply, id})
    {:error, error}
  end

  defp mine(outcome, _connection, _id, _options, _place), do: outcome

  # --- waiting --------------------------------------------------------------------------------

  defp await(ref, connection, id, left, deadline, timeout) do
    receive do
      {^ref, frame} when is_binary(frame) ->
        :erlang.unalias(ref)
        outcome(frame)

      # It printed: the answer is whole, its output is on its way to a device.
      {^ref, frame, writer} ->
        flushed(ref, writer, later(deadline, deadline(@flush_ms)))
        forget(ref)
        outcome(frame)

      {:DOWN, ^ref, :process, _owner, reason} ->
        :erlang.unalias(ref)
        {:error, Error.of_exit(reason, id)}
    after
      min(left, @look_ms) -> look_up(ref, connection, id, remaining(deadline), deadline, timeout)
    end
  end

  defp later(:infinity, _deadline), do: :infinity
  defp later(one, other), do: max(one, other)

  # The writer ends without a word where its server does: nobody else knows any more who waits for it.
  defp flushed(ref, writer, deadline) do
    monitor = Process.monitor(writer)

    receive do
      {^ref, :flushed} -> :ok
      {:DOWN, ^monitor, :process, _writer, _reason} -> :ok
    after
      remaining(deadline) -> Output.leave(writer)
    end

    Process.demonitor(monitor, [:flush])
  end

  defp look_up(ref, connection, id, 0, _deadline, timeout), do: timed_out(ref, connection, id, timeout)

  defp look_up(ref, connection, id, left, deadline, timeout) do
    if Process.alive?(connection.owner),
      do: await(ref, connection, id, left, deadline, timeout),
      else: await_news(ref, id)
  end

  # Its heir is just telling why; or was killed with it, and tells nobody.
  defp await_news(ref, id) do
    receive do
      {^ref, frame} when is_binary(frame) -> outcome(frame)
      {^ref, frame, _writer} -> outcome(frame)
      {:DOWN, ^ref, :process, _owner, reason} -> {:error, Error.of_exit(reason, id)}
    after
      @least_patience_ms -> {:error, Error.of_exit(:killed, id)}
    end
  after
    forget(ref)
  end

  # Python is told to end the request, and its row stays until it has: the server sees to that it does, and says so if it
  # need not be waited for. An answer that comes meanwhile is the answer.
  defp timed_out(ref, connection, id, timeout) do
    cancel(connection, id, :timeout)
    patience = patience(connection)
    Remote.late(patience)
    # As long as it is so.
    deadlock = Callbacks.deadlock(connection)
    ref |> await_end(connection, id, timeout, deadline(patience), {nil, nil, nil}) |> explained(deadlock)
  end

  defp explained({:error, %Error{kind: :timeout, begun: begun} = error}, why)
       when begun != true and why != nil,
       do: {:error, %{error | message: error.message <> ". " <> why}}

  defp explained(outcome, _why), do: outcome

  @doc "How long after its timeout a request has its answer at the latest, in ms."
  @spec patience(Connection.t()) :: pos_integer()
  def patience(connection), do: max(connection.patience, @least_patience_ms)

  @doc "Has a request end: the server is told before Python, whose last word can be quicker than the one who says so."
  @spec cancel(Connection.t(), Wire.id(), PyPort.Server.Cancellation.why()) :: :ok
  def cancel(connection, id, why) do
    GenServer.cast(connection.owner, {:cancel, id, why})
    Connection.command(connection, Wire.cancel(id))
  end

  defp await_end(ref, connection, id, timeout, deadline, so_far) do
    receive do
      {^ref, frame} when is_binary(frame) ->
        forget(ref)
        frame |> outcome() |> late(timeout)

      {^ref, frame, writer} ->
        flushed(ref, writer, deadline(@flush_ms))
        forget(ref)
        frame |> outcome() |> late(timeout)

      # Where it is while it goes on; the answer is still to come.
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

  # The server itself is held up. Nothing is delivered under the reference from here on; what was is the answer.
  defp give_up(ref, connection, id, timeout, {begun, stack, culprit}) do
    :erlang.unalias(ref)

    receive do
      {^ref, frame} when is_binary(frame) ->
        frame |> outcome() |> late(timeout)

      {^ref, frame, writer} ->
        Output.leave(writer)
        drain(ref)
        frame |> outcome() |> late(timeout)
    after
      0 ->
        GenServer.cast(connection.owner, {:gave_up, id})
        drain(ref)
        {:error, Error.timeout(timeout, begun, stack, culprit)}
    end
  end

  # What Python says of a request that it was told to end.
  defp late({:error, %Error{kind: :cancelled} = error}, timeout), do: {:error, Error.timeout(timeout, error)}
  defp late(outcome, _timeout), do: outcome

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

  @typedoc """
  `:objects` where handles are inside, which have no owner yet; `:unread` where handles may be in a frame that
  cannot be read.
  """
  @type raw_outcome :: outcome() | {:objects, term(), [pos_integer()]} | {:unread, Error.t()}

  @doc false
  @spec outcome(binary()) :: raw_outcome()
  def outcome(frame) do
    case Wire.scalar(frame) do
      {:ok, _value} = outcome -> outcome
      :other -> outcome_of(Wire.decode(frame))
    end
  end

  defp outcome_of({:ok, {_ok_or_yield, _id, value, ids}}) when is_list(ids), do: {:objects, value, ids}
  defp outcome_of({:ok, {:error, _id, description}}), do: {:error, Error.from_wire(description)}
  defp outcome_of({:ok, {_ok_or_yield, _id, value}}), do: {:ok, value}

  defp outcome_of({:ok, other}),
    do: {:error, %Error{kind: :protocol, message: "an answer of an unknown shape: #{inspect(other)}"}}

  defp outcome_of({:error, why}), do: {:unread, %Error{kind: :decode, message: why, begun: true}}
end
