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
  end of its Python. An item that cannot be sent (a binary that is not UTF-8, an object of another server, an encoder that raises)
  is the error of its caller alone: the others go to Python without it.

  An item whose caller has ended, or whose `:timeout` has passed, is dropped if its batch has not begun; the error says so by
  `begun: false`. A batch that has begun may run until the last `:timeout` of its items. For the others `begun` is `nil`: their
  batch may still wait for a server.

  Objects in the result of an item belong to whom they would with `PyPort.call/4`: the caller, or the process that its task works
  for.

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

  # How long a caller whose time is up waits for the end of its batch, whose time is up as well: Python has to end it first, and
  # that error says whether it had begun, and where it was.
  @end_ms 100

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
    {owner, _heir} = Ownership.pair(nil)
    request = :gen_server.send_request(batcher, {:item, ref, key, item, timeout, owner})

    # An answer that comes before the item is given up is the answer.
    with :timeout <- :gen_server.wait_response(request, timeout),
         begun = give_up(batcher, ref),
         :timeout <- :gen_server.receive_response(request, if(begun == false, do: 0, else: @end_ms)) do
      {:error, Error.timeout(timeout, begun, nil)}
    else
      {:reply, {:objects, value, objects}} ->
        for object <- objects, do: Ownership.note_in_scope({Object.server(object), owner}, [object.id])
        {:ok, value}

      {:reply, {:unknown_key, keys}} ->
        raise ArgumentError,
              "unknown :batch_key #{inspect(key)} for the batcher #{inspect(batcher)}, whose :batch_keys are #{inspect(keys)}"

      {:reply, outcome} ->
        outcome

      {:error, {:noproc, _batcher}} ->
        {:error, Error.unavailable("no PyPort.Batcher is running as #{inspect(batcher)}")}

      {:error, {reason, _batcher}} ->
        {:error, Error.of_exit(reason)}
    end
  end

  # `false` where the item has not begun, and will not; else `nil`.
  defp give_up(batcher, ref) do
    GenServer.call(batcher, {:give_up, ref}, @answer_ms)
  catch
    :exit, _reason -> nil
  end

  # --- items ----------------------------------------------------------------------------------

  # `queues` has the items of each key that wait, by their numbers, and the timer of the first; `waiting` the key and number of
  # each; `running` the items of each batch by its runner; `switching` who waits for the end of which runners.
  @impl true
  def init(options) do
    Process.flag(:trap_exit, true)
    queues = Map.new(options.batch_keys, &{&1, %{items: :gb_trees.empty(), timer: nil}})
    {:ok, Map.merge(options, %{queues: queues, waiting: %{}, running: %{}, switching: []})}
  end

  @impl true
  def handle_call({:item, ref, key, item, timeout, owner}, from, %{queues: queues} = state) do
    cond do
      not is_map_key(queues, key) ->
        {:reply, {:unknown_key, state.batch_keys}, state}

      map_size(state.waiting) >= state.max_pending ->
        message = "#{state.max_pending} items wait for the batcher already (max_pending); ask again later"
        {:reply, {:error, Error.new(:overloaded, message, begun: false)}, state}

      true ->
        entry = %{
          ref: ref,
          from: from,
          item: item,
          owner: owner,
          deadline: deadline(timeout),
          since: System.monotonic_time()
        }

        {:noreply, state |> enqueue(key, entry) |> dispatch()}
    end
  end

  # The time of an item is up. An item that runs gets no objects from here on.
  def handle_call({:give_up, ref}, _from, %{waiting: waiting} = state) do
    case waiting do
      %{^ref => {key, number}} ->
        tell(state, :drop, %{count: 1}, %{batch_key: key, reason: :timeout})
        items = :gb_trees.delete(number, state.queues[key].items)
        {:reply, false, put_items(%{state | waiting: Map.delete(waiting, ref)}, key, items)}

      _answered_or_running ->
        for {_runner, items} <- state.running, %{ref: ^ref, claim: claim} <- items, do: claim?(claim)
        {:reply, nil, state}
    end
  end

  def handle_call({:switch, server}, from, %{running: running} = state),
    do:
      {:noreply,
       dispatch(settle(%{state | server: server, switching: [{from, Map.keys(running)} | state.switching]}))}

  @impl true
  def handle_info(:due, state), do: {:noreply, dispatch(state)}

  def handle_info({:EXIT, runner, reason}, %{running: running} = state) when is_map_key(running, runner),
    do: {:noreply, state |> ended(runner, reason) |> settle() |> dispatch()}

  # Of a process that has linked itself.
  def handle_info({:EXIT, _pid, :normal}, state), do: {:noreply, state}
  def handle_info({:EXIT, _pid, reason}, state), do: {:stop, reason, state}
  def handle_info(_late, state), do: {:noreply, state}

  defp enqueue(%{queues: queues, waiting: waiting} = state, key, entry) do
    %{items: items} = queue = queues[key]
    number = :erlang.unique_integer([:monotonic])
    state = %{state | waiting: Map.put(waiting, entry.ref, {key, number})}
    all = :gb_trees.insert(number, entry, items)
    # The timer is that of the first item.
    if :gb_trees.is_empty(items),
      do: put_items(state, key, all),
      else: %{state | queues: %{queues | key => %{queue | items: all}}}
  end

  # The first item may be another one now.
  defp put_items(state, key, items) do
    with timer when timer != nil <- state.queues[key].timer, do: Process.cancel_timer(timer)
    due = due(items, state)
    timer = if due, do: Process.send_after(self(), :due, due, abs: true)
    put_in(state.queues[key], %{items: items, timer: timer})
  end

  # When the first of these items has waited for long enough, in ms.
  defp due(items, state) do
    unless :gb_trees.is_empty(items) do
      {_number, %{since: since}} = :gb_trees.smallest(items)
      System.convert_time_unit(since, :native, :millisecond) + state.batch_timeout
    end
  end

  # --- batches --------------------------------------------------------------------------------

  # Begins batches while one is full or due and Python may take one more; the one that has waited longest first.
  defp dispatch(state) do
    ready =
      for {key, %{items: items}} <- state.queues,
          due = due(items, state),
          why = why(items, due, state),
          do: {due, key, why}

    if ready == [] or map_size(state.running) >= concurrency(state) do
      state
    else
      {_due, key, why} = Enum.min(ready)
      state |> begin(key, why) |> dispatch()
    end
  end

  defp why(items, due, %{batch_size: size}) do
    cond do
      :gb_trees.size(items) >= size -> :size
      remaining(due) == 0 -> :timeout
      true -> nil
    end
  end

  defp concurrency(%{concurrency: nil, server: server}),
    do: max(length(Pool.servers(server || PyPort.Default)), 1)

  defp concurrency(%{concurrency: count}), do: count

  defp begin(state, key, why) do
    {taken, left} = take(state.queues[key].items, state.batch_size, [])
    {alive, dead} = Enum.split_with(taken, &alive?/1)
    if dead != [], do: tell(state, :drop, %{count: length(dead)}, %{batch_key: key, reason: :caller_down})
    state = put_items(%{state | waiting: Map.drop(state.waiting, Enum.map(taken, & &1.ref))}, key, left)

    if alive == [] do
      state
    else
      # Without the items that wait, which would be copied.
      options = Map.take(state, [:fun, :server, :binary_as, :batch_keys, :name])
      claims = :atomics.new(length(alive), [])
      items = for {item, index} <- Enum.with_index(alive, 1), do: Map.put(item, :claim, {claims, index})
      runner = spawn_link(fn -> run(items, key, why, options) end)
      put_in(state.running[runner], items)
    end
  end

  defp take(items, count, taken) do
    if count == 0 or :gb_trees.is_empty(items) do
      {Enum.reverse(taken), items}
    else
      {_number, item, items} = :gb_trees.take_smallest(items)
      take(items, count - 1, [item | taken])
    end
  end

  defp alive?(%{from: {pid, _tag}}), do: node(pid) != node() or Process.alive?(pid)

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
  def terminate(_reason, state) do
    batches = map_size(state.running) + map_size(state.queues) + map_size(state.waiting)
    finish(%{state | concurrency: batches, batch_timeout: 0})
  end

  defp finish(state) do
    state = dispatch(state)

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

    case request(asked, options) do
      {{:ok, {values, errors}}, taken_over} ->
        deal(items, values, errors, taken_over != [])
        {:ok, map_size(errors)}

      {{:error, error}, _none} ->
        if tl(items) != [] and of_one_item?(error, items) do
          # Halves find it in a few calls.
          {first, second} = Enum.split(items, div(length(items), 2))
          {_kind, one} = call_python(first, key, state)
          {_kind, other} = call_python(second, key, state)
          {error.kind, one + other}
        else
          answer_all(items, {:error, error})
          {error.kind, length(items)}
        end
    end
  end

  # Whether nothing has begun, and it may be for one item: that cannot be read or encoded, is too much for one frame together with
  # the others, or has an object of another server than theirs.
  defp of_one_item?(%Error{kind: :decode, begun: begun}, _items), do: begun != true
  defp of_one_item?(%Error{kind: :encode, begun: begun}, _items), do: begun == false

  defp of_one_item?(%Error{kind: :unavailable, begun: false}, items),
    do: items |> Enum.map(& &1.item) |> objects() != []

  defp of_one_item?(_error, _items), do: false

  # The encoder of an item may raise.
  defp request(asked, options) do
    Ownership.collect(fn -> Request.ask(asked, options) end)
  rescue
    error -> {{:error, Error.new(:encode, Exception.message(error), begun: false)}, []}
  end

  defp deal(items, values, errors, objects?) do
    for {{item, value}, index} <- items |> Enum.zip(values) |> Enum.with_index() do
      outcome =
        case errors do
          %{^index => description} -> {:error, Error.from_wire(description)}
          _none -> if objects?, do: give(value, item), else: {:ok, value}
        end

      if outcome != :gave_up, do: GenServer.reply(item.from, outcome)
    end
  end

  # An item is claimed once: for its caller, which gives it up, or by the runner, which is about to hand over objects.
  defp claim?({claims, index}), do: :atomics.exchange(claims, index, 1) == 0

  # Objects of this process are released when it ends, as now.
  defp give(value, %{owner: owner, claim: claim} = item) do
    objects = objects(value)

    cond do
      objects == [] ->
        {:ok, value}

      alive?(item) and claim?(claim) ->
        errors = for object <- objects, {:error, error} <- [PyPort.transfer(object, owner)], do: error
        if errors != [], do: PyPort.release(objects)
        if errors == [], do: {:objects, value, objects}, else: {:error, hd(errors)}

      true ->
        :gave_up
    end
  end

  defp objects(%Object{} = object), do: [object]
  defp objects([head | tail]), do: objects(head) ++ objects(tail)
  defp objects(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> objects()
  # A set is a struct, and has its members as keys.
  defp objects(map) when is_map(map), do: map |> :maps.to_list() |> objects()
  defp objects(_other), do: []

  defp answer_all(items, outcome), do: Enum.each(items, &GenServer.reply(&1.from, outcome))

  defp tell(state, event, measurements, metadata),
    do: Telemetry.execute([:py_port, :batcher, event], measurements, Map.put(metadata, :name, state.name))
end
