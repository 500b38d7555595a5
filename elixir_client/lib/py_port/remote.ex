defmodule PyPort.Remote do
  # Requests to servers of other nodes. A process of the other node stands in for the caller: it asks as if it had been
  # called there, and what belongs to a caller (who owns objects, whose functions are called, where it prints) leads back.
  # Erlang's distribution starts that process, and tells when the node has gone.
  @moduledoc false

  import PyPort.Deadline, only: [deadline: 1, remaining: 1]
  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{Deadline, Error}

  # The other node keeps the time. Its answer may be on its way for so long after that; a node that is stopped, or cut
  # off, is waited for no longer.
  @way_ms 250

  # How long an errand may take, which has no timeout of its caller's.
  @errand_ms 2_000

  @home {__MODULE__, :home}

  # The caller, as the process that stands in for it needs to know it. `ref` is an alias of the caller's, which is told when the
  # request is being ended, see `late/1`.
  @type home :: %{caller: pid(), callers: [pid()], logger_metadata: map(), ref: reference()}

  # --- on the caller's node -----------------------------------------------------------------------

  # Calls a function on `node`, in a process that stands in for the calling one: its value, or an error.
  @spec call(node(), module(), atom(), list(), Deadline.t()) :: {:ok, term()} | {:error, Error.t()}
  def call(node, module, function, args, deadline) do
    ref = :erlang.alias()
    metadata = with :undefined <- :logger.get_process_metadata(), do: %{}
    home = %{caller: self(), callers: Process.get(:"$callers", []), logger_metadata: metadata, ref: ref}
    callers = [self() | home.callers]

    what = {__MODULE__, :serve, [{module, function, args}, self(), callers, metadata, home]}
    call(node, what, ref, deadline)
  end

  # Calls a function on `node` for what is not a request: its value, or an error.
  @spec errand(node(), module(), atom(), list()) :: {:ok, term()} | {:error, Error.t()}
  def errand(node, module, function, args),
    do: call(node, {module, function, args}, :erlang.alias(), deadline(@errand_ms - @way_ms))

  # Time that an answer of another node has beyond the timeout, in ms.
  @spec way_ms() :: pos_integer()
  def way_ms, do: @way_ms

  # The options of a request as `node` needs them: names of devices belong to the caller's node.
  @spec options(map(), GenServer.server() | nil, Deadline.t()) :: map()
  def options(options, server, deadline) do
    %{
      options
      | server: server,
        timeout: remaining(deadline),
        on_progress: report(options.on_progress),
        stdout: device(options.stdout),
        stderr: device(options.stderr)
    }
  end

  defp report(fun) when is_function(fun) do
    raise ArgumentError,
          "option :on_progress is a function, and the server is on another node: give {pid, reference}, and receive " <>
            "{reference, :progress, map}"
  end

  defp report(report), do: report

  defp device(:stdio), do: Process.group_leader()
  defp device(:stderr), do: Process.whereis(:standard_error)
  defp device(nil), do: nil
  defp device(name) when is_atom(name), do: Process.whereis(name)
  defp device(pid), do: pid

  # By a process of its own: to send to a node that does not read holds up the sender, however long.
  defp call(node, what, ref, deadline) do
    timeout = remaining(deadline)
    sender = spawn(fn -> send(ref, {ref, attempt(node, what)}) end)

    case await(ref, deadline, add(deadline, @way_ms)) do
      {:raise, error, stacktrace} ->
        reraise error, stacktrace

      :timeout ->
        Process.exit(sender, :kill)
        {:error, Error.new(:timeout, "no answer from the node #{node} within #{timeout} ms")}

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

  defp attempt(node, {module, function, args}) do
    {:ok, :erpc.call(node, module, function, args, :infinity)}
  catch
    :error, {:erpc, _noconnection} ->
      {:error, unreachable(node)}

    :error, {:exception, :undef, [{^module, ^function, _args, _place} | _rest]} ->
      why = "there is no PyPort on the node #{node}, or not the same version as here"
      {:error, unavailable("#{why}: add it to that node, too")}

    # The caller made it, as it would have here.
    :error, {:exception, %ArgumentError{} = error, stacktrace} ->
      {:raise, error, stacktrace}

    _kind, reason ->
      {:error, Error.new(:exited, "the request ended on the node #{node}: #{Exception.format_exit(reason)}")}
  end

  defp unreachable(node) when node() == :nonode@nohost do
    unavailable(
      "the node #{node} cannot be reached, since this one is not part of a cluster: start it with a name " <>
        "(--sname or --name)"
    )
  end

  # A node that has never been there, and one that has just gone, look the same.
  defp unreachable(node) do
    Error.new(
      :unavailable,
      "the node #{node} cannot be reached, or went down before it answered; whether the request had begun is not known"
    )
  end

  # --- on the other node ----------------------------------------------------------------------------

  # Calls a function on behalf of a process of another node, `waiting`; with `home` this process stands in for it. The
  # group leader is the caller's from the start.
  @spec serve({module(), atom(), list()}, pid(), [pid()], map(), home() | nil) :: term()
  def serve({module, function, args}, waiting, callers, metadata, home) do
    if home, do: Process.put(@home, home)
    Process.put(:"$callers", callers)
    if metadata != %{}, do: :logger.set_process_metadata(metadata)
    die_with(waiting)
    apply(module, function, args)
  end

  # A shorter request is not worth a monitor across nodes, which costs two messages on the wire.
  @short_ms 50

  # When the waiting process has ended, this one ends as well, and its request with it.
  defp die_with(waiting) do
    me = self()

    spawn(fn ->
      mine = Process.monitor(me)

      receive do
        {:DOWN, ^mine, :process, _pid, _reason} -> :ok
      after
        @short_ms ->
          theirs = Process.monitor(waiting)

          receive do
            {:DOWN, ^theirs, :process, _pid, _reason} -> Process.exit(me, :kill)
            {:DOWN, ^mine, :process, _pid, _reason} -> :ok
          end
      end
    end)
  end

  # For whom a process stands in, if it does; `get` reads its dictionary.
  @spec home((term() -> term())) :: home() | nil
  def home(get), do: get.(@home)

  # Tells the caller at home, if this process stands in for one, that its time is up and its answer comes `ms` later
  # at most.
  @spec late(non_neg_integer()) :: :ok
  def late(ms) do
    with %{ref: ref} <- Process.get(@home), do: send(ref, {ref, {:late, ms}})
    :ok
  end

  # Whether this process stands in for one of another node: its requests are not sent on to a third.
  @spec stands_in?() :: boolean()
  def stands_in?, do: Process.get(@home) != nil

  # Calls a function on the caller's node, for the worker that Python's call has here.
  #
  # Among the `$callers` there this worker comes after the caller: so a request that the function makes is seen, here
  # again, to belong to Python's call.
  @spec call_home(home(), module(), atom(), list()) :: term()
  def call_home(%{caller: caller, callers: callers, logger_metadata: metadata}, module, function, args) do
    waits = [{module, function, args}, self(), [caller, self() | callers], metadata, nil]
    :erpc.call(node(caller), __MODULE__, :serve, waits)
  end
end
