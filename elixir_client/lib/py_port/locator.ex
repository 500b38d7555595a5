defmodule PyPort.Locator do
  # From what a request names (a server or pool, a session, an object, nothing) to the connection of a server that can take it, and
  # the sending of a request that it takes now. Runs in the caller's process.
  @moduledoc false

  alias PyPort.{Callbacks, Connection, DidYouMean, Error, Object, Registry, Remote, Server, Session}
  alias PyPort.Pool.{Manager, Members}

  @type place :: GenServer.server() | Session.t() | Object.t()

  @doc """
  Where a request goes: to the server that was named, else to that of its session, of the object that is its target, or
  of an object among its values, else to the default one.

  Raises `ArgumentError` where a target lives elsewhere than the server or session that was named with it.
  """
  @spec place(map(), target :: Object.t() | nil, [Object.t()]) :: place()
  def place(%{server: nil, session: nil}, nil, []), do: PyPort.Default
  def place(%{server: nil, session: nil}, nil, objects), do: List.last(objects)
  def place(%{server: nil, session: nil}, target, _objects), do: target

  def place(%{session: %Session{} = session}, target, _objects) do
    same_server!(target, session.server, "session: #{inspect(session)}")
    session
  end

  def place(%{server: server}, nil, []), do: server

  # Of a pool an object knows the server.
  def place(%{server: server}, target, objects) do
    pid = whereis(server)
    object = target || List.last(objects)

    cond do
      # That is looked at there.
      elsewhere?(pid) ->
        server

      pid != nil and Registry.pool_of(Object.server(object)) == pid ->
        object

      true ->
        same_server!(target, pid, "server: #{inspect(server)}")
        server
    end
  end

  defp same_server!(nil, _pid, _given), do: :ok
  # Not running: that is an error of the world, which comes later.
  defp same_server!(_target, nil, _given), do: :ok

  defp same_server!(target, pid, given) do
    Object.server(target) == pid ||
      raise ArgumentError,
            "an object carries its server, and #{inspect(target)} lives on #{inspect(target.server)}, " <>
              "which is not that of #{given}. Leave the option away"
  end

  defp elsewhere?({_name, _node}), do: true
  defp elsewhere?(pid), do: pid != nil and node(pid) != node()

  @typedoc "The node where a server lives, and what to name there: nothing where a session or an object leads the way."
  @type elsewhere :: {:elsewhere, node(), GenServer.server() | nil}

  @doc "The connection of a server that is ready; one that is still starting is waited for until the deadline."
  @spec connection(place(), integer() | :infinity) ::
          {:ok, Connection.t()} | {:error, Error.t()} | elsewhere()
  def connection(%Session{server: owner} = session, deadline) do
    owner |> of_owner(deadline) |> carried() |> gone("the session #{inspect(session)}")
  end

  def connection(%Object{} = object, deadline) do
    object |> Object.server() |> of_owner(deadline) |> carried() |> gone("the object #{inspect(object)}")
  end

  def connection(server, deadline) do
    case whereis(server) do
      pid when is_pid(pid) -> of_owner(pid, deadline)
      {name, node} -> {:elsewhere, node, name}
      nil -> stand_in(server) || {:error, not_running(server)}
    end
  end

  defp carried({:elsewhere, node, _pid}), do: {:elsewhere, node, nil}
  defp carried(result), do: result

  @doc "The connection of a server that is ready, if finding it takes no time at all; else it is for `connection/2` to say."
  @spec ready(place()) :: Connection.t() | nil
  def ready(%Session{server: owner}), do: owner |> Registry.fetch() |> ready_now()
  def ready(%Object{}), do: nil

  def ready(server) do
    case whereis(server) do
      pid when is_pid(pid) -> pid |> Registry.fetch() |> ready_now()
      _elsewhere_or_nil -> nil
    end
  end

  defp ready_now({:ok, %Connection{ready: true} = connection}), do: connection
  # The default pool, mostly: one server, which costs what a server by itself does.
  defp ready_now({:ok, %Members{connections: {connection}, cluster: nil}}), do: connection
  defp ready_now({:ok, %Members{cluster: nil} = members}), do: Members.pick(members)
  defp ready_now(_found), do: nil

  defp of_owner(owner, deadline) do
    found = Registry.fetch(owner)

    case ready_now(found) do
      %Connection{} = connection -> {:ok, connection}
      nil -> not_ready(found, owner, deadline)
    end
  end

  defp not_ready({:ok, %Members{cluster: nil} = members}, _owner, deadline),
    do: await_member(members, deadline)

  defp not_ready({:ok, %Members{cluster: cluster} = members}, _owner, deadline) do
    case Members.pick(members) do
      nil -> stand_in(cluster) || await_member(members, deadline)
      connection -> (Members.full?(connection) && stand_in(cluster)) || {:ok, connection}
    end
  end

  defp not_ready(:not_started, _owner, _deadline), do: {:error, Error.not_started()}
  defp not_ready(_starting, owner, deadline), do: await_ready(owner, deadline)

  # A pool of the same name on another node, any of those that have a server ready. Who came from another node does not
  # go on to a third.
  defp stand_in(name) when is_atom(name) do
    case if(Remote.stands_in?(), do: [], else: Members.elsewhere(name)) do
      [] ->
        nil

      pools ->
        pool = Enum.random(pools)
        {:elsewhere, node(pool), pool}
    end
  end

  defp stand_in(_pid_or_tuple), do: nil

  defp await_member(%{pool: pool, keeper: keeper}, deadline) do
    case Manager.await(keeper, remaining(deadline)) do
      :ok -> of_owner(pool, deadline)
      {:error, error} -> {:error, error}
      :timeout -> {:error, Registry.trouble(pool) || still_starting()}
      :gone -> {:error, Error.unavailable("the pool #{inspect(pool)} is being stopped or restarted")}
    end
  end

  defp still_starting do
    %Error{kind: :timeout, begun: false, message: "no server of the pool was ready when the time was up"}
  end

  # How long a pool may take to hear that one of its servers has ended.
  @pause_ms 1

  @doc """
  Whether a request that a server has not taken may be asked again at the same place, after a moment: where that is a
  pool, and there is time left.
  """
  @spec again?(place(), integer() | :infinity) :: boolean()
  def again?(%_session_or_object{}, _deadline), do: false

  def again?(server, deadline) do
    with pid when is_pid(pid) <- whereis(server),
         {:ok, %Members{}} <- Registry.fetch(pid) do
      Process.sleep(@pause_ms)
      remaining(deadline) > 0
    else
      _no_pool -> false
    end
  end

  @doc "What there is to say where a request was not taken, and cannot be asked again."
  @spec not_taken(place()) :: {:error, Error.t()}
  def not_taken(place) do
    error = {:error, Error.of_exit(:noproc)}

    case place do
      %Session{} -> gone(error, "the session #{inspect(place)}")
      %Object{} -> gone(error, "the object #{inspect(place)}")
      _server -> error
    end
  end

  @doc "The connections of a server, or of those of a pool, that has a Python now, ready or not; nobody is waited for."
  @spec running(GenServer.server()) :: {:ok, [Connection.t()]} | {:error, Error.t()} | elsewhere()
  def running(server) do
    case whereis(server) do
      nil -> {:error, not_running(server)}
      {name, node} -> {:elsewhere, node, name}
      pid when node(pid) != node() -> {:elsewhere, node(pid), pid}
      pid -> running(Registry.fetch(pid), server)
    end
  end

  defp running({:ok, %Members{connections: connections}}, _server) when connections != {},
    do: {:ok, Tuple.to_list(connections)}

  defp running({:ok, %Connection{} = connection}, _server), do: {:ok, [connection]}
  defp running(:not_started, _server), do: {:error, Error.not_started()}

  defp running(_none, server),
    do: {:error, Error.unavailable("the server #{inspect(server)} has no Python running at the moment")}

  # A server that is still starting is worth waiting for; one that could not start says why at once. Any other
  # process would not understand the question, and might die of it.
  defp await_ready(owner, deadline) do
    if node(owner) != node(),
      do: {:elsewhere, node(owner), owner},
      else: await_ready(:proc_lib.translate_initial_call(owner), owner, deadline)
  end

  defp await_ready({Server, :init, 1}, owner, deadline), do: Server.await_ready(owner, remaining(deadline))

  # It is known as one from its start to its end.
  defp await_ready({:supervisor, PyPort.Pool, 1}, owner, _deadline),
    do: {:error, Error.unavailable("the pool #{inspect(owner)} is being stopped")}

  defp await_ready(_other, owner, _deadline) do
    # Of a process that has just ended nothing is known any more.
    if Process.alive?(owner) do
      raise ArgumentError,
            "option :server must be a PyPort.Server or a PyPort.Pool, #{inspect(owner)} is none"
    else
      {:error, Error.of_exit(:noproc)}
    end
  end

  # What lived on a server is not there again when its supervisor has started another.
  defp gone({:error, %Error{kind: :unavailable}}, what) do
    {:error, Error.unavailable("the server of #{what} has ended, and it has ended with it")}
  end

  defp gone(result, _what), do: result

  @doc "Objects among the values of a request, which must be of the server that it goes to."
  @spec belong([Object.t()], Connection.t()) :: :ok | {:error, Error.t()}
  def belong(objects, %Connection{owner: owner}) do
    case Enum.find(objects, &(Object.server(&1) != owner)) do
      nil ->
        :ok

      object ->
        {:error,
         Error.unavailable(
           "#{inspect(object)} belongs to another server (#{inspect(object.server)}) than the one that this " <>
             "request goes to (#{inspect(owner)}); objects cannot move, send their values instead"
         )}
    end
  end

  defp whereis(pid) when is_pid(pid), do: pid

  defp whereis(server) do
    case GenServer.whereis(server) do
      nil -> nil
      pid_or_remote -> pid_or_remote
    end
  rescue
    error in [FunctionClauseError, ArgumentError] ->
      reraise ArgumentError,
              "option :server must be a pid or the name of a PyPort.Server or PyPort.Pool, got: #{inspect(server)} " <>
                "(#{Exception.message(error) |> String.split("\n") |> hd()})",
              __STACKTRACE__
  end

  defp not_running(PyPort.Default) do
    if Process.whereis(PyPort.Supervisor) do
      Error.unavailable(
        "the default pool is not running: it is switched off (config :py_port, pool: false), or is just " <>
          "being restarted. Name another one with the option :server"
      )
    else
      Error.not_started()
    end
  end

  defp not_running(server) do
    Error.unavailable(
      "no PyPort.Server or PyPort.Pool is running as #{inspect(server)}; it was not started, or is just being " <>
        "restarted. #{DidYouMean.running(server)}"
    )
  end

  # --- room -----------------------------------------------------------------------------------

  @doc "Whether a frame is one that the server can ever take."
  @spec fits(Connection.t(), iodata()) :: :ok | {:error, Error.t()}
  def fits(%{max_frame_bytes: most}, frame) do
    case :erlang.iolist_size(frame) do
      bytes when bytes > most ->
        {:error,
         %Error{
           kind: :encode,
           begun: false,
           message:
             "the request takes #{bytes} bytes, the limit is #{most}: send less at once, or start the server with a " <>
               "larger max_frame_bytes"
         }}

      _bytes ->
        :ok
    end
  end

  @doc """
  Sends a request, if the server takes one more now. Its row is in the table before anything is decided, so callers that
  come together see each other; of one that is not sent nothing is left there.
  """
  @spec send_request(Connection.t(), tuple(), Callbacks.context() | nil, iodata()) ::
          :ok | :not_sent | {:error, Error.t()}
  def send_request(connection, row, context, frame) do
    if Connection.insert(connection, row) do
      open = Connection.pending(connection)

      if open > connection.max_pending do
        refuse(
          connection,
          row,
          "#{open - 1} of at most #{connection.max_pending} requests are open (max_pending)"
        )
      else
        if context, do: Callbacks.keep(connection, context)

        case Connection.submit(connection, frame) do
          :ok ->
            :ok

          {:full, bytes} ->
            refuse(
              connection,
              row,
              "#{bytes} bytes are waiting to be read by it (max_queued_bytes: #{connection.max_queued_bytes})"
            )
        end
      end
    else
      :not_sent
    end
  end

  defp refuse(connection, row, why) do
    id = elem(row, 0)
    Connection.withdraw(connection, id)
    Callbacks.forget(connection, id)
    {:error, overloaded(why)}
  end

  defp overloaded(why) do
    %Error{
      kind: :overloaded,
      begun: false,
      message:
        "the Python server takes no more requests for now: #{why}; nothing was sent. Ask again later, or give it a pool " <>
          "with more servers"
    }
  end

  # --- time -----------------------------------------------------------------------------------

  @spec deadline(timeout()) :: integer() | :infinity
  def deadline(:infinity), do: :infinity
  def deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  @spec remaining(integer() | :infinity) :: timeout()
  def remaining(:infinity), do: :infinity
  def remaining(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)
end
