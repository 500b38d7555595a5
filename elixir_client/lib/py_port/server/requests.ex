defmodule PyPort.Server.Requests do
  # The processes of the open requests of a server: those that write their output, the monitors of their callers, and those
  # that serve their calls into the BEAM.
  @moduledoc false

  alias PyPort.{Callbacks, Connection, Output, Wire}
  alias PyPort.Server.State

  # `workers` has the call that each serves; `:stopped` stands for a request that is over.
  defstruct attached: %{}, workers: %{}

  @type t :: %__MODULE__{
          attached: %{optional(Wire.id()) => %{writer: pid() | nil, caller: reference() | :dead | nil}},
          workers: %{optional(pid()) => {Wire.maybe_id() | :stopped, call_id :: Wire.id()}}
        }

  @none %{writer: nil, caller: nil}

  @spec new() :: t()
  def new, do: %__MODULE__{}

  # The requests that have something here.
  @spec ids(State.t()) :: [Wire.id()]
  def ids(%{requests: %{attached: attached}}), do: Map.keys(attached)

  # A request is over: its calls end.
  @spec forget(State.t(), Wire.id()) :: State.t()
  def forget(%{requests: %{attached: attached} = requests} = state, id) when is_map_key(attached, id) do
    {%{caller: caller}, attached} = Map.pop!(attached, id)
    if is_reference(caller), do: Process.demonitor(caller, [:flush])
    state = %{state | requests: %{requests | attached: attached}}
    if caller, do: end_calls(state, id), else: state
  end

  def forget(state, _id), do: state

  # The same for a request that no process waits for: its output is dropped.
  @spec abandon(State.t(), Wire.id()) :: State.t()
  def abandon(state, id) do
    if writer = writer(state, id), do: Output.abandon(writer)
    forget(state, id)
  end

  # Drops the output of a request whose caller has its answer, and ends its calls.
  @spec silence(State.t(), Wire.id()) :: State.t()
  def silence(state, id) do
    writer = writer(state, id)
    if writer, do: Output.abandon(writer)
    state = if writer, do: attach(state, id, :writer, nil), else: state
    end_calls(state, id)
  end

  # --- output ---------------------------------------------------------------------------------

  @spec writer(State.t(), Wire.id()) :: pid() | nil
  def writer(%{requests: %{attached: attached}}, id), do: Map.get(attached, id, @none).writer

  # Starts the process that writes the output of a request.
  @spec start_writer(State.t(), Wire.id(), pid(), Output.devices()) :: {pid(), State.t()}
  def start_writer(state, id, caller, devices) do
    writer = Output.start(state.connection, id, caller, devices)
    {writer, attach(state, id, :writer, writer)}
  end

  # --- callers --------------------------------------------------------------------------------

  # Watches a caller: from now on its death is known at once, and one that is dead already is known now.
  @spec watch_caller(State.t(), Wire.id(), pid()) :: State.t()
  def watch_caller(%{requests: %{attached: attached}} = state, id, caller) do
    if Map.get(attached, id, @none).caller,
      do: state,
      else: attach(state, id, :caller, :erlang.monitor(:process, caller, tag: {:caller_down, id}))
  end

  # A watched caller has died: its request calls no function any more. Tells whether the request is still open.
  @spec caller_down(State.t(), Wire.id()) :: {:open | :over, State.t()}
  def caller_down(%{requests: %{attached: attached}} = state, id) when is_map_key(attached, id),
    do: {:open, state |> end_calls(id) |> attach(id, :caller, :dead)}

  def caller_down(state, _id), do: {:over, state}

  @spec caller_dead?(State.t(), Wire.id()) :: boolean()
  def caller_dead?(%{requests: %{attached: attached}}, id), do: Map.get(attached, id, @none).caller == :dead

  # --- calls ----------------------------------------------------------------------------------

  # Starts the process that serves a call into the BEAM.
  @spec start_call(State.t(), Wire.maybe_id(), Wire.id(), pid(), binary()) :: State.t()
  def start_call(%{connection: connection} = state, id, call_id, caller, frame) do
    # Before it can ask for anything.
    Connection.count_call(connection, 1)
    worker = Callbacks.start(connection, id, call_id, caller, frame)
    put_in(state.requests.workers[worker], {id, call_id})
  end

  # Whether a process serves a call.
  defguard is_worker(state, pid) when is_map_key(state.requests.workers, pid)

  # A worker has ended. Gives back its call if objects of that may be left, to be disclaimed.
  @spec worker_ended(State.t(), pid(), term()) :: {disclaim :: Wire.id() | nil, State.t()}
  def worker_ended(%{connection: connection} = state, worker, reason) do
    Connection.count_call(connection, -1)

    case pop_in(state.requests.workers[worker]) do
      {{:stopped, call_id}, state} ->
        Callbacks.forget(connection, worker)
        {call_id, state}

      {{_id, call_id}, state} ->
        Callbacks.ended(connection, worker, call_id, reason)
        {if(reason != :normal, do: call_id), state}
    end
  end

  # Ends the calls of a request: no process waits for their answers.
  @spec end_calls(State.t(), Wire.id()) :: State.t()
  def end_calls(state, id) do
    Callbacks.forget(state.connection, id)

    for {worker, {^id, call_id}} <- state.requests.workers, reduce: state do
      state ->
        Callbacks.stop(state.connection, worker, call_id)
        put_in(state.requests.workers[worker], {:stopped, call_id})
    end
  end

  # Ends all workers: their Python has ended.
  @spec close(State.t()) :: State.t()
  def close(%{requests: %{workers: workers}} = state) do
    for {worker, _call} <- workers do
      Process.unlink(worker)
      Process.exit(worker, :kill)
    end

    %{state | requests: new()}
  end

  defp attach(%{requests: %{attached: attached} = requests} = state, id, what, value) do
    one = attached |> Map.get(id, @none) |> Map.put(what, value)
    %{state | requests: %{requests | attached: Map.put(attached, id, one)}}
  end
end
