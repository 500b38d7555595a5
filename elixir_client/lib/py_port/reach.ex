defmodule PyPort.Reach do
  # From what a request names (a server, a session, an object, nothing) to the handle of a server that can take it, and
  # whether it may take one more frame now. Runs in the caller's process; sends nothing.
  @moduledoc false

  alias PyPort.{Error, Object, Registry, Server, Session}
  alias PyPort.Server.Handle

  # Below this a frame is not worth a look at the port's queue while nothing else is open.
  @small_frame_bytes 4_096

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

  def place(%{server: server}, target, _objects) do
    same_server!(target, target && whereis(server), "server: #{inspect(server)}")
    server
  end

  defp same_server!(nil, _pid, _given), do: :ok
  defp same_server!(%Object{server: pid}, pid, _given), do: :ok
  # Not running: that is an error of the world, which comes later.
  defp same_server!(_target, nil, _given), do: :ok

  defp same_server!(target, _other, given) do
    raise ArgumentError,
          "an object carries its server, and #{inspect(target)} lives on #{inspect(target.server)}, " <>
            "which is not that of #{given}. Leave the option away"
  end

  @doc "The handle of a server that is ready; one that is still starting is waited for until the deadline."
  @spec handle(place(), integer() | :infinity) :: {:ok, Handle.t()} | {:error, Error.t()}
  def handle(%Session{server: owner} = session, deadline) do
    owner |> of_owner(deadline) |> gone("the session #{inspect(session)}")
  end

  def handle(%Object{server: owner} = object, deadline) do
    owner |> of_owner(deadline) |> gone("the object #{inspect(object)}")
  end

  def handle(server, deadline) do
    case whereis(server) do
      pid when is_pid(pid) -> of_owner(pid, deadline)
      nil -> {:error, not_running(server)}
    end
  end

  defp of_owner(owner, deadline) do
    case Registry.fetch(owner) do
      {:ok, %Handle{ready: true} = handle} -> {:ok, handle}
      :not_started -> {:error, Error.not_started()}
      _starting -> await_ready(owner, deadline)
    end
  end

  @doc "The handle of a server that has a Python now, ready or not; nobody is waited for."
  @spec running(GenServer.server()) :: {:ok, Handle.t()} | {:error, Error.t()}
  def running(server) do
    with pid when is_pid(pid) <- whereis(server),
         {:ok, handle} <- Registry.fetch(pid) do
      {:ok, handle}
    else
      nil -> {:error, not_running(server)}
      :not_started -> {:error, Error.not_started()}
      :error -> {:error, unavailable("the server #{inspect(server)} has no Python running at the moment")}
    end
  end

  # A server that is still starting is worth waiting for; one that could not start says why at once. Any other
  # process would not understand the question, and might die of it.
  defp await_ready(owner, deadline) do
    cond do
      node(owner) != node() ->
        raise ArgumentError,
              "option :server names #{inspect(owner)}, which is a process of the node #{node(owner)}: call PyPort " <>
                "there, for instance with :erpc.call(node, PyPort, :eval, [code, globals, options])"

      Process.alive?(owner) and :proc_lib.translate_initial_call(owner) != {Server, :init, 1} ->
        raise ArgumentError, "option :server must be a PyPort.Server, #{inspect(owner)} is none"

      true ->
        Server.await_ready(owner, remaining(deadline))
    end
  end

  # What lived on a server is not there again when its supervisor has started another.
  defp gone({:error, %Error{kind: :unavailable}}, what) do
    {:error, unavailable("the server of #{what} has ended, and it has ended with it")}
  end

  defp gone(result, _what), do: result

  @doc "Objects among the values of a request, which must be of the server that it goes to."
  @spec belong([Object.t()], Handle.t()) :: :ok | {:error, Error.t()}
  def belong(objects, %Handle{owner: owner}) do
    case Enum.find(objects, &(&1.server != owner)) do
      nil ->
        :ok

      object ->
        {:error,
         unavailable(
           "#{inspect(object)} belongs to another server (#{inspect(object.server)}) than the one that this " <>
             "request goes to (#{inspect(owner)}); objects cannot move, send their values instead"
         )}
    end
  end

  defp whereis(pid) when is_pid(pid), do: pid

  defp whereis(server) do
    case GenServer.whereis(server) do
      pid when is_pid(pid) -> pid
      _nobody -> nil
    end
  rescue
    error in [FunctionClauseError, ArgumentError] ->
      reraise ArgumentError,
              "option :server must be a pid or the name of a PyPort.Server, got: #{inspect(server)} " <>
                "(#{Exception.message(error) |> String.split("\n") |> hd()})",
              __STACKTRACE__
  end

  defp not_running(PyPort.Default) do
    if Process.whereis(PyPort.Supervisor) do
      unavailable(
        "the default server is not running: it is switched off (config :py_port, server: false), or is just " <>
          "being restarted. Name another one with the option :server"
      )
    else
      Error.not_started()
    end
  end

  defp not_running(server) do
    unavailable(
      "no PyPort.Server is running as #{inspect(server)}; it was not started, or is just being restarted"
    )
  end

  defp unavailable(message), do: %Error{kind: :unavailable, message: message, begun: false}

  # --- room -----------------------------------------------------------------------------------

  @doc "Whether the server takes one more request of this size now."
  @spec admit(Handle.t(), iodata()) :: :ok | {:error, Error.t()}
  def admit(handle, frame) do
    bytes = :erlang.iolist_size(frame)
    open = Handle.pending(handle)

    cond do
      bytes > handle.max_frame_bytes ->
        {:error,
         %Error{
           kind: :encode,
           begun: false,
           message:
             "the request takes #{bytes} bytes, the limit is #{handle.max_frame_bytes}: send less at once, or " <>
               "start the server with a larger max_frame_bytes"
         }}

      open >= handle.max_pending ->
        {:error, overloaded("#{open} requests are waiting for it (max_pending: #{handle.max_pending})")}

      open > 0 or bytes > @small_frame_bytes ->
        admit_queued(handle)

      true ->
        :ok
    end
  end

  # A queue that is merely not empty takes one frame of any size, or a large one could never be sent.
  defp admit_queued(handle) do
    case Port.info(handle.port, :queue_size) do
      {:queue_size, queued} when queued > handle.max_queued_bytes ->
        {:error,
         overloaded(
           "#{queued} bytes are waiting to be read by it (max_queued_bytes: #{handle.max_queued_bytes})"
         )}

      # A closed port: the monitor will tell why.
      _room_or_closed ->
        :ok
    end
  end

  defp overloaded(why) do
    %Error{
      kind: :overloaded,
      begun: false,
      message: "the Python server takes no more requests for now: #{why}; nothing was sent"
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
