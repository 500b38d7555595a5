defmodule PyPort.Callbacks do
  # Calls from Python into the BEAM. Each runs in a worker of its own, which the server spawns and links to (see
  # PyPort.Server.Requests). A function that Python is given is a row of the server's table, which the caller writes before
  # it asks: so it does not pass through the server. The row stays until Python no longer holds the function.
  #
  # A worker writes its own answer to the port, so that a large one is not copied on its way.
  @moduledoc false

  alias PyPort.{
    Allow,
    Connection,
    Error,
    Libraries,
    Output,
    Ownership,
    Registry,
    Remote,
    StatusPage,
    Values,
    Wire
  }

  # How many processes `parent/1` looks at on the way to the one that serves a call.
  @most_steps 8

  @dropped "there is a function of Elixir in the value that Python does not hold any more: read the items of a stream while the " <>
             "code that made them holds it"

  # --- for the caller and the server ----------------------------------------------------------

  # The caller of a request, as its calls see it: `{caller, group leader, $callers, Logger's metadata, home}`; `home` is
  # where the functions are called, if not here.
  @type context :: {pid(), pid(), [pid()], map(), Remote.home() | nil}
  @type row :: {{:function, pos_integer()}, fun(), context()}

  # Rows for the functions of a request of `caller`. For the caller itself, or the process that stands in for it.
  @spec rows([{pos_integer(), fun()}], pid()) :: [row()]
  def rows([], _caller), do: []

  def rows(funs, caller) do
    context = context(caller, Process.group_leader(), &Process.get/1)
    for {number, fun} <- funs, do: {{:function, number}, fun, context}
  end

  # Keeps them where calls find them. Python has not heard of them yet.
  @spec keep(Connection.t(), [row()] | tuple()) :: boolean()
  def keep(_connection, []), do: true

  def keep(connection, rows) do
    :ets.insert(connection.calls, rows)
  rescue
    ArgumentError -> false
  end

  # Drops functions that Python does not hold any more, or that have not reached it.
  @spec drop(Connection.t(), [row() | pos_integer()]) :: :ok
  def drop(connection, rows) do
    Enum.each(rows, fn
      {{:function, number}, _fun, _context} -> forget(connection, {:function, number})
      number -> forget(connection, {:function, number})
    end)
  end

  # Puts the functions back for the callbacks in a value of Python's, if there are any. The reader's own functions are known to
  # it; others, which were in answers to Python, are asked of the server, also on another node.
  @spec restore(pid(), term(), [integer()], [row()]) :: {:ok, term()} | {:error, Error.t()}
  def restore(owner, value, ids, rows \\ []) do
    own = functions(rows)
    numbers = for id <- ids, id < 0, do: -1 - id

    with {:ok, others} <- find(owner, Enum.reject(numbers, &is_map_key(own, &1))) do
      found = Map.merge(own, others)

      if Enum.all?(numbers, &is_map_key(found, &1)),
        do: {:ok, Values.restore(value, found)},
        else: {:error, Error.new(:decode, @dropped, begun: true)}
    end
  end

  defp functions(rows), do: for({{:function, number}, fun, _context} <- rows, into: %{}, do: {number, fun})

  defp find(_owner, []), do: {:ok, %{}}
  defp find(owner, numbers) when node(owner) == node(), do: {:ok, known(owner, numbers)}
  defp find(owner, numbers), do: Remote.errand(node(owner), __MODULE__, :known, [owner, numbers])

  # The functions with these numbers that a server of this node keeps.
  @spec known(pid(), [pos_integer()]) :: %{pos_integer() => fun()}
  def known(owner, numbers) do
    case Registry.fetch(owner) do
      {:ok, %Connection{} = connection} ->
        numbers |> Enum.map(&row(connection, &1)) |> Enum.filter(& &1) |> functions()

      _ended ->
        %{}
    end
  end

  defp row(connection, number) do
    List.first(:ets.lookup(connection.calls, {:function, number}))
  rescue
    ArgumentError -> nil
  end

  # Forgets what `keep/2` has kept; of a worker, that it serves a call.
  @spec forget(Connection.t(), Wire.id() | pid() | {:function, pos_integer()}) :: true
  def forget(connection, id) do
    :ets.delete(connection.calls, id)
  rescue
    ArgumentError -> true
  end

  # The requests whose contexts are kept.
  @spec kept(Connection.t()) :: [Wire.id()]
  def kept(%{calls: calls}), do: :ets.select(calls, [{{:"$1", :context, :_}, [], [:"$1"]}])

  # Starts a worker for a call of the request `id`, whose caller is `caller`. It is linked to this process.
  @spec start(Connection.t(), Wire.maybe_id(), Wire.id(), pid(), binary()) :: pid()
  def start(connection, id, call_id, caller, frame),
    do: spawn_link(fn -> work(connection, id, call_id, caller, frame) end)

  # A worker has ended: without an answer of it, Python is told why. It may have ended in good order without one.
  @spec ended(Connection.t(), pid(), Wire.id(), term()) :: :ok
  def ended(connection, worker, call_id, reason) do
    if :ets.take(connection.calls, worker) != [] or reason != :normal,
      do: answer(connection, call_id, died(reason)),
      else: :ok
  end

  # Ends a worker, and answers its call.
  @spec stop(Connection.t(), pid(), Wire.id()) :: :ok
  def stop(connection, worker, call_id) do
    Process.exit(worker, :kill)
    answer(connection, call_id, request_over())
  end

  # Whether handles are among the arguments: they are listed behind them.
  @spec objects?(binary()) :: boolean()
  def objects?(<<131, 104, arity, _rest::binary>>), do: arity > 5

  # The answer to a call of a request that is over.
  @spec too_late(Wire.id()) :: iodata()
  def too_late(call_id), do: Wire.answer(call_id, request_over())

  # The call on whose behalf this process works, if it is one of this server's. Python runs such a request on top of the one
  # that waits for the call.
  #
  # This process serves the call itself; or its `$callers`, or the process that has spawned it, lead to one that does; or a
  # process of these kinds waits for this one in a `GenServer.call/3`.
  @spec parent(Connection.t()) :: Wire.id() | nil
  # Each request asks, and few servers have a call that is being served.
  def parent(connection) do
    if Connection.serving?(connection) do
      calls = connection.calls
      callers = [self() | List.wrap(Process.get(:"$callers"))]
      first_call(callers, calls) || call_behind(self(), calls, @most_steps)
    end
  end

  defp call_behind(_pid, _calls, 0), do: nil

  defp call_behind(pid, calls, steps) do
    info = Process.info(pid, [:parent, :monitored_by]) || []

    Enum.find_value([info[:parent] | Enum.filter(info[:monitored_by] || [], &waits_for?(&1, pid))], fn
      behind when is_pid(behind) and node(behind) == node() ->
        first_call([behind], calls) || call_behind(behind, calls, steps - 1)

      _none_or_remote ->
        nil
    end)
  end

  # With monitors on others it may be one of those that it waits for.
  defp waits_for?(watcher, pid) when is_pid(watcher) and node(watcher) == node() do
    case Process.info(watcher, [:current_function, :monitors]) do
      [current_function: {:gen, :do_call, 4}, monitors: [process: ^pid]] -> true
      _other -> false
    end
  end

  defp waits_for?(_port_or_remote, _pid), do: false

  defp first_call([], _calls), do: nil

  defp first_call([pid | rest], calls) do
    case :ets.lookup(calls, pid) do
      [{_pid, call_id, _id}] -> call_id
      [] -> first_call(rest, calls)
    end
  rescue
    ArgumentError -> nil
  end

  # A sentence about the callback that may keep a request waiting: one of the request that Python runs, which may in turn be
  # waiting for this request, in a way that `parent/1` does not see.
  @spec deadlock(Connection.t()) :: String.t() | nil
  def deadlock(connection) do
    with true <- Connection.serving?(connection),
         %{running: running} when running != nil <- StatusPage.read(connection.dir),
         [worker | _more] <- :ets.select(connection.calls, [{{:"$1", :_, running}, [], [:"$1"]}]) do
      <<number::64>> = running

      "This server is waiting for a callback of request #{number} (#{inspect(worker)}). If that one waits for this request, " <>
        "neither can go on: let the callback ask by itself, in a Task, or in a GenServer.call"
    else
      _nothing -> nil
    end
  rescue
    ArgumentError -> nil
  end

  # --- the caller, as its calls see it --------------------------------------------------------

  defp context(caller, group_leader, get) do
    {caller, group_leader, List.wrap(get.(:"$callers")), get.(:"$logger_metadata$") || %{}, Remote.home(get)}
  end

  # For calls by name: kept for the next one.
  defp context_of(connection, id, caller) do
    case :ets.lookup(connection.calls, id) do
      [{_id, :context, context}] ->
        context

      [] ->
        dictionary = dictionary(caller)

        context =
          context(
            caller,
            Output.group_leader(caller),
            &(dictionary |> List.keyfind(&1, 0, {nil, nil}) |> elem(1))
          )

        keep(connection, {id, :context, context})
        context
    end
  end

  defp dictionary(caller) do
    case node(caller) == node() && Process.info(caller, :dictionary) do
      {:dictionary, dictionary} -> dictionary
      _dead_or_remote -> []
    end
  end

  # --- the worker -----------------------------------------------------------------------------

  defp work(connection, id, call_id, caller, frame) do
    # The row goes with the answer: a worker that ends without one leaves it.
    :ets.insert(connection.calls, {self(), call_id, id})
    write_answer(connection, call_id, outcome(frame, call_id, connection, {id, caller}))
    forget(connection, self())
  end

  defp put_context({caller, group_leader, callers, metadata, _home}) do
    Process.group_leader(self(), group_leader)
    Process.put(:"$callers", [caller | callers])
    if metadata != %{}, do: :logger.set_process_metadata(metadata)
  end

  defp answer(connection, call_id, outcome), do: Connection.command(connection, Wire.answer(call_id, outcome))

  defp write_answer(connection, call_id, outcome) do
    {how, {value, found}} = scanned(outcome)
    rows = rows(found.funs, self())
    keep(connection, rows)
    frame = Wire.answer(call_id, {how, value})
    bytes = :erlang.iolist_size(frame)

    if bytes > connection.max_frame_bytes do
      drop(connection, rows)

      message =
        "the result takes #{bytes} bytes, the limit is #{connection.max_frame_bytes} (max_frame_bytes)"

      answer(connection, call_id, error(message))
    else
      Connection.command(connection, frame)
    end
  end

  defp scanned({:encoded, value}), do: {:ok, Values.scan(value, Values.none_of_encoded())}

  defp scanned({how, value}) do
    case attempt(fn -> {how, Values.scan(value, Values.none())} end) do
      {:error, %{} = raised} -> {:error, {raised, Values.none()}}
      scanned -> scanned
    end
  end

  defp outcome(frame, call_id, connection, from) do
    case Wire.decode(frame) do
      {:ok, {:invoke, _id, _call_id, function, args}} ->
        run(function, args, connection, from)

      {:ok, {:invoke, _id, _call_id, function, args, ids}} ->
        with {:ok, args} <- Libraries.load(args, ids),
             {:ok, args} <- restore(connection.owner, args, ids) do
          # They live as long as the call: a process that is called a million times must not collect them.
          Ownership.take_over(connection.owner, {:call, call_id}, ids, self())
          run(function, args, connection, from)
        else
          {:error, error} ->
            Ownership.disclaim(connection.owner, {:call, call_id})
            error(error.message)
        end

      {:ok, _other} ->
        error("a call of an unknown shape")

      {:error, why} ->
        if objects?(frame), do: Ownership.disclaim(connection.owner, {:call, call_id})
        error("the arguments cannot be read: #{why}")
    end
  end

  defp run(function, args, connection, from) when is_list(args) do
    attempt(fn ->
      case resolve(function, length(args), connection, from) do
        {:ok, fun, {_caller, _group_leader, _callers, _metadata, home} = context} ->
          put_context(context)

          if home != nil and is_integer(function),
            do: Remote.call_home(home, __MODULE__, :apply_at_home, [fun, args]),
            else: {:ok, apply(fun, args)}

        {:refused, message} ->
          error(:refused, message)
      end
    end)
  end

  defp run(_function, args, _connection, _from),
    do: error("the arguments must be a list, got: #{inspect(args)}")

  @spec apply_at_home(fun(), list()) :: {:encoded, term()} | {:error, map()}
  def apply_at_home(fun, args), do: attempt(fn -> {:encoded, Values.encoded(apply(fun, args))} end)

  # The outcome of `call`, or what went wrong in it, as Python is told.
  defp attempt(call) do
    call.()
  rescue
    # The message of a PyPort.Error is Python's own report: so both ends of a nested failure are told.
    exception -> raised(:error, inspect(exception.__struct__), Exception.message(exception), __STACKTRACE__)
  catch
    :exit, reason -> raised(:exit, "exit", Exception.format_exit(reason), __STACKTRACE__)
    :throw, value -> raised(:throw, "throw", inspect(value), __STACKTRACE__)
  end

  defp resolve(number, arity, connection, _from) when is_integer(number) do
    case row(connection, number) do
      {_key, fun, context} when is_function(fun, arity) ->
        {:ok, fun, context}

      {_key, fun, _context} ->
        # The error that Elixir would raise here.
        raise BadArityError, function: fun, args: List.duplicate(:_, arity)

      nil ->
        {:refused, "Python was given no function of the number #{number}, or has dropped it"}
    end
  end

  defp resolve({module, function}, arity, connection, {id, caller})
       when is_binary(module) and is_binary(function) do
    [{:allow, allow}] = :ets.lookup(connection.calls, :allow)

    with {:ok, fun} <- Allow.find(allow, module, function, arity),
         do: {:ok, fun, context_of(connection, id, caller)}
  end

  defp resolve(other, _arity, _connection, _from), do: {:refused, "this is no function: #{inspect(other)}"}

  # --- what went wrong ------------------------------------------------------------------------

  defp error(kind \\ :error, message), do: raised(kind, "PyPort.Error", message, [])

  # As Python gets it, without the frames of this module, which every call has.
  defp raised(kind, type, message, stacktrace) do
    own = Enum.take_while(stacktrace, fn entry -> elem(entry, 0) != __MODULE__ end)
    text = if own == [], do: "", else: Exception.format_stacktrace(own)
    {:error, %{kind: kind, type: type, message: message, stacktrace: text}}
  end

  defp died(reason),
    do: raised(:exit, "exit", "the process that served the call ended: #{Exception.format_exit(reason)}", [])

  defp request_over, do: error(:noproc, "the request that this call belongs to is over")
end
