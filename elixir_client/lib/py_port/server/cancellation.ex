defmodule PyPort.Server.Cancellation do
  # Requests that are to end before their answer: whose time is up, whose caller has died, whose stream nobody reads any
  # more. Runs in the server.
  #
  # Whoever wants a request to end sends `cancel` and tells the server. From then on the request has an entry here, and its
  # row stays in the table until Python's last word on it: Python is as busy with it as before. Rung 1 is Python's
  # own (SIGURG, again and again). A request that does not end within `cancel_grace` of standing on the status page is
  # asked where it is (rung 2, SIGUSR2), and at the latest after `kill_grace` its process is killed (rung 3).
  #
  # Nobody is killed for the sake of a request that waits behind another one: it has its answer at once.
  #
  # An import that is interrupted leaves modules behind that are broken for good, so Python lets it end first. Python says
  # so in its pong; then the caller has its answer at once, and the import has `import_grace`.
  @moduledoc false

  require Logger

  alias PyPort.{Connection, Output, Registry, StatusPage, Telemetry, Wire}
  alias PyPort.Server.{Health, Ownership, Probe, Stacks, Traffic}

  @type why :: :timeout | :caller_down | :stopped
  @type entry :: %{
          why: why(),
          since: integer(),
          # Since when it may be what is in the way; nil while another one was.
          blamed: integer() | nil,
          rung: 1 | 2,
          # What stood in the way when rung 2 was reached: it must be the same for rung 3.
          culprit: term(),
          # What had been heard of Python at the last look.
          heard: term(),
          # The module that its code is importing, as far as is known.
          importing: String.t() | nil,
          # Whether its code has begun, by Python's word.
          begun?: boolean(),
          # Whether its caller has an answer already, or needs none.
          answered?: boolean(),
          # Whether Python has said that it is a stream that cannot end before main is free.
          waits?: boolean()
        }
  @type state :: map()

  # With the interpreter free Python's word is here within a few ms; a crowded machine has a few more.
  @confirm_ms 25
  # How much of the last grace is left for the kill, the death, and the news of it.
  @news_ms 100
  # Those that have an answer are looked at again now and then: they may begin yet.
  @again_ms 100
  # How long Python has at the most to tell its stacks before the kill.
  @answer_ms 500
  # What a stack shows in the midst of an import.
  @import_frame "<frozen importlib._bootstrap"

  @doc "The request is to end; its `cancel` is on its way."
  @spec cancel(state(), Wire.id(), why()) :: state()
  def cancel(%{phase: :ready} = state, id, why) do
    if :ets.member(state.connection.table, id) and entry(state, id) == nil do
      tell(state, :cancel, %{pending: pending(state)}, %{request: number(id), reason: why})
      now = now()

      entry = %{
        why: why,
        since: now,
        blamed: now,
        rung: 1,
        culprit: nil,
        heard: nil,
        importing: nil,
        begun?: false,
        answered?: why == :caller_down,
        waits?: false
      }

      state =
        %{state | culprit: nil} |> put(id, entry) |> wait(id, min(@confirm_ms, state.options.cancel_grace))

      # Its pong tells whether the request is in the midst of an import. Of one whose caller is dead it is asked by the
      # sweep, behind another cancel.
      if why != :caller_down, do: Connection.command(state.connection, Wire.ping(id))

      case why do
        :caller_down -> silence(state, id)
        # What is made from now on is for nobody; who reads no further still hears the rest.
        :stopped -> Traffic.end_calls(state, id)
        :timeout -> state
      end
    else
      state
    end
  end

  def cancel(state, _id, _why), do: state

  @doc "Its caller waits no longer, whatever may come."
  @spec gave_up(state(), Wire.id()) :: state()
  def gave_up(state, id) do
    case entry(state, id) do
      nil -> Ownership.cast(state, {:disclaim, {:reply, id}})
      entry -> state |> put(id, %{entry | answered?: true}) |> silence(id)
    end
  end

  @doc "Whether what still comes of the request has nobody to go to."
  @spec answered?(map()) :: boolean()
  def answered?(%{cancel: %{answered?: answered?}}), do: answered?
  def answered?(_attached), do: false

  @doc "Python's last word on a request that was being cancelled."
  @spec ended(state(), Wire.id(), entry(), frame :: binary()) :: state()
  def ended(state, id, entry, frame) do
    {kind, begun} = result(frame)
    tell_ended(state, id, entry, kind)

    if kind == :cancelled and begun != false and state.options.after_cancel == :restart do
      leave_service(state)
      send(self(), :restart)
    end

    state
  end

  # Before its caller has the answer, who may ask again at once.
  defp leave_service(%{options: %{after_cancel: :restart}, connection: connection}) do
    Registry.delete(self())
    Connection.refuse(connection)
  end

  defp leave_service(_state), do: :ok

  @doc "Python's answer to a ping: whether it has begun, what it is importing, whether it is a stream that waits for main."
  @spec pong(state(), Wire.id(), map()) :: state()
  def pong(state, id, said) do
    entry = entry(state, id)

    case {entry && %{entry | begun?: entry.begun? or said[:begun] == true}, said} do
      {nil, _said} ->
        state

      {entry, %{waiting: true}} ->
        # It is in no one's way.
        entry = %{entry | waits?: true}
        state |> answer(id, entry, true, nil) |> put(id, %{entry | answered?: true, blamed: nil, rung: 1})

      {%{importing: name} = entry, %{importing: name}} when name != nil ->
        put(state, id, entry)

      {entry, %{importing: name}} when is_binary(name) ->
        importing(state, id, %{entry | waits?: false}, name)

      {%{importing: nil} = entry, _said} ->
        put(state, id, %{entry | waits?: false})

      {entry, _said} ->
        put(state, id, %{entry | waits?: false, importing: nil, blamed: now()})
    end
  end

  # It is told once, since the names of modules inside of each other may change.
  defp importing(state, id, entry, name) do
    if entry.importing == nil do
      Logger.warning(
        "PyPort #{state.who}: request #{number(id)} was cancelled (#{reason(entry.why)}) while it was importing #{name}. " <>
          "The import goes on, for at most #{state.options.import_grace} ms (import_grace), since one that is cut short leaves " <>
          "the module broken"
      )

      leave_service(state)
    end

    entry = %{entry | importing: name, rung: 1}
    state |> answer(id, entry, true, {:importing, name}) |> put(id, %{entry | answered?: true})
  end

  @doc "Python knows nothing of a request whose caller has died, and there is no last word to come."
  @spec never_sent(state(), Wire.id(), entry()) :: state()
  def never_sent(state, id, entry) do
    tell_ended(state, id, entry, :never_sent)
    state
  end

  defp tell_ended(state, id, entry, result) do
    duration = System.convert_time_unit(now() - entry.since, :millisecond, :native)
    tell(state, :cancelled, %{duration: duration}, %{request: number(id), result: result})
  end

  defp result(<<131, 104, _arity, 119, 5, "error", _rest::binary>> = frame) do
    case Wire.decode(frame) do
      {:ok, {:error, _id, %{kind: kind} = description}} -> {kind, description[:begun]}
      _unreadable -> {:error, nil}
    end
  end

  defp result(_value), do: {:ok, true}

  # --- climbing -------------------------------------------------------------------------------

  @doc "Time to look at the request again."
  @spec step(state(), Wire.id()) :: {:ok, state()} | {:exited, state()} | {:kill, atom(), state()}
  def step(%{phase: :ready} = state, id) do
    case entry(state, id) do
      nil -> {:ok, state}
      entry -> state |> Health.look() |> step(id, entry)
    end
  end

  def step(state, _id), do: {:ok, state}

  defp step({:exited, state}, _id, _entry), do: {:exited, state}

  defp step({_verdict, state}, id, entry) do
    page = Probe.page(state.pulse)
    place = place(state, page, id)
    left_over = left_over(state, page)
    heard? = entry.heard not in [nil, state.liveness.heard]
    entry = %{entry | heard: state.liveness.heard}
    state = state |> put(id, entry) |> sound_out(id, place, page)
    place = if place == :elsewhere and entry.waits?, do: :waiting, else: place

    begun = begun(entry, StatusPage.alive(page), id)

    case blame(place, page, left_over, Health.well?(state), heard?) do
      :it -> climb(state, id, entry, left_over || place, begun)
      :other -> {:ok, leave(state, id, entry, begun)}
      :soon -> {:ok, leave_late(state, id, entry, begun)}
    end
  end

  # A request that has not begun may begin yet: only Python can say that it has not, or its page when it is dead.
  defp begun(%{begun?: true}, _page, _id), do: true
  defp begun(_entry, page, id), do: StatusPage.begun(page, id)

  # A request that main is still at although it has been answered: what it left behind is being tidied up, for a moment.
  defp left_over(state, %{running: running}) when running != nil do
    if :ets.member(state.connection.table, running), do: nil, else: running
  end

  defp left_over(_state, _page), do: nil

  # Whether main, which may be at another request, lets anybody else run meanwhile: then this is answered by the next
  # look, with the request that keeps the event loop from running, if one does, and with the module that it is importing.
  defp sound_out(state, id, :running, _page) do
    Connection.command(state.connection, Wire.ping(id))
    state
  end

  defp sound_out(state, id, :elsewhere, _page) do
    Connection.command(state.connection, Wire.ping(id))
    %{state | culprit: state.culprit || :unheard}
  end

  defp sound_out(state, _id, _place, _page), do: state

  @doc """
  Python's word on which request keeps the event loop from running; nil where none does. Until there is one, the
  culprit is `:unheard`, as it is where the interpreter is held.
  """
  @spec heard(state(), map() | nil) :: state()
  def heard(state, %{request: <<number::64>>, code: code}) when is_binary(code),
    do: %{state | culprit: %{request: number, code: code}}

  def heard(state, _none), do: %{state | culprit: :none}

  # Whose fault it is that no answer comes.
  defp blame(:running, _page, _left_over, _well?, _heard?), do: :it

  defp blame(place, _page, left_over, _well?, _heard?)
       when left_over != nil and place in [:waiting, :passed],
       do: :it

  # Main is at an earlier one.
  defp blame(:waiting, %{running: running}, _left_over, _well?, _heard?) when running != nil, do: :other

  # Main runs nothing. Its answer may be on the way; but if nothing is heard of Python, it takes no requests any more.
  defp blame(:waiting, _page, _left_over, well?, _heard?), do: if(well?, do: :soon, else: :it)
  defp blame(:passed, %{running: nil}, _left_over, well?, _heard?), do: if(well?, do: :soon, else: :it)
  defp blame(:passed, _page, _left_over, _well?, _heard?), do: :soon

  # Where the one in main holds the interpreter, this one can not even be told to end. A verdict comes too late to tell.
  defp blame(:elsewhere, %{running: running}, _left_over, _well?, heard?) when running != nil,
    do: if(heard?, do: :it, else: :soon)

  # It goes on although it was told to end, or blocks the loop, so that it cannot be told.
  defp blame(:elsewhere, _page, _left_over, _well?, _heard?), do: :it
  defp blame(:unknown, _page, _left_over, _well?, _heard?), do: :soon

  # Without a page the oldest request is the one that runs, as far as anybody can tell.
  defp place(state, nil, id) do
    oldest = :ets.foldl(fn row, least -> min(elem(row, 0), least) end, id, state.connection.table)
    if oldest == id, do: :running, else: :unknown
  end

  defp place(_state, page, id), do: StatusPage.place(page, id)

  # It is in no one's way.
  defp leave(state, id, entry, begun) do
    state
    |> answer(id, entry, begun, nil)
    |> put(id, %{entry | answered?: true, blamed: nil, rung: 1})
    |> wait(id, max(state.options.cancel_grace, @again_ms))
  end

  defp leave_late(%{options: %{cancel_grace: grace}} = state, id, entry, begun) do
    left = entry.since + grace - now()
    if left > 0, do: wait(state, id, left), else: leave(state, id, entry, begun)
  end

  defp climb(state, id, %{rung: 2, culprit: culprit} = entry, culprit, _begun) do
    why = if entry.importing, do: :import, else: :request
    {:kill, why, %{state | culprit: culprit(state.culprit, culprit, id)}}
  end

  # Something else is in the way by now.
  defp climb(state, id, %{rung: 2} = entry, culprit, begun),
    do: climb(state, id, %{entry | rung: 1, blamed: nil}, culprit, begun)

  defp climb(%{options: options} = state, id, entry, culprit, begun) do
    now = now()
    # One that began although it was cancelled has its grace from then on.
    blamed = entry.blamed || now
    left = blamed + if(entry.importing, do: options.import_grace, else: options.cancel_grace) - now

    if left > 0 do
      {:ok,
       state
       |> put(id, %{entry | blamed: blamed})
       |> wait(id, if(entry.importing, do: min(left, @again_ms), else: left))}
    else
      # In case that its time is up before the end is here, on a crowded machine.
      others = state.culprit |> culprit(culprit, id) |> others(number(id))
      tell_caller(state, id, {:so_far, begun, nil, others})
      grace = options.kill_grace
      state = state |> put(id, %{entry | blamed: blamed, rung: 2, culprit: culprit}) |> dump(:request)
      state = wait(state, id, grace - min(@news_ms, div(grace, 2)))

      # Last, since Logger may make its callers wait.
      Logger.warning(
        "PyPort #{state.who}: request #{number(id)} goes on #{now - entry.since} ms after it was cancelled " <>
          "(#{reason(entry.why)}); Python is killed if it has not ended in #{grace} ms"
      )

      {:ok, state}
    end
  end

  # The culprit as the errors of all requests name it; nil where there is none.
  defp culprit(%{} = blocking, :elsewhere, _id), do: blocking
  defp culprit(:unheard, :elsewhere, _id), do: %{request: nil, code: nil}
  defp culprit(_none, place, id) when place in [:running, :elsewhere], do: %{request: number(id), code: nil}
  defp culprit(_any, left_over, _id) when is_binary(left_over), do: %{request: number(left_over), code: nil}
  defp culprit(_any, _waiting, _id), do: nil

  @doc "Before its Python is killed: answers the requests that are known to be in the way, with their stack."
  @spec fell(state()) :: state()
  def fell(state) do
    page = Probe.page(state.pulse)
    state |> last_stack() |> fell(page, &(StatusPage.begun(page, &1) != false))
  end

  @doc "After it was killed, with its last page: answers the others."
  @spec fell(state(), StatusPage.t() | nil) :: state()
  def fell(state, page), do: fell(state, page, fn _id -> true end)

  defp fell(state, page, whom?) do
    for {id, %{cancel: %{rung: 2} = entry}} <- state.attached, whom?.(id), reduce: state do
      state ->
        answer(state, id, entry, begun(entry, page, id), state.stack, others(state.culprit, number(id)))
    end
  end

  # A dump may still be under way, or may have come later than it was waited for.
  defp last_stack(%{stack: nil, dump: {_pid, _reason, _at, mark}} = state),
    do: %{state | stack: Stacks.since(state.connection, mark)}

  defp last_stack(state), do: state

  # --- stacks ---------------------------------------------------------------------------------

  @doc "Has the stacks taken; `dumped/3` gets them."
  @spec dump(state(), reason :: atom()) :: state()
  def dump(%{dump: {pid, _reason, _at, _mark}} = state, reason) do
    if Process.alive?(pid), do: state, else: dump(%{state | dump: nil}, reason)
  end

  def dump(%{connection: connection} = state, reason) do
    server = self()
    mark = Stacks.mark(connection)

    # Half of what is left is for Python to answer; the other for faulthandler, and to be told. One whose interpreter is held
    # gives no answer.
    answer_ms = if reason == :request, do: div(min(state.options.kill_grace, @answer_ms), 2), else: 0
    pid = spawn(fn -> send(server, {:dumped, self(), Stacks.take_before_kill(connection, answer_ms)}) end)
    %{state | dump: {pid, reason, System.monotonic_time(), mark}, stack: nil}
  end

  @spec dumped(state(), pid(), {:ok, String.t()} | {:error, PyPort.Error.t()}) :: state()
  def dumped(%{dump: {pid, reason, at, _mark}} = state, pid, result) do
    stack =
      case result do
        {:ok, stack} ->
          stack

        {:error, error} ->
          Logger.warning("PyPort #{state.who}: no stacks: #{error.message}")
          nil
      end

    duration = System.monotonic_time() - at

    Telemetry.execute(
      [:py_port, :server, :dump],
      %{duration: duration},
      Map.merge(Health.about(state), %{reason: reason, stack: stack})
    )

    page = StatusPage.alive(Probe.page(state.pulse))
    state = %{state | dump: if(stack == nil, do: state.dump), stack: stack}

    for {id, %{cancel: %{rung: 2} = entry}} <- state.attached, stack != nil, reduce: state do
      state ->
        # Loading a library holds the interpreter, so that no pong can say it.
        if entry.importing == nil and stack =~ @import_frame do
          importing(state, id, entry, "a module")
        else
          culprit = state.culprit |> culprit(entry.culprit, id) |> others(number(id))
          tell_caller(state, id, {:so_far, begun(entry, page, id), stack, culprit})
          state
        end
    end
  end

  def dumped(state, _pid, _result), do: state

  # --- small things ---------------------------------------------------------------------------

  defp answer(state, id, entry, begun, stack, culprit \\ nil)
  defp answer(state, _id, %{answered?: true}, _begun, _stack, _culprit), do: state

  defp answer(state, id, entry, begun, stack, culprit) do
    tell_caller(state, id, {:timed_out, begun, stack, culprit})
    state |> put(id, %{entry | answered?: true}) |> silence(id)
  end

  defp others(%{request: request} = culprit, number) when request != number, do: culprit
  defp others(_own_or_none, _number), do: nil

  defp tell_caller(state, id, news) do
    with [{_id, ref, _caller, _extra}] <- :ets.lookup(state.connection.table, id),
         do: send(ref, {ref, news})
  end

  # What it still prints, and whom it still calls, has nobody to be for.
  defp silence(state, id) do
    attached = Map.fetch!(state.attached, id)
    if attached.writer, do: Output.abandon(attached.writer)
    state = put_in(state.attached[id], %{attached | writer: nil})
    state = Traffic.end_calls(state, id)
    Ownership.cast(state, {:disclaim, {:reply, id}})
  end

  defp entry(state, id) do
    case state.attached do
      %{^id => %{cancel: entry}} -> entry
      _none -> nil
    end
  end

  defp put(state, id, entry), do: Traffic.attach(state, id, :cancel, entry)

  defp wait(state, id, ms) do
    Process.send_after(self(), {:rung, id}, max(ms, 0))
    state
  end

  defp tell(state, event, measurements, metadata),
    do: Telemetry.execute([:py_port, :request, event], measurements, Map.merge(Health.about(state), metadata))

  defp pending(state), do: :ets.info(state.connection.table, :size)

  defp reason(:timeout), do: "its timeout has passed"
  defp reason(:caller_down), do: "its caller has died"
  defp reason(:stopped), do: "its stream is read no further"

  defp number(<<number::64>>), do: number

  defp now, do: System.monotonic_time(:millisecond)
end
