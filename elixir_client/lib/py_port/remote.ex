defmodule PyPort.Remote do
  # Requests to servers of other nodes. There a process stands in for the caller: it asks as if it had been called there,
  # and what belongs to a caller (who owns objects, whose functions are called, where it prints) leads back. How
  # processes start on other nodes, and how it shows that a node has gone, is Erlang's distribution's.
  #
  # The first part runs on the caller's node, the second on the other one.
  @moduledoc false

  import PyPort.Error, only: [unavailable: 1]
  import PyPort.Locator, only: [deadline: 1, remaining: 1]

  alias PyPort.{Callbacks, Error, Request}
  alias PyPort.Server.Ownership

  # The other node keeps the time. Its answer may be on its way for so long after that; a node that is stopped, or cut
  # off, is waited for no longer.
  @way_ms 250

  # How long an errand may take, which has no timeout of its caller's.
  @errand_ms 2_000

  @home {__MODULE__, :home}

  @typedoc """
  The caller, as the process that stands in for it needs to know it. `ref` is an alias of the caller's, which is told when the
  request is being ended, see `late/1`.
  """
  @type home :: %{caller: pid(), callers: [pid()], logger_metadata: map(), ref: reference()}

  # --- on the caller's node -----------------------------------------------------------------------

  @doc "Asks on `node`; `server` is what to name there, nil where a session or an object leads the way."
  @spec ask(node(), GenServer.server() | nil, Request.asked(), map(), integer() | :infinity) ::
          Request.outcome()
  def ask(node, server, asked, options, deadline) do
    {owner, heir} = owner(options)
    options = options |> there(server, deadline) |> Map.put(:owner, {owner, heir})

    with {:ok, {outcome, adopted}} <- call(node, :serve, [asked, options], deadline) do
      if heir || owner == self(),
        do: Enum.each(adopted, fn {whose, ids} -> Ownership.note_in_scope(whose, ids) end)

      outcome
    end
  end

  @spec open_session(node(), GenServer.server(), map(), integer() | :infinity) ::
          {:ok, PyPort.Session.t()} | {:error, Error.t()}
  def open_session(node, server, options, deadline) do
    options =
      options |> Map.put(:opener, self()) |> Map.merge(%{server: server, timeout: remaining(deadline)})

    with {:ok, outcome} <- call(node, :serve_session, [options], deadline), do: outcome
  end

  @doc "Starts a stream on `node` whose consumer is the calling process."
  @spec open_stream(node(), GenServer.server() | nil, Request.draft(), map(), integer() | :infinity) ::
          {:ok, PyPort.Stream.opened()} | {:error, Error.t()}
  def open_stream(node, server, draft, options, deadline) do
    # Each item has the whole timeout for itself.
    options = %{there(options, server, deadline) | timeout: options.timeout}

    with {:ok, outcome} <- call(node, :serve_stream, [draft, options], deadline), do: outcome
  end

  @doc "Calls a function of PyPort on `node`, for what is not a request: its value, or an error."
  @spec errand(node(), atom(), list()) :: {:ok, term()} | {:error, Error.t()}
  def errand(node, function, args),
    do: call(node, PyPort, function, args, :erlang.alias(), deadline(@errand_ms - @way_ms))

  @doc "Time that an answer of another node has beyond the timeout, in ms."
  @spec way_ms() :: pos_integer()
  def way_ms, do: @way_ms

  # Names of devices are this node's.
  defp there(options, server, deadline) do
    %{
      options
      | server: server,
        timeout: remaining(deadline),
        stdout: device(options.stdout),
        stderr: device(options.stderr)
    }
  end

  defp device(:stdio), do: Process.group_leader()
  defp device(:stderr), do: Process.whereis(:standard_error)
  defp device(nil), do: nil
  defp device(name) when is_atom(name), do: Process.whereis(name)
  defp device(pid), do: pid

  defp owner(%{owner: nil}), do: Ownership.default_owner()
  defp owner(%{owner: owner}), do: {owner, nil}

  defp here(ref) do
    metadata = with :undefined <- :logger.get_process_metadata(), do: %{}
    %{caller: self(), callers: Process.get(:"$callers", []), logger_metadata: metadata, ref: ref}
  end

  defp call(node, function, args, deadline) do
    ref = :erlang.alias()
    call(node, __MODULE__, function, args ++ [here(ref)], ref, deadline)
  end

  # By a process of its own: to send to a node that does not read holds up the sender, however long.
  defp call(node, module, function, args, ref, deadline) do
    timeout = remaining(deadline)
    sender = spawn(fn -> send(ref, {ref, attempt(node, module, function, args)}) end)

    case await(ref, deadline, add(deadline, @way_ms)) do
      {:raise, error, stacktrace} ->
        reraise error, stacktrace

      :timeout ->
        Process.exit(sender, :kill)
        {:error, %Error{kind: :timeout, message: "no answer from the node #{node} within #{timeout} ms"}}

      outcome ->
        outcome
    end
  end

  defp await(ref, deadline, until) do
    receive do
      {^ref, {:late, ms}} ->
        await(ref, deadline, add(deadline, ms + @way_ms))

      {^ref, outcome} ->
        :erlang.unalias(ref)
        outcome
    after
      remaining(until) ->
        :erlang.unalias(ref)

        receive do
          {^ref, {:late, _ms}} -> :timeout
          {^ref, outcome} -> outcome
        after
          0 -> :timeout
        end
    end
  end

  defp add(:infinity, _ms), do: :infinity
  defp add(deadline, ms), do: deadline + ms

  defp attempt(node, module, function, args) do
    {:ok, :erpc.call(node, module, function, args, :infinity)}
  catch
    :error, {:erpc, reason} ->
      {:error, unreachable(node, reason)}

    :error, {:exception, :undef, [{^module, ^function, _args, _place} | _rest]} ->
      {:error,
       unavailable(
         "there is no PyPort on the node #{node}, or not the same version as here: add it to that node, too"
       )}

    # Of the caller's making, as it would have been here.
    :error, {:exception, %ArgumentError{} = error, stacktrace} ->
      {:raise, error, stacktrace}

    _kind, reason ->
      {:error,
       %Error{
         kind: :exited,
         message: "the request ended on the node #{node}: #{Exception.format_exit(reason)}"
       }}
  end

  defp unreachable(node, _reason) when node() == :nonode@nohost do
    unavailable(
      "the node #{node} cannot be reached, since this one is not part of a cluster: start it with a name " <>
        "(--sname or --name)"
    )
  end

  # Whether it was never there or has just gone makes no difference to how this is told.
  defp unreachable(node, _noconnection) do
    %Error{
      kind: :unavailable,
      message:
        "the node #{node} cannot be reached, or went down before it answered; whether the request had begun is not known"
    }
  end

  # --- on the other node ----------------------------------------------------------------------------

  @doc false
  @spec serve(Request.asked(), map(), home()) :: {Request.outcome(), [{{pid(), pid()}, [pos_integer()]}]}
  def serve(asked, options, home) do
    stand_in(home)
    Ownership.collect(fn -> Request.ask(asked, options) end)
  end

  @doc false
  @spec serve_session(map(), home()) :: {:ok, PyPort.Session.t()} | {:error, Error.t()}
  def serve_session(options, home) do
    stand_in(home)
    Request.open_session(options)
  end

  @doc false
  @spec serve_stream(Request.draft(), map(), home()) :: {:ok, PyPort.Stream.opened()} | {:error, Error.t()}
  def serve_stream(draft, options, home) do
    stand_in(home)
    PyPort.Stream.open(draft, options, home.caller)
  end

  defp stand_in(%{caller: caller, callers: callers, logger_metadata: metadata} = home) do
    # Its group leader is the caller's from birth.
    Process.put(@home, home)
    Process.put(:"$callers", [caller | callers])
    if metadata != %{}, do: :logger.set_process_metadata(metadata)
    die_with(caller)
  end

  # What is over by then is not worth a monitor across nodes, which costs two messages on the wire.
  @short_ms 50

  # What nobody waits for any more ends here, and its request with it.
  defp die_with(process) do
    me = self()

    spawn(fn ->
      mine = Process.monitor(me)

      receive do
        {:DOWN, ^mine, :process, _pid, _reason} -> :ok
      after
        @short_ms ->
          theirs = Process.monitor(process)

          receive do
            {:DOWN, ^theirs, :process, _pid, _reason} -> Process.exit(me, :kill)
            {:DOWN, ^mine, :process, _pid, _reason} -> :ok
          end
      end
    end)
  end

  @doc "For whom the process whose dictionary `get` looks into stands in, if it does for anybody."
  @spec home((term() -> term())) :: home() | nil
  def home(get), do: get.(@home)

  @doc "Tells the caller at home, if this process stands in for one, that its time is up and its answer comes `ms` later at most."
  @spec late(non_neg_integer()) :: :ok
  def late(ms) do
    with %{ref: ref} <- Process.get(@home), do: send(ref, {ref, {:late, ms}})
    :ok
  end

  @doc "Whether this process stands in for one of another node: what it asks for is not sent on to a third."
  @spec stands_in?() :: boolean()
  def stands_in?, do: Process.get(@home) != nil

  # --- functions of the caller ------------------------------------------------------------------------

  @doc """
  Calls a function of the caller on the caller's node, for the worker that Python's call has here.

  Among the `$callers` there this worker comes after the caller: so a request that the function makes is seen, here
  again, to belong to Python's call.
  """
  @spec call_home(home(), fun(), list()) :: {:ok, term()} | {:error, map()}
  def call_home(%{caller: caller, callers: callers, logger_metadata: metadata}, fun, args) do
    callers = [caller, self() | callers]
    :erpc.call(node(caller), __MODULE__, :apply_at_home, [fun, args, self(), callers, metadata])
  end

  @doc false
  @spec apply_at_home(fun(), list(), pid(), [pid()], map()) :: {:ok, term()} | {:error, map()}
  def apply_at_home(fun, args, worker, callers, metadata) do
    Process.put(:"$callers", callers)
    if metadata != %{}, do: :logger.set_process_metadata(metadata)
    die_with(worker)
    Callbacks.attempt(fn -> {:ok, apply(fun, args)} end)
  end
end
