defmodule PyPort.Pool.Manager do
  # The process that manages a pool: starts servers, publishes those that are ready, replaces those that are due and those
  # that have ended, and takes out surplus ones. Only a request that finds no server ready comes here, and waits.
  #
  # The servers are temporary children of a supervisor of their own: it ends them with the pool, and restarts none of
  # them, since a restart intensity can only give up, where a wait that grows goes on trying.
  #
  # Above 400 lines, because it is one state machine.
  @moduledoc false
  use GenServer

  require Logger

  import PyPort.Deadline, only: [now: 0]
  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{Connection, Error, Options, Registry, Server}
  alias PyPort.Pool.{Events, Members, Policy, Queue, Slot, State, Waiter}
  alias PyPort.Server.Preload

  @tick_ms 1_000

  @spec start_link({pid(), Queue.t(), map()}) :: GenServer.on_start()
  def start_link({_pool, _queue, _options} = args), do: GenServer.start_link(__MODULE__, args)

  # The servers of the pool, those that are being taken out included, and what each is doing in it.
  @spec overview(pid()) :: [{pid() | nil, Slot.role()}]
  def overview(manager), do: GenServer.call(manager, :overview)

  @spec resize(pid(), non_neg_integer()) :: :ok
  def resize(manager, size), do: GenServer.call(manager, {:resize, size})

  # Replaces all servers, one after the other (`:restart`), or at once, so that no request that comes later goes to one of
  # them (`:reload`).
  @spec renew(pid(), :restart | :reload) :: :ok
  def renew(manager, how), do: GenServer.call(manager, how)

  # --- startup --------------------------------------------------------------------------------

  @impl true
  def init({pool, queue, options}) do
    # So that what stands in the registry is taken back when the pool is stopped.
    Process.flag(:trap_exit, true)

    state = %State{
      pool: pool,
      who: if(options.name, do: inspect(options.name), else: inspect(pool)),
      options: options,
      members: %Members{
        pool: pool,
        manager: self(),
        turn: :atomics.new(1, signed: false),
        queue: queue,
        max_queue: options.max_queue,
        width: options.threads |> max(1) |> min(options.max_pending),
        name: options.name,
        grows?: options.min_size != nil,
        reloads?: Application.get_env(:py_port, :reload, false),
        cluster: if(options.cluster, do: options.name)
      }
    }

    PyPort.Reaper.watch_pool(pool)
    # From now on the pool is known as one.
    Registry.put_pool(state.members)
    {:ok, state, {:continue, :start}}
  end

  @impl true
  def handle_continue(:start, state) do
    Process.send_after(self(), :tick, @tick_ms)

    {_id, supervisor, _type, _modules} =
      state.pool |> Supervisor.which_children() |> List.keyfind(:servers, 0)

    state = take_over(%{state | supervisor: supervisor})
    missing = max(least(state.options) - map_size(state.slots), 0)
    {:noreply, state |> add_slots(missing) |> publish()}
  end

  defp least(%{min_size: nil, size: size}), do: size
  defp least(%{min_size: least, size: size}), do: min(least, size)

  # Servers that run already are those of a manager that crashed. It is not known which of them were being taken out, so those
  # that are ready stay, up to the size.
  defp take_over(state) do
    servers =
      for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(state.supervisor),
          is_pid(pid),
          do: pid

    {kept, surplus} = servers |> Enum.sort_by(&(not ready?(&1))) |> Enum.split(state.options.size)

    state =
      for {pid, index} <- Enum.with_index(kept, 1), reduce: state do
        state ->
          Process.monitor(pid)
          Waiter.announce(pid)
          State.put_slot(state, index, %Slot{pid: pid})
      end

    for pid <- surplus, reduce: state do
      state ->
        Process.monitor(pid)
        drain(state, 0, pid, :resized)
    end
  end

  defp ready?(pid), do: match?({:ok, %Connection{ready: true}}, Registry.fetch(pid))

  defp add_slots(state, 0), do: state

  defp add_slots(state, count) do
    index = Enum.find(1..(map_size(state.slots) + 1), &(not is_map_key(state.slots, &1)))
    add_slots(State.put_slot(state, index, start_in(%Slot{}, index, state)), count - 1)
  end

  defp start_in(slot, index, state) do
    case start_server(index, state) do
      {:ok, pid} -> Slot.starting(slot, pid)
      # The application is being stopped: a server that fails to start does so later.
      {:error, error} -> %{slot | pid: nil, error: error_of(error), retry: retry(index, @tick_ms)}
    end
  end

  defp start_server(index, state) do
    options =
      state.options
      |> Map.take(Options.server_names())
      |> Map.merge(%{name: nil, label: "#{state.who}[#{index}]", queue: state.members.queue})
      |> Map.update!(:preload, &(&1 && {:template, state.pool}))

    spec = %{Server.child_spec(Map.to_list(options)) | restart: :temporary}

    with {:ok, pid} <- DynamicSupervisor.start_child(state.supervisor, spec) do
      Process.monitor(pid)
      Registry.put_fact(pid, :pool, state.pool)
      Waiter.announce(pid)
      {:ok, pid}
    end
  end

  defp error_of(%Error{} = error), do: error
  defp error_of(reason), do: unavailable("a server could not be started: #{inspect(reason)}")

  # --- requests that wait, and questions ---------------------------------------------------------

  @impl true
  def handle_call(:overview, _from, state) do
    slots = for {_index, slot} <- Enum.sort(state.slots), server <- Slot.overview(slot), do: server
    draining = for {pid, %{why: why}} <- state.draining, do: {pid, {:draining, why}}
    {:reply, slots ++ draining, state}
  end

  def handle_call({:resize, size}, _from, %{options: %{size: previous}} = state) do
    state = Events.resized(%{state | options: %{state.options | size: size}}, previous)
    many = map_size(state.slots)

    state =
      if size >= many do
        add_slots(state, max(least(state.options) - many, 0))
      else
        # Those that serve are kept first, and of them the ones with the least numbers.
        state.slots
        |> Enum.sort_by(fn {index, slot} -> {slot.connection == nil, index} end)
        |> Enum.drop(size)
        |> remove_slots(:resized, state)
      end

    {:reply, :ok, publish(state)}
  end

  def handle_call(:restart, _from, state) do
    Preload.renew(state.pool)

    state =
      for {index, slot} <- state.slots, reduce: state do
        state ->
          state = if slot.successor, do: stop(state, index, slot.successor), else: state
          State.put_slot(state, index, Slot.restart(slot))
      end

    {:reply, :ok, recycle(state)}
  end

  def handle_call(:reload, _from, %{slots: slots} = state) do
    Preload.renew(state.pool)
    state = remove_slots(slots, :reload, state)
    {:reply, :ok, state |> add_slots(map_size(slots)) |> publish()}
  end

  # The error if waiting is pointless: every server has tried to start, and could not. A server that is about to be started
  # again after a crash is waited for.
  defp hopeless(%{options: %{size: 0}}),
    do: unavailable("the pool has no server of its own (its size is 0)")

  defp hopeless(%{slots: slots}) do
    slots = Map.values(slots)

    if slots != [] and Enum.all?(slots, &(&1.error != nil and &1.connection == nil)),
      do: hd(slots).error
  end

  # --- what servers do -------------------------------------------------------------------------

  @impl true
  def handle_info({:ready, pid, connection}, state) do
    state =
      case find(state, pid) do
        {:serves, index, slot} ->
          state
          |> State.put_slot(index, Slot.ready(slot, connection, now()))
          |> publish()
          |> Events.taken_in(index, :start)
          |> grow()

        {:succeeds, index, slot} ->
          # Out of the members before it is asked whether it has anything left.
          state
          |> State.put_slot(index, Slot.succeeded(slot, connection, now()))
          |> publish()
          |> drain(index, slot.pid, slot.why)
          |> Events.taken_in(index, slot.why)
          |> Events.taken_out(index, slot, slot.why)
          |> recycle()

        nil ->
          state
      end

    {:noreply, state}
  end

  def handle_info({:not_ready, pid, error}, state) do
    case find(state, pid) do
      {:serves, index, slot} ->
        {:noreply, tell_waiting(State.put_slot(state, index, %{slot | error: error}))}

      {:succeeds, index, slot} ->
        Logger.warning(
          "PyPort pool #{state.who}: a server that was to replace another (#{slot.why}) could not be started; the old " <>
            "one goes on: #{Exception.message(error)}"
        )

        {:noreply, state |> State.put_slot(index, Slot.keep_old(slot, now())) |> stop(index, pid)}

      nil ->
        {:noreply, state}
    end
  end

  def handle_info({:DOWN, _monitor, :process, pid, reason}, state) do
    Registry.delete_fact(pid, :pool)

    state =
      case find(state, pid) do
        {:serves, index, slot} -> index |> ended(slot, reason, state) |> Events.ended(index, slot, reason)
        {:succeeds, index, slot} -> State.put_slot(state, index, Slot.keep_old(slot, now()))
        nil -> %{state | draining: Map.delete(state.draining, pid)}
      end

    {:noreply, publish(state)}
  end

  def handle_info({:timeout, timer, {:retry, index}}, state) do
    case state.slots do
      %{^index => %{retry: ^timer} = slot} ->
        {:noreply, State.put_slot(state, index, start_in(slot, index, state))}

      _not_wanted ->
        {:noreply, state}
    end
  end

  def handle_info(:tick, state) do
    Process.send_after(self(), :tick, @tick_ms)
    # A scope of :pg that was restarted has no members.
    Members.announce(state.members, state.members.connections != {})
    state = %{state | miscounted: Queue.tidy(state.members.queue, state.miscounted)}
    {:noreply, state |> settle() |> Events.queue() |> grow() |> shrink() |> recycle()}
  end

  # A request waits.
  def handle_info(:waiting, state), do: {:noreply, state |> grow() |> tell_waiting()}

  # A waiter that ends for any other reason has left work undone. The next manager finds the servers.
  def handle_info({:EXIT, _waiter, reason}, state) do
    if reason == :normal, do: {:noreply, state}, else: {:stop, reason, state}
  end

  def handle_info(_late, state), do: {:noreply, state}

  defp find(state, pid) do
    Enum.find_value(state.slots, fn
      {index, %{pid: ^pid} = slot} -> {:serves, index, slot}
      {index, %{successor: ^pid} = slot} -> {:succeeds, index, slot}
      _other -> nil
    end)
  end

  # Its successor is on its way already.
  defp ended(index, %{successor: successor} = slot, _reason, state) when successor != nil,
    do: State.put_slot(state, index, Slot.left_to_successor(slot))

  # By after_cancel: :restart.
  defp ended(index, slot, {:shutdown, {:restart, _report}}, state),
    do: State.put_slot(state, index, slot |> Slot.left() |> start_in(index, state))

  defp ended(index, slot, reason, state) do
    now = now()
    answered? = Slot.answered?(slot, now)
    %{crashes: crashes} = slot = Slot.crashed(slot, now)

    case Policy.backoff_ms(crashes, answered?) do
      0 ->
        State.put_slot(state, index, start_in(slot, index, state))

      wait ->
        error = Error.of_exit(reason)
        tell_crashes(crashes, wait, error, index, state)
        State.put_slot(state, index, %{slot | retry: retry(index, wait)})
    end
  end

  # Once; each end has had its line from the server itself.
  defp tell_crashes(crashes, wait, error, index, state) do
    message =
      "server #{index} of the pool #{state.who} has ended #{crashes} times in a row and is started again at growing " <>
        "intervals. The last time: #{Exception.message(error)}"

    Registry.put_fact(state.pool, :trouble, unavailable(message))
    if wait == Policy.backoff_ms(3, false), do: Logger.error("PyPort: " <> message)
  end

  defp retry(index, after_ms), do: :erlang.start_timer(after_ms, self(), {:retry, index})

  # --- taking out --------------------------------------------------------------------------------

  defp remove_slots(slots, why, state),
    do: Enum.reduce(slots, state, fn {index, slot}, state -> remove_slot(index, slot, why, state) end)

  defp remove_slot(index, slot, why, state) do
    if slot.retry, do: :erlang.cancel_timer(slot.retry)
    state = %{state | slots: Map.delete(state.slots, index)}
    state = if slot.successor, do: stop(state, index, slot.successor), else: state

    cond do
      slot.pid == nil ->
        state

      slot.connection == nil ->
        stop(state, index, slot.pid)

      true ->
        state |> publish() |> drain(index, slot.pid, why) |> Events.taken_out(index, slot, why)
    end
  end

  defp drain(state, index, pid, why) do
    Waiter.drain(pid, state.options.drain_timeout, state.options.shutdown_grace, state.who)
    put_in(state.draining[pid], %{slot: index, why: why})
  end

  defp stop(state, index, pid) do
    Waiter.stop(pid, state.options.shutdown_grace)
    put_in(state.draining[pid], %{slot: index, why: :not_wanted})
  end

  # --- growth ------------------------------------------------------------------------------------

  # One server at a time, as long as requests wait.
  defp grow(%{slots: slots, options: %{size: size}, members: %{queue: queue}} = state) do
    starting? = Enum.any?(slots, fn {_index, slot} -> slot.connection == nil end)

    if map_size(slots) < size and not starting? and not Queue.empty?(queue),
      do: add_slots(state, 1),
      else: state
  end

  # One server at a time, that with the highest number.
  defp shrink(%{slots: slots, options: options} = state) do
    idle = for {index, slot} <- slots, Slot.idle?(slot, options.idle_timeout, now()), do: {index, slot}

    if idle != [] and map_size(slots) > least(options) do
      {index, slot} = Enum.max_by(idle, &elem(&1, 0))
      remove_slot(index, slot, :idle, state)
    else
      state
    end
  end

  # --- once a second -----------------------------------------------------------------------------

  defp settle(state) do
    slots = Map.new(state.slots, fn {index, slot} -> {index, Slot.settle(slot, now())} end)

    if Enum.all?(slots, fn {_index, slot} -> slot.crashes == 0 end),
      do: Registry.delete_fact(state.pool, :trouble)

    %{state | slots: slots}
  end

  # One at a time: a pool whose servers were all started in the same second must not lose them in the same second. And none
  # whose predecessor still runs, so that a pool never has more than twice its size.
  defp recycle(state) do
    busy = Enum.any?(state.slots, fn {_index, slot} -> slot.successor != nil or slot.connection == nil end)

    due =
      if busy,
        do: [],
        else: for({index, slot} <- state.slots, why = due(index, slot, state), do: {index, slot, why})

    with [_ | _] <- due,
         # The oldest first.
         {index, slot, why} = Enum.min_by(due, fn {_index, slot, _why} -> slot.ready_at end),
         {:ok, pid} <- start_server(index, state) do
      State.put_slot(state, index, %{slot | successor: pid, why: why, rest_until: nil})
    else
      _nothing_to_do -> state
    end
  end

  defp due(index, slot, state) do
    predecessor? = Enum.any?(state.draining, fn {_pid, %{slot: of}} -> of == index end)
    unless predecessor?, do: Slot.due(slot, state.options, now())
  end

  # --- what callers see ----------------------------------------------------------------------------

  defp publish(state) do
    connections =
      for {_index, %{connection: connection}} <- Enum.sort(state.slots), connection != nil, do: connection

    tell_waiting(publish(connections, state))
  end

  # Each change of a persistent term costs a look at every process.
  defp publish(connections, %{members: members} = state) do
    if owners(connections) == owners(Tuple.to_list(members.connections)) do
      state
    else
      members = %{members | connections: List.to_tuple(connections)}
      Registry.put_pool(members)
      Members.announce(members, connections != [])
      %{state | members: members}
    end
  end

  defp owners(connections), do: Enum.map(connections, & &1.owner)

  # The first of those that wait looks for itself.
  defp tell_waiting(%{members: %{queue: queue, connections: connections}} = state) do
    cond do
      connections != {} -> Queue.wake(queue)
      error = hopeless(state) -> Queue.fail(queue, error)
      true -> :ok
    end

    state
  end

  # --- shutdown ------------------------------------------------------------------------------------

  # After a crash of this process the servers go on, and requests to them; the next manager publishes anew.
  @impl true
  def terminate(reason, state) do
    if reason in [:normal, :shutdown, :killed] or match?({:shutdown, _why}, reason),
      do: Registry.delete_pool(state.pool)
  end
end
