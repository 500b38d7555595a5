defmodule PyPort.Callbacks do
  # Calls from Python into the BEAM. A request that may be called back has one process here, its servant: it keeps
  # the request's functions, runs each call in a worker of its own, ends them all when the caller of the request dies
  # or has its answer, and says so to Python where a worker ended without an answer.
  #
  # A worker writes its own answer to the port, so that a large one is not copied on its way.
  @moduledoc false

  alias PyPort.{Output, Remote, Wire}
  alias PyPort.Server.{Handle, Property}

  # --- for the caller and the server ----------------------------------------------------------

  @doc "Starts a servant for a request of `caller`; `funs` are in the order of their index, last first."
  @spec start(Handle.t(), [fun()], pid()) :: pid()
  def start(handle, funs, caller) do
    # What the caller itself, or who stands in for it, starts inherits from the caller; what the server starts for it
    # has to look.
    known = if caller == self() or Remote.stands_in?(), do: surroundings(Process.get())
    spawn(fn -> serve(handle, funs, caller, known) end)
  end

  @spec stop(pid()) :: :ok
  def stop(servant) do
    send(servant, :stop)
    :ok
  end

  @spec invoke(pid(), Wire.id(), binary()) :: :ok
  def invoke(servant, call_id, frame) do
    send(servant, {:invoke, call_id, frame})
    :ok
  end

  @doc "Whether handles are among the arguments: they are listed behind them."
  @spec objects?(binary()) :: boolean()
  def objects?(<<131, 104, arity, _rest::binary>>), do: arity > 5

  @doc "The answer to a call of a request that is over."
  @spec too_late(Wire.id()) :: iodata()
  def too_late(call_id), do: Wire.answer(call_id, {:error, request_over()})

  @doc """
  The call on whose behalf this process works, if it is one of this server's: it serves the call itself, or its
  `$callers` lead to a process that does. Python runs such a request on top of the one that waits for the call.
  """
  @spec parent(Handle.t()) :: Wire.id() | nil
  def parent(handle) do
    case Process.get(:"$callers") do
      [_ | _] = callers -> if serving?(handle.calls), do: first_call([self() | callers], handle.calls)
      # Whoever serves a call has callers.
      _none -> nil
    end
  end

  # Beside the row of what is allowed. Most processes have callers, and few servers a call that is being served: one look
  # instead of one for each caller.
  defp serving?(calls) do
    case :ets.info(calls, :size) do
      :undefined -> false
      rows -> rows > 1
    end
  end

  defp first_call([], _calls), do: nil

  defp first_call([pid | rest], calls) do
    case :ets.lookup(calls, pid) do
      [{_pid, call_id}] -> call_id
      [] -> first_call(rest, calls)
    end
  rescue
    ArgumentError -> nil
  end

  # --- the servant ----------------------------------------------------------------------------

  defp serve(handle, funs, caller, known) do
    state = %{
      handle: handle,
      funs: funs |> Enum.reverse() |> List.to_tuple(),
      caller: caller,
      # Made when the first call comes: most functions given are called, but not all.
      around: known || surroundings_of(caller),
      group_leader: Output.group_leader(caller),
      down: Process.monitor(caller),
      server_down: Process.monitor(handle.owner),
      # pid -> call id
      workers: %{}
    }

    loop(state)
  end

  defp loop(%{down: down, server_down: server_down} = state) do
    receive do
      {:invoke, call_id, frame} ->
        {worker, _monitor} = spawn_monitor(fn -> work(call_id, frame, state) end)
        loop(put_in(state.workers[worker], call_id))

      :stop ->
        end_workers(state)

      {:DOWN, ^down, :process, _caller, _reason} ->
        end_workers(state)

      {:DOWN, ^server_down, :process, _server, _reason} ->
        for {worker, _call_id} <- state.workers, do: Process.exit(worker, :kill)

      {:DOWN, _monitor, :process, worker, reason} ->
        {call_id, workers} = Map.pop(state.workers, worker)
        forget_call(state.handle, worker)
        if call_id != nil and reason != :normal, do: answer(state.handle, call_id, {:error, ended(reason)})
        loop(%{state | workers: workers})
    end
  end

  # Python may wait for them in a thread of its own; nobody waits for ever.
  defp end_workers(state) do
    for {worker, call_id} <- state.workers do
      Process.exit(worker, :kill)
      forget_call(state.handle, worker)
      answer(state.handle, call_id, {:error, request_over()})
    end

    :ok
  end

  defp answer(handle, call_id, outcome), do: Handle.command(handle, Wire.answer(call_id, outcome))

  defp forget_call(handle, worker) do
    :ets.delete(handle.calls, worker)
  rescue
    ArgumentError -> true
  end

  defp surroundings_of(caller) do
    case node(caller) == node() && Process.info(caller, :dictionary) do
      {:dictionary, dictionary} -> surroundings(dictionary)
      _dead_or_remote -> surroundings([])
    end
  end

  defp surroundings(dictionary) do
    %{
      callers: List.wrap(dictionary[:"$callers"]),
      # Where the functions are called, if not here.
      home: Remote.home(dictionary),
      logger_metadata: dictionary[:"$logger_metadata$"] || %{}
    }
  end

  # --- the worker -----------------------------------------------------------------------------

  defp work(call_id, frame, %{handle: handle} = state) do
    Process.group_leader(self(), state.group_leader)
    Process.put(:"$callers", [state.caller | state.around.callers])
    if state.around.logger_metadata != %{}, do: :logger.set_process_metadata(state.around.logger_metadata)
    :ets.insert(handle.calls, {self(), call_id})
    write_answer(handle, call_id, outcome(frame, call_id, state))
    :ets.delete(handle.calls, self())
  end

  defp write_answer(handle, call_id, outcome) do
    frame = Wire.answer(call_id, outcome)
    bytes = :erlang.iolist_size(frame)

    if bytes > handle.max_frame_bytes do
      message = "the result takes #{bytes} bytes, the limit is #{handle.max_frame_bytes} (max_frame_bytes)"
      answer(handle, call_id, {:error, description(:error, "PyPort.Error", message, "")})
    else
      Handle.command(handle, frame)
    end
  end

  defp outcome(frame, call_id, state) do
    case Wire.decode(frame) do
      {:ok, {:invoke, _id, _call_id, function, args}} ->
        run(function, args, state)

      {:ok, {:invoke, _id, _call_id, function, args, object_ids}} ->
        # They live as long as the call: a process that is called a million times must not collect them.
        Property.adopt(state.handle.owner, {:call, call_id}, object_ids, self())
        run(function, args, state)

      {:ok, _other} ->
        {:error, description(:error, "PyPort.Error", "a call of an unknown shape", "")}

      {:error, why} ->
        if objects?(frame), do: Property.disclaim(state.handle.owner, {:call, call_id})
        {:error, description(:error, "PyPort.Error", "the arguments cannot be read: #{why}", "")}
    end
  end

  defp run(function, args, state) when is_list(args) do
    attempt(fn ->
      case {resolve(function, length(args), state), state.around.home} do
        {{:ok, fun}, home} when home != nil and is_integer(function) -> Remote.call_home(home, fun, args)
        {{:ok, fun}, _home} -> {:ok, apply(fun, args)}
        {{:refused, message}, _home} -> {:error, description(:refused, "PyPort.Error", message, "")}
      end
    end)
  end

  defp run(_function, args, _state) do
    {:error, description(:error, "PyPort.Error", "the arguments must be a list, got: #{inspect(args)}", "")}
  end

  @doc "The outcome of `call`, or what went wrong in it, as Python is told."
  @spec attempt((... -> {:ok, term()} | {:error, map()})) :: {:ok, term()} | {:error, map()}
  def attempt(call) do
    call.()
  rescue
    exception ->
      {
        :error,
        # The message of a PyPort.Error is Python's own report: so both ends of a nested failure are told.
        description(
          :error,
          inspect(exception.__struct__),
          Exception.message(exception),
          stacktrace(__STACKTRACE__)
        )
      }
  catch
    :exit, reason ->
      {:error, description(:exit, "exit", Exception.format_exit(reason), stacktrace(__STACKTRACE__))}

    :throw, value ->
      {:error, description(:throw, "throw", inspect(value), stacktrace(__STACKTRACE__))}
  end

  defp resolve(index, arity, %{funs: funs}) when is_integer(index) do
    if index >= 0 and index < tuple_size(funs) do
      fun = elem(funs, index)

      if is_function(fun, arity) do
        {:ok, fun}
      else
        # What Elixir would say, raised where Elixir would raise it.
        raise BadArityError, function: fun, args: List.duplicate(:_, arity)
      end
    else
      {:refused, "the request has no function number #{index}"}
    end
  end

  defp resolve({module, function}, arity, %{handle: handle}) when is_binary(module) and is_binary(function) do
    [{:allow, allow}] = :ets.lookup(handle.calls, :allow)

    with {:ok, module} <- existing_module(module),
         {:ok, function} <- existing_atom(function),
         true <- allowed?(allow, module, function, arity) do
      {:ok, Function.capture(module, function, arity)}
    else
      _no ->
        name = "#{String.replace_prefix(module, "Elixir.", "")}.#{function}/#{arity}"

        {:refused,
         "#{name} may not be called from Python. What may is said by the server's option :allow, such as " <>
           "allow: [{Enum, :map, 2}, MyApp.Api]; this one's is: #{inspect(allow)}"}
    end
  end

  defp resolve(other, _arity, _state), do: {:refused, "this is no function: #{inspect(other)}"}

  # "Enum" for Enum, "lists" for :lists.
  defp existing_module(<<first, _::binary>> = name) when first in ?A..?Z do
    if String.starts_with?(name, "Elixir."), do: existing_atom(name), else: existing_atom("Elixir." <> name)
  end

  defp existing_module(name), do: existing_atom(name)

  defp existing_atom(name) do
    {:ok, String.to_existing_atom(name)}
  rescue
    ArgumentError -> :error
  end

  defp allowed?(allow, module, function, arity) do
    Enum.any?(allow, fn
      {^module, ^function, ^arity} -> true
      {^module, ^function} -> true
      ^module -> true
      _other -> false
    end)
  end

  # --- what went wrong ------------------------------------------------------------------------

  defp description(kind, type, message, stacktrace),
    do: %{kind: kind, type: type, message: message, stacktrace: stacktrace}

  defp ended(reason) do
    description(
      :exit,
      "exit",
      "the process that served the call ended: #{Exception.format_exit(reason)}",
      ""
    )
  end

  defp request_over do
    description(:noproc, "PyPort.Error", "the request that this call belongs to is over", "")
  end

  # Without the frames of ours that every call has.
  defp stacktrace(stacktrace) do
    stacktrace
    |> Enum.take_while(fn entry -> elem(entry, 0) != __MODULE__ end)
    |> Exception.format_stacktrace()
  end
end
