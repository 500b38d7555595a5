defmodule PyPort.Locator do
  # From what a request names (a server or pool, a session, an object, nothing) to the connection of a server that can
  # take it. Runs in the caller's process.
  @moduledoc false

  import PyPort.Deadline, only: [remaining: 1]

  alias PyPort.{Callbacks, Connection, Deadline, Error, Object, Registry, Reload, Remote, Server, Session}
  alias PyPort.Pool.{Members, Queue}

  @type place :: GenServer.server() | Session.t() | Object.t()
  # The node where a server lives, and what to name there; nil where a session or an object leads the way.
  @type remote :: {:remote, node(), GenServer.server() | nil}

  # The place of a request: the server that was named, else that of its session, of the object that is its target, or
  # of an object among its values, else to the default one.
  #
  # Raises `ArgumentError` where a target lives elsewhere than the server or session that was named with it.
  @spec place(map(), target :: Object.t() | nil, [Object.t()]) :: place()
  def place(%{server: nil, session: nil}, nil, []), do: PyPort.Default
  def place(%{server: nil, session: nil}, nil, objects), do: List.last(objects)
  def place(%{server: nil, session: nil}, target, _objects), do: target

  def place(%{session: %Session{} = session}, target, _objects) do
    same_server!(target, session.server, :session, session)
    session
  end

  def place(%{server: server}, nil, []), do: server

  # Of a pool an object knows the server.
  def place(%{server: server}, target, objects) do
    pid = whereis(server)
    object = target || List.last(objects)

    cond do
      # The other node looks at that.
      remote?(pid) ->
        server

      pid != nil and Registry.fact(Object.server(object), :pool) == pid ->
        object

      true ->
        same_server!(target, pid, :server, server)
        server
    end
  end

  # A server that is not running is an error of the world, which comes later.
  defp same_server!(target, pid, _option, _given) when target == nil or pid == nil, do: :ok

  defp same_server!(target, pid, option, given) do
    Object.server(target) == pid ||
      raise ArgumentError,
            "an object carries its server, and #{inspect(target)} lives on #{inspect(target.server)}, " <>
              "which is not that of #{option}: #{inspect(given)}. Leave the option away"
  end

  defp remote?({_name, _node}), do: true
  defp remote?(pid), do: pid != nil and node(pid) != node()

  # How a server was found: at once (`:ok`), or by waiting for its start (`:waited`); at once in a pool (`:member`), or by
  # waiting for a member that can begin the request (`:turn`).
  @type how :: :ok | :waited | :member | :turn

  # When a request takes its server in a pool: as soon as one can begin it, in the order of arrival (nil: it arrives now), or at
  # once.
  @type turn :: Queue.arrived() | nil | :at_once

  # The connection of a server that is ready. It is waited for until the deadline.
  @spec connection(place(), Deadline.t(), turn()) :: {how(), Connection.t()} | {:error, Error.t()} | remote()
  def connection(%Session{server: owner} = session, deadline, _turn), do: of_carrier(owner, session, deadline)

  def connection(%Object{} = object, deadline, _turn),
    do: object |> Object.server() |> of_carrier(object, deadline)

  def connection(server, deadline, turn) do
    case whereis(server) do
      pid when is_pid(pid) -> of_owner(pid, deadline, turn)
      {name, node} -> {:remote, node, name}
      nil -> stand_in(server) || {:error, not_running(server)}
    end
  end

  # A session and an object carry their server.
  defp of_carrier(owner, carrier, deadline) do
    case of_owner(owner, deadline, nil) do
      {:remote, node, _pid} -> {:remote, node, nil}
      result -> gone(result, carrier)
    end
  end

  defp of_owner(owner, deadline, turn) do
    case Registry.fetch(owner) do
      {:ok, %Connection{ready: true}} = found -> found
      {:ok, %Members{reloads?: true}} -> of_reloaded(owner, deadline, turn)
      {:ok, %Members{} = members} -> of_pool(members, deadline, turn)
      :not_started -> {:error, Error.not_started()}
      _starting -> await_ready(owner, deadline)
    end
  end

  # In development. The servers of the pool may be others afterwards.
  defp of_reloaded(pool, deadline, turn) do
    Reload.check()

    case Registry.fetch(pool) do
      {:ok, %Members{} = members} -> of_pool(members, deadline, turn)
      _ended -> {:error, Error.of_exit(:noproc)}
    end
  end

  defp of_pool(%{queue: queue, cluster: cluster} = members, deadline, turn) do
    member = if turn == :at_once or Queue.empty?(queue), do: Members.pick(members)

    cond do
      member != nil -> {:member, member}
      member = busy(members, turn) -> {:member, member}
      cluster != nil and Members.full?(members) -> stand_in(cluster) || await_turn(members, deadline, turn)
      true -> await_turn(members, deadline, turn)
    end
  end

  # The server that takes what cannot wait: a session that is opened, which Python does at once, and a request of a callback,
  # which the Python that has called it runs at once.
  defp busy(%{cluster: cluster} = members, :at_once),
    do: if(cluster == nil or not Members.full?(members), do: Members.any(members))

  defp busy(%{connections: connections}, _turn),
    do: connections |> Tuple.to_list() |> Enum.find(&Callbacks.parent/1)

  defp await_turn(members, deadline, turn) do
    arrived = if is_integer(turn), do: turn

    case Queue.wait(members, arrived, deadline) do
      {:ok, connection} -> {:turn, connection}
      :full -> stand_in(members.cluster) || {:error, full(members)}
      {:error, error} -> {:error, error}
    end
  end

  defp full(members) do
    Error.new(
      :overloaded,
      "the pool #{inspect(members.name || members.pool)} takes no more requests for now: #{members.max_queue} wait for a " <>
        "server (max_queue); nothing was sent. Ask again later, or give the pool more servers (:size)",
      begun: false
    )
  end

  # A pool of the same name on another node, any of those that have a server ready. A request that came from another node
  # is not sent on to a third.
  defp stand_in(name) when is_atom(name) and name != nil do
    case if(Remote.stands_in?(), do: [], else: Members.remote(name)) do
      [] ->
        nil

      pools ->
        pool = Enum.random(pools)
        {:remote, node(pool), pool}
    end
  end

  defp stand_in(_pid_or_tuple), do: nil

  # A server that is still starting is waited for; a server that could not start gives the reason at once. Any other process
  # would not understand the question, and might crash.
  defp await_ready(owner, _deadline) when node(owner) != node(), do: {:remote, node(owner), owner}

  defp await_ready(owner, deadline) do
    case Registry.kind(owner) do
      :server ->
        with {:ok, connection} <- Server.await_ready(owner, remaining(deadline)), do: {:waited, connection}

      # The registry has it from its start to its end.
      :pool ->
        {:error, Error.unavailable("the pool #{inspect(owner)} is being stopped")}

      nil ->
        # The kind of a process that has just ended is not known.
        if Process.alive?(owner) do
          raise ArgumentError,
                "option :server must be a PyPort.Server or a PyPort.Pool, #{inspect(owner)} is none"
        else
          {:error, Error.of_exit(:noproc)}
        end
    end
  end

  # How long a pool may take to hear that one of its servers has ended.
  @pause_ms 1

  # Whether a request that a server has not taken may be asked again at the same place, after a moment: where that is a
  # pool, and there is time left.
  @spec again?(place(), Deadline.t()) :: boolean()
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

  # The error of a request that was not taken, and cannot be asked again.
  @spec not_taken(place()) :: {:error, Error.t()}
  def not_taken(place), do: gone({:error, Error.of_exit(:noproc)}, place)

  # The connections of a server, or of the servers of a pool, that has a Python now, ready or not, without waiting.
  @spec running(GenServer.server()) :: {:ok, [Connection.t()]} | {:error, Error.t()} | remote()
  def running(server) do
    case whereis(server) do
      nil -> {:error, not_running(server)}
      {name, node} -> {:remote, node, name}
      pid when node(pid) != node() -> {:remote, node(pid), pid}
      pid -> running(Registry.fetch(pid), server)
    end
  end

  defp running({:ok, %Members{connections: connections}}, _server) when connections != {},
    do: {:ok, Tuple.to_list(connections)}

  defp running({:ok, %Connection{} = connection}, _server), do: {:ok, [connection]}
  defp running(:not_started, _server), do: {:error, Error.not_started()}

  defp running(_none, server),
    do: {:error, Error.unavailable("the server #{inspect(server)} has no Python running at the moment")}

  # A session or an object is not on the server that a supervisor has started in place of its own.
  defp gone({:error, %Error{kind: :unavailable}}, %kind{} = carrier) do
    what = if kind == Session, do: "session", else: "object"

    {:error,
     Error.unavailable("the server of the #{what} #{inspect(carrier)} has ended, and it has ended with it")}
  end

  defp gone(result, _place), do: result

  # Whether the objects among the values of a request are of the server that it goes to.
  @spec same_server([Object.t()], Connection.t()) :: :ok | {:error, Error.t()}
  def same_server([], _connection), do: :ok

  def same_server(objects, %Connection{owner: owner}) do
    case Enum.find(objects, &(Object.server(&1) != owner)) do
      nil ->
        :ok

      object ->
        message =
          "#{inspect(object)} belongs to another server (#{inspect(object.server)}) than the one that this " <>
            "request goes to (#{inspect(owner)}); objects cannot move, send their values instead"

        {:error, Error.unavailable(message)}
    end
  end

  defp whereis(pid) when is_pid(pid), do: pid

  defp whereis(server) do
    GenServer.whereis(server)
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
        "restarted. #{Registry.running(server)}"
    )
  end
end
