defmodule PyPort.Batcher do
  @moduledoc """
  Collects items of many callers, and gives them to one Python function as a list.

  Most models take a batch of inputs in little more time than one input. A batcher waits a few milliseconds for more items,
  calls the function once, and gives each caller its own result:

      children = [
        {PyPort.Pool, name: Models, size: 2, init_code: "import my_pkg.embed"},
        {PyPort.Batcher, name: Embed, server: Models, fun: "my_pkg.embed:encode", batch_size: 64, batch_timeout: 5}
      ]

      {:ok, vector} = PyPort.batched(Embed, "a sentence")

  In Python:

      def encode(texts):                      # a list of items
          return model.encode(texts).tolist() # a list with one result for each, in their order

  ## Options

    * `:name` - the name to register, as with `GenServer`.
    * `:fun` - the Python function, `"module:qualified.name"`. It takes a list of items, and returns a list (or another
      sequence, or an awaitable of one) with one result for each item. Required.
    * `:server` - the `PyPort.Pool` or `PyPort.Server` that runs it. Default: `PyPort.Default`.
    * `:batch_size` - the largest number of items in a batch. Default: 64.
    * `:batch_timeout` - how long the first item of a batch waits for others, in ms. Default: 5.
    * `:batch_keys` - a list of atoms: items of different keys never share a batch, such as `[:query, :passage]`, or short and long
      texts. The function gets the key of its batch as the keyword argument `batch_key`. Default: `[:default]`, for which
      there is no such argument.
    * `:concurrency` - how many batches may be in Python at once. Default: as many as the pool has servers that take work.
    * `:max_pending` - how many items may wait before more are refused with `:overloaded`. Default: 10_000.
    * `:binary_as` - what the binaries of items are in Python, `:str` or `:bytes`, see `PyPort`. Default: `:str`.

  ## Errors

  An exception object among the results (`ValueError("too long")`, returned and not raised) is the error of that item, and
  the others have their results. An exception that the function raises is the error of all items of the batch, as is the
  end of its Python. An item that Python cannot read (a binary that is not UTF-8) is the error of its caller alone: the others
  go to Python without it.

  An item whose caller has ended, or whose `:timeout` has passed, is dropped if its batch has not begun; the error says so by
  `begun: false`. A batch that has begun may run until the last `:timeout` of its items.

  No function among the values of an item becomes a callback.

  ## Shutdown

  A batcher that its supervisor stops has the remaining items processed first, within the `:shutdown` of its child
  specification (5 s). Stand it behind its pool in the list of children. `switch/2` moves a batcher to another pool, for a new
  model, without losing an item.

  `PyPort.Telemetry` lists the events of a batcher.
  """

  # The runner of a batch is a process of its own: it waits for Python, decodes, and answers the callers. It is linked, so a
  # batcher that is killed ends its batches, and their requests are cancelled.
  use GenServer

  import PyPort.Deadline, only: [deadline: 1, remaining: 1]

  alias PyPort.{Error, Object, Options, Ownership, Pool, Request, Telemetry}

  @type option ::
          {:name, GenServer.name()}
          | {:fun, String.t()}
          | {:server, GenServer.server()}
          | {:batch_size | :max_pending, pos_integer()}
          | {:batch_timeout, non_neg_integer()}
          | {:batch_keys, [atom(), ...]}
          | {:concurrency, pos_integer() | nil}
          | {:binary_as, :str | :bytes}

  # The Python side.
  @run "port_server.runtime.batches:run"

  # How long the batcher may take to say whether an item has begun.
  @answer_ms 1_000

  @doc """
  Starts a batcher, linked to the caller. See the module's documentation for the options.

  Raises `ArgumentError` for an unknown option or a value of the wrong type.

  ## Examples

      iex> {:ok, batcher} = PyPort.Batcher.start_link(fun: "builtins:sorted", batch_size: 1)
      iex> PyPort.batched(batcher, 3)
      {:ok, 3}
  """
  @spec start_link([option()]) :: GenServer.on_start()
  def start_link(options) do
    options = Options.batcher!(options)
    GenServer.start_link(__MODULE__, options, if(options.name, do: [name: options.name], else: []))
  end

  @doc false
  def child_spec(options) do
    %{
      id: Keyword.get(options, :name) || __MODULE__,
      start: {__MODULE__, :start_link, [options]},
      shutdown: 5_000
    }
  end

  @doc """
  Has the batches that begin from now on run on another server or pool. Returns when the last batch on the former one has
  ended, so that it can be stopped.

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 1)
      iex> {:ok, batcher} = PyPort.Batcher.start_link(fun: "builtins:sorted")
      iex> PyPort.Batcher.switch(batcher, pool)
      :ok
  """
  @spec switch(GenServer.server(), GenServer.server()) :: :ok
  def switch(batcher, server), do: GenServer.call(batcher, {:switch, server}, :infinity)

  @doc false
  @spec ask(GenServer.server(), term(), map()) :: {:ok, term()} | {:error, Error.t()}
  def ask(batcher, item, %{timeout: timeout, batch_key: key}) do
    ref = make_ref()

    case call(batcher, {:item, ref, key, item, timeout}, timeout) do
      :timeout ->
        begun =
          with begun when not is_boolean(begun) <- call(batcher, {:give_up, key, ref}, @answer_ms), do: nil

        {:error, Error.timeout(timeout, begun, nil)}

      {:unknown_key, keys} ->
        raise ArgumentError,
              "unknown :batch_key #{inspect(key)} for the batcher #{inspect(batcher)}, whose :batch_keys are #{inspect(keys)}"

      outcome ->
        outcome
    end
  end

  defp call(batcher, message, timeout) do
    GenServer.call(batcher, message, timeout)
  catch
    :exit, {:timeout, _call} ->
      :timeout

    :exit, {:noproc, _call} ->
      {:error, Error.unavailable("no PyPort.Batcher is running as #{inspect(batcher)}")}

    :exit, {reason, _call} ->
      {:error, Error.of_exit(reason)}
  end

  # --- items ----------------------------------------------------------------------------------

  # `queues` has the items of each key that wait, whether its first has waited for long enough (`due?`), and the timer for
  # that; `running` the items of each batch by its runner; `switching` who waits for the end of which runners.
  @impl true
  def init(options) do
    Process.flag(:trap_exit, true)
    queues = Map.new(options.batch_keys, &{&1, empty()})
    {:ok, Map.merge(options, %{queues: queues, running: %{}, switching: []})}
  end

  defp empty, do: %{items: :queue.new(), count: 0, timer: nil, due?: false}

  @impl true
  def handle_call({:item, ref, key, item, timeout}, from, %{queues: queues} = state) do
    cond do
      not is_map_key(queues, key) ->
        {:reply, {:unknown_key, state.batch_keys}, state}

      waiting(state) >= state.max_pending ->
        message = "#{state.max_pending} items wait for the batcher already (max_pending); ask again later"
        {:reply, {:error, Error.new(:overloaded, message, begun: false)}, state}

      true ->
        entry = %{
          ref: ref,
          from: from,
          item: item,
          deadline: deadline(timeout),
          since: System.monotonic_time()
        }

        {:noreply, state |> put_in([:queues, key], enqueue(queues[key], entry, key, state)) |> dispatch()}
    end
  end

  # The time of an item is up: whether it has begun.
  def handle_call({:give_up, key, ref}, _from, state) do
    %{items: items, count: count} = queue = state.queues[key]
    left = :queue.filter(&(&1.ref != ref), items)
    began? = :queue.len(left) == count
    unless began?, do: tell(state, :drop, %{count: 1}, %{batch_key: key, reason: :timeout})
    {:reply, began?, put_in(state.queues[key], %{queue | items: left, count: :queue.len(left)})}
  end

  def handle_call({:switch, server}, from, %{running: running} = state),
    do:
      {:noreply, settle(%{state | server: server, switching: [{from, Map.keys(running)} | state.switching]})}

  @impl true
  def handle_info({:timeout, timer, key}, state) do
    case state.queues[key] do
      %{timer: ^timer} = queue -> {:noreply, dispatch(put_in(state.queues[key], %{queue | due?: true}))}
      _late -> {:noreply, state}
    end
  end

  def handle_info({:EXIT, runner, reason}, %{running: running} = state) when is_map_key(running, runner),
    do: {:noreply, state |> ended(runner, reason) |> settle() |> dispatch()}

  # Of a process that has linked itself.
  def handle_info({:EXIT, _pid, :normal}, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_late, state), do: {:noreply, state}

  defp waiting(%{queues: queues}), do: Enum.reduce(queues, 0, fn {_key, queue}, sum -> sum + queue.count end)

  defp enqueue(%{items: items, count: count} = queue, entry, key, state) do
    timer = queue.timer || :erlang.start_timer(state.batch_timeout, self(), key)
    %{queue | items: :queue.in(entry, items), count: count + 1, timer: timer}
  end

  # --- batches --------------------------------------------------------------------------------

  # Begins batches while one is full or due and Python may take one more; the one that has waited longest first.
  defp dispatch(%{queues: queues, batch_size: size} = state) do
    ready = for {key, %{count: count} = queue} <- queues, count >= size or (queue.due? and count > 0), do: key

    if ready == [] or map_size(state.running) >= concurrency(state) do
      state
    else
      key = Enum.min_by(ready, fn key -> :queue.get(queues[key].items).since end)
      state |> begin(key, if(queues[key].count >= size, do: :size, else: :timeout)) |> dispatch()
    end
  end

  defp concurrency(%{concurrency: nil, server: server}),
    do: max(length(Pool.servers(server || PyPort.Default)), 1)

  defp concurrency(%{concurrency: count}), do: count

  defp begin(state, key, why) do
    %{items: items, count: count, timer: timer} = state.queues[key]
    :erlang.cancel_timer(timer)
    {taken, left} = :queue.split(min(count, state.batch_size), items)
    {alive, dead} = taken |> :queue.to_list() |> Enum.split_with(&alive?/1)
    if dead != [], do: tell(state, :drop, %{count: length(dead)}, %{batch_key: key, reason: :caller_down})
    state = put_in(state.queues[key], again(left, key, state))

    if alive == [] do
      state
    else
      runner = spawn_link(fn -> run(alive, key, why, Map.drop(state, [:queues, :running, :switching])) end)
      put_in(state.running[runner], alive)
    end
  end

  defp alive?(%{from: {pid, _tag}}), do: node(pid) != node() or Process.alive?(pid)

  # The queue behind a batch that begins. Its first item has waited for a part of its time already.
  defp again(items, key, state) do
    case :queue.peek(items) do
      :empty ->
        empty()

      {:value, %{since: since}} ->
        waited = System.convert_time_unit(System.monotonic_time() - since, :native, :millisecond)
        timer = :erlang.start_timer(max(state.batch_timeout - waited, 0), self(), key)
        %{items: items, count: :queue.len(items), timer: timer, due?: false}
    end
  end

  # A runner that has ended in order has answered its callers.
  defp ended(state, runner, reason) do
    {items, state} = pop_in(state.running[runner])
    if reason != :normal, do: answer_all(items, {:error, Error.of_exit(reason)})
    state
  end

  defp settle(%{running: running, switching: switching} = state) do
    {over, waiting} =
      Enum.split_with(switching, fn {_from, runners} -> not Enum.any?(runners, &is_map_key(running, &1)) end)

    for {from, _runners} <- over, do: GenServer.reply(from, :ok)
    %{state | switching: waiting}
  end

  # Stopped in order: what waits is processed, and what runs is waited for.
  @impl true
  def terminate(_reason, state), do: finish(%{state | concurrency: map_size(state.queues) + waiting(state)})

  defp finish(state) do
    queues = Map.new(state.queues, fn {key, queue} -> {key, %{queue | due?: true}} end)
    state = dispatch(%{state | queues: queues})

    if state.running != %{} do
      receive do
        {:EXIT, runner, reason} when is_map_key(state.running, runner) ->
          state |> ended(runner, reason) |> finish()
      end
    end
  end

  # --- in the runner --------------------------------------------------------------------------

  defp run(items, key, why, state) do
    started = System.monotonic_time()
    {result, errors} = call_python(items, key, state)

    measurements = %{
      size: length(items),
      errors: errors,
      wait: started - hd(items).since,
      duration: System.monotonic_time() - started
    }

    tell(state, :batch, measurements, %{batch_key: key, reason: why, result: result})
  end

  # Gives the kind of the outcome, and for how many items it is an error.
  defp call_python(items, key, state) do
    kwargs = if state.batch_keys == [:default], do: %{}, else: %{batch_key: key}
    asked = {:call, @run, [state.fun, Enum.map(items, & &1.item)], kwargs}
    timeout = items |> Enum.map(& &1.deadline) |> Enum.max() |> remaining()
    options = Options.call!(server: state.server, timeout: timeout, binary_as: state.binary_as)

    case Ownership.collect(fn -> Request.ask(asked, options) end) do
      {{:ok, {values, errors}}, taken_over} ->
        deal(items, values, errors, taken_over != [])
        {:ok, map_size(errors)}

      # An item cannot be read, or all are too much for one frame; nothing has begun. Halves find it in a few calls.
      {{:error, %Error{kind: kind, begun: begun}}, _none}
      when tl(items) != [] and ((kind == :decode and begun != true) or (kind == :encode and begun == false)) ->
        {first, second} = Enum.split(items, div(length(items), 2))
        {_kind, one} = call_python(first, key, state)
        {_kind, other} = call_python(second, key, state)
        {kind, one + other}

      {{:error, error}, _none} ->
        answer_all(items, {:error, error})
        {error.kind, length(items)}
    end
  end

  defp deal(items, values, errors, objects?) do
    for {{item, value}, index} <- items |> Enum.zip(values) |> Enum.with_index() do
      outcome =
        case errors do
          %{^index => description} -> {:error, Error.from_wire(description)}
          _none -> if objects?, do: give(value, item), else: {:ok, value}
        end

      GenServer.reply(item.from, outcome)
    end
  end

  # Objects in the result of an item belong to its caller.
  defp give(value, %{from: {caller, _tag}}) do
    errors = for object <- objects(value), {:error, error} <- [PyPort.transfer(object, caller)], do: error
    if errors == [], do: {:ok, value}, else: {:error, hd(errors)}
  end

  defp objects(%Object{} = object), do: [object]
  defp objects(list) when is_list(list), do: Enum.flat_map(list, &objects/1)
  defp objects(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> objects()
  defp objects(map) when is_map(map) and not is_struct(map), do: map |> Map.to_list() |> objects()
  defp objects(_other), do: []

  defp answer_all(items, outcome), do: Enum.each(items, &GenServer.reply(&1.from, outcome))

  defp tell(state, event, measurements, metadata),
    do: Telemetry.execute([:py_port, :batcher, event], measurements, Map.put(metadata, :name, state.name))
end
