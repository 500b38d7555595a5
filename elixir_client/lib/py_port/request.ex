defmodule PyPort.Request do
  # One request from its caller's side: row, monitor, command, receive, decode. All of it runs in the
  # caller's process; the owner of the port sees a row of a table and forwards bytes.
  #
  # The monitor's reference is made and received on in this one module, each clause matching `^ref`, because
  # only then does the BEAM skip what stood in the mailbox before (1.5 µs against 800 with 200,000 messages).
  @moduledoc false

  alias PyPort.{Error, Options, Registry, Server, Wire}
  alias PyPort.Server.Handle

  # Below this a frame is not worth a look at the port's queue while nothing else is open.
  @small_frame_bytes 4_096

  # An owner that has taken a row sends the reply next; it is waited for this long once the caller's time is up.
  @taken_grace_ms 1_000

  @type outcome :: {:ok, term()} | {:error, Error.t()}

  @spec eval(String.t() | PyPort.Code.t(), map(), keyword()) :: outcome()
  def eval(code, globals, options) do
    options = Options.request!(options)
    run(:eval, {wire_options(options), code(code), globals}, options)
  end

  @spec call(String.t(), list(), map(), keyword()) :: outcome()
  def call(target, args, kwargs, options) do
    options = Options.request!(options)
    run(:call, {wire_options(options), target, args, kwargs}, options)
  end

  defp code(%PyPort.Code{source: source, file: file, line: line}), do: {:code, source, file, line}
  defp code(source), do: source

  defp wire_options(%{timeout: :infinity, binary_as: :str}), do: %{}
  defp wire_options(%{timeout: timeout, binary_as: :str}), do: %{deadline_ms: timeout}
  defp wire_options(%{timeout: :infinity, binary_as: as}), do: %{binary_as: as}
  defp wire_options(%{timeout: timeout, binary_as: as}), do: %{deadline_ms: timeout, binary_as: as}

  defp run(verb, body, %{timeout: timeout} = options) do
    deadline = deadline(timeout)

    with {:ok, handle} <- handle(options.server, deadline) do
      id = <<:atomics.add_get(handle.counter, 1, 1)::64>>
      frame = Wire.request(verb, id, body)

      with :ok <- admit(handle, frame) do
        # Monitor, row, command, in this order: a reply can only come after the command, and finds the row; a
        # death can come at any time, and finds the monitor.
        ref = :erlang.monitor(:process, handle.owner, alias: :demonitor)
        insert(handle.table, {id, ref, self(), deadline, devices(options)})
        command(handle.port, frame)
        await(ref, handle, id, deadline, timeout)
      end
    end
  end

  defp devices(%{stdout: nil, stderr: nil}), do: nil
  defp devices(%{stdout: stdout, stderr: stderr}), do: {stdout, stderr}

  # --- finding the server ---------------------------------------------------------------------

  defp handle(server, deadline) do
    with {:ok, owner} <- whereis(server) do
      case Registry.fetch(owner) do
        {:ok, %Handle{ready: true} = handle} -> {:ok, handle}
        :not_started -> {:error, Error.not_started()}
        _starting -> await_ready(owner, deadline)
      end
    end
  end

  defp whereis(pid) when is_pid(pid), do: {:ok, pid}

  defp whereis(server) do
    case GenServer.whereis(server) do
      pid when is_pid(pid) -> {:ok, pid}
      _nobody -> {:error, not_running(server)}
    end
  rescue
    error in [FunctionClauseError, ArgumentError] ->
      reraise ArgumentError,
              "option :server must be a pid or the name of a PyPort.Server, got: #{inspect(server)} " <>
                "(#{Exception.message(error) |> String.split("\n") |> hd()})",
              __STACKTRACE__
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

  # --- sending --------------------------------------------------------------------------------

  defp admit(handle, frame) do
    bytes = :erlang.iolist_size(frame)
    open = pending(handle.table)

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

  defp pending(table) do
    case :ets.info(table, :size) do
      :undefined -> 0
      size -> size
    end
  end

  # The port and the table can be gone by now; whatever ended them has a :DOWN for us.
  defp insert(table, row) do
    :ets.insert(table, row)
  rescue
    ArgumentError -> false
  end

  defp command(port, frame) do
    Port.command(port, frame)
  rescue
    ArgumentError -> false
  end

  # --- waiting --------------------------------------------------------------------------------

  defp await(ref, handle, id, deadline, timeout) do
    receive do
      {^ref, frame} when is_binary(frame) ->
        Process.demonitor(ref, [:flush])
        outcome(frame)

      # It printed: the answer is whole, its output is on its way to a device.
      {^ref, frame, _writer} ->
        receive do
          {^ref, :flushed} -> :ok
        after
          remaining(deadline) -> :ok
        end

        forget(ref)
        outcome(frame)

      {:DOWN, ^ref, :process, _owner, reason} ->
        {:error, Server.death_report(reason)}
    after
      remaining(deadline) -> timed_out(ref, handle, id, timeout)
    end
  end

  # Whoever takes the row decides: either we have it, and no reply will be sent any more, or the owner
  # had it first, and its reply is the answer.
  defp timed_out(ref, handle, id, timeout) do
    if take(handle.table, id) do
      command(handle.port, Wire.cancel(id))
      forget(ref)

      {:error,
       %Error{
         kind: :timeout,
         message:
           "no answer within #{timeout} ms; the server may still be busy with this request, or with the ones " <>
             "before it. Give it more time with the option :timeout"
       }}
    else
      receive do
        {^ref, frame} when is_binary(frame) ->
          forget(ref)
          outcome(frame)

        {^ref, frame, _writer} ->
          forget(ref)
          outcome(frame)

        {:DOWN, ^ref, :process, _owner, reason} ->
          {:error, Server.death_report(reason)}
      after
        @taken_grace_ms ->
          forget(ref)
          {:error, %Error{kind: :timeout, message: "no answer within #{timeout} ms"}}
      end
    end
  end

  defp take(table, id) do
    :ets.take(table, id) != []
  rescue
    ArgumentError -> false
  end

  defp forget(ref) do
    Process.demonitor(ref, [:flush])
    drain(ref)
  end

  defp drain(ref) do
    receive do
      {^ref, _} -> drain(ref)
      {^ref, _, _} -> drain(ref)
    after
      0 -> :ok
    end
  end

  defp outcome(frame) do
    case Wire.decode(frame) do
      {:ok, {:ok, _id, value}} ->
        {:ok, value}

      {:ok, {:error, _id, description}} ->
        {:error, Error.from_wire(description)}

      {:ok, other} ->
        {:error, %Error{kind: :protocol, message: "an answer of an unknown shape: #{inspect(other)}"}}

      {:error, why} ->
        {:error, %Error{kind: :decode, message: why, begun: true}}
    end
  end

  # --- time -----------------------------------------------------------------------------------

  defp deadline(:infinity), do: :infinity
  defp deadline(timeout), do: System.monotonic_time(:millisecond) + timeout

  defp remaining(:infinity), do: :infinity
  defp remaining(deadline), do: max(deadline - System.monotonic_time(:millisecond), 0)
end
