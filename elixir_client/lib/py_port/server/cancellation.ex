defmodule PyPort.Server.Cancellation do
  # Requests that are to end before their answer: their time is up, their caller has died, or their stream is read no
  # further. Runs in the server.
  #
  # The process that wants a request to end sends `cancel` and tells the server. From then on the request has an entry
  # here, and its row stays in the table until Python's last word on it: Python is as busy with it as before. Python
  # interrupts the request itself (SIGURG, again and again). A request that does not end within `cancel_grace` of standing
  # on the status page is asked where it is (step 2, SIGUSR2), and at the latest after `kill_grace` its process is killed.
  #
  # No process is killed for the sake of a request that waits behind another one: that one has its answer at once. Nor for
  # one that keeps a thread of its own and delays no other: then the server is replaced when the others have ended.
  #
  # An import that is interrupted leaves modules behind that are broken for good, so Python lets it end first. Python says
  # so in its pong; then the caller has its answer at once, and the import has `import_grace`.
  @moduledoc false

  require Logger

  import PyPort.Deadline, only: [now: 0]

  alias PyPort.{Connection, Error, Registry, StatusPage, Wire}
  alias PyPort.Server.{Events, Health, Ownership, Requests, Stacks, State}

  # Besides the entries: the process that takes the stacks, with its reason, start and mark; the stacks that were taken
  # last; why the kill follows when they are taken; which request keeps those from ending that were cancelled, see
  # `blocking/1`; and whether the server is to be replaced, see `replace/1`.
  defstruct [:dump, :stack, :doom, :culprit, replacing?: false, entries: %{}]

  @type why :: :timeout | :caller_down | :stopped
  @type entry :: %{
          why: why(),
          since: integer(),
          # Since when it may be what is in the way; nil while another one was.
          blamed: integer() | nil,
          step: 1 | 2,
          # The obstacle when step 2 was reached: it must be the same for the kill.
          obstacle: StatusPage.place() | Wire.id() | nil,
          # As `Health.heard/1` gave it at the last look.
          heard: term(),
          # The module that its code is importing, as far as is known.
          importing: String.t() | nil,
          # Whether its code has begun, by Python's word.
          begun?: boolean(),
          # Whether its caller has an answer already, or needs none.
          answered?: boolean(),
          # Whether Python has said that it is a stream that cannot end before main is free.
          waits?: boolean(),
          # Whether it goes on until the server is replaced.
          abandoned?: boolean()
        }

  @type t :: %__MODULE__{
          dump: {pid(), reason :: atom(), since :: integer(), mark :: non_neg_integer()} | nil,
          stack: String.t() | nil,
          doom: :gil_held | :stuck | nil,
          culprit: Error.culprit() | :unheard | :none | nil,
          replacing?: boolean(),
          entries: %{optional(Wire.id()) => entry()}
        }

  # With the interpreter free Python's word is here within a few ms; a crowded machine has a few more.
  @confirm_ms 25
  # How much of the last grace is left for the kill, the end of the process, and the news of it.
  @news_ms 100
  # Those that have an answer are looked at again now and then: they may begin yet.
  @again_ms 100
  # How long Python has at the most to tell its stacks before the kill.
  @answer_ms 500
  # A stack shows this frame in the midst of an import.
  @import_frame "<frozen importlib._bootstrap"

  @spec new() :: t()
  def new, do: %__MODULE__{}

  # The request is to end; its `cancel` is on its way.
  @spec cancel(State.t(), Wire.id(), why()) :: State.t()
  def cancel(%{phase: :ready, connection: connection, cancellation: %{entries: entries}} = state, id, why)
      when not is_map_key(entries, id) do
    if :ets.member(connection.table, id) do
      pending = Connection.pending(connection)
      Events.tell(state, :request, :cancel, %{pending: pending}, %{request: number(id), reason: why})
      now = now()

      entry = %{
        why: why,
        since: now,
        blamed: now,
        step: 1,
        obstacle: nil,
        heard: nil,
        importing: nil,
        begun?: false,
        answered?: why == :caller_down,
        waits?: false,
        abandoned?: false
      }

      state =
        state |> put_culprit(nil) |> put(id, entry) |> wait(id, min(@confirm_ms, state.options.cancel_grace))

      # Its pong tells whether the request is in the midst of an import. Of one whose caller is dead it is asked by
      # `orphaned/2`, behind another cancel.
      if why != :caller_down, do: ping(state, id)

      case why do
        :caller_down -> silence(state, id)
        # A call from now on is for no reader; a consumer that reads no further still sees what it prints.
        :stopped -> Requests.end_calls(state, id)
        :timeout -> state
      end
    else
      state
    end
  end

  def cancel(state, _id, _why), do: state

  # The caller of a request has died. It may have told Python to end the request, or not; to be told twice does no
  # harm.
  @spec orphaned(State.t(), Wire.id()) :: State.t()
  def orphaned(state, id) do
    Connection.command(state.connection, Wire.cancel(id))
    before = why(state, id)
    state = cancel(state, id, :caller_down)
    # A frame that the caller has sent was sent before its death, and this comes behind it.
    if before in [nil, :caller_down], do: ping(state, id)
    state
  end

  # The caller of a request waits no longer.
  @spec gave_up(State.t(), Wire.id()) :: State.t()
  def gave_up(state, id) do
    case entry(state, id) do
      nil -> Ownership.cast(state, {:disclaim, {:reply, id}})
      entry -> state |> put(id, %{entry | answered?: true}) |> silence(id)
    end
  end

  # Whether the caller of a request has its answer already: later output and objects have no reader.
  @spec answered?(State.t(), Wire.id()) :: boolean()
  def answered?(state, id), do: match?(%{answered?: true}, entry(state, id))

  # The requests that are being cancelled.
  @spec ids(State.t()) :: [Wire.id()]
  def ids(%{cancellation: %{entries: entries}}), do: Map.keys(entries)

  # Forgets a request that is over.
  @spec forget(State.t(), Wire.id()) :: State.t()
  def forget(%{cancellation: part} = state, id),
    do: %{state | cancellation: %{part | entries: Map.delete(part.entries, id)}}

  # Python's last word on a request, which may have been cancelled.
  @spec ended(State.t(), Wire.id(), frame :: binary()) :: State.t()
  def ended(%{cancellation: %{entries: entries}} = state, id, frame) when is_map_key(entries, id) do
    {kind, begun} = result(frame)
    tell_ended(state, id, entries[id], kind)

    if kind == :cancelled and begun != false and state.options.after_cancel == :restart do
      leave_service(state)
      send(self(), :restart)
    end

    forget(state, id)
  end

  def ended(state, _id, _frame), do: state

  defp tell_ended(state, id, entry, result) do
    duration = System.convert_time_unit(now() - entry.since, :millisecond, :native)
    Events.tell(state, :request, :cancelled, %{duration: duration}, %{request: number(id), result: result})
  end

  defp result(<<131, 104, _arity, 119, 5, "error", _rest::binary>> = frame) do
    case Wire.decode(frame) do
      {:ok, {:error, _id, %{kind: kind} = description}} -> {kind, description[:begun]}
      _unreadable -> {:error, nil}
    end
  end

  defp result(_value), do: {:ok, true}

  # Before its caller has the answer, who may ask again at once.
  defp leave_service(%{options: %{after_cancel: :restart}} = state), do: take_no_more(state)
  defp leave_service(_state), do: :ok

  defp take_no_more(%{connection: connection}) do
    Registry.delete(self())
    Connection.refuse(connection)
  end

  # --- pongs ----------------------------------------------------------------------------------

  # Python's answer to a ping: whether the request is open and has begun, what it is importing, whether it is a stream that
  # waits for main, and which request keeps the event loop from running.
  @spec pong(State.t(), Wire.id(), map()) :: State.t()
  def pong(state, id, said) do
    state = put_culprit(state, blocking(said[:blocking]))

    case {entry(state, id), said} do
      {nil, _said} ->
        state

      # No answer has come of it, and none will: its caller was killed with the row in the table and the frame in its hands.
      # All other requests were sent before this was asked.
      {%{why: :caller_down} = entry, %{open: false}} ->
        :ets.delete(state.connection.table, id)
        tell_ended(state, id, entry, :never_sent)
        state |> forget(id) |> Requests.abandon(id)

      {entry, said} ->
        pong_of(state, id, %{entry | begun?: entry.begun? or said[:begun] == true}, said)
    end
  end

  # It delays no other request.
  defp pong_of(state, id, entry, %{waiting: true}) do
    entry = %{entry | waits?: true}
    state |> answer(id, entry, true, nil) |> put(id, %{entry | answered?: true, blamed: nil, step: 1})
  end

  defp pong_of(state, id, %{importing: name} = entry, %{importing: name}) when name != nil,
    do: put(state, id, entry)

  defp pong_of(state, id, entry, %{importing: name}) when is_binary(name),
    do: importing(state, id, %{entry | waits?: false}, name)

  defp pong_of(state, id, %{importing: nil} = entry, _said), do: put(state, id, %{entry | waits?: false})

  defp pong_of(state, id, entry, _said),
    do: put(state, id, %{entry | waits?: false, importing: nil, blamed: now()})

  # Until Python has said it, the culprit is `:unheard`, as it is where the interpreter is held.
  defp blocking(%{request: <<number::64>>, code: code}) when is_binary(code),
    do: %{request: number, code: code}

  defp blocking(_none), do: :none

  # It is logged once, since the names of modules inside of each other may change.
  defp importing(state, id, entry, name) do
    if entry.importing == nil do
      Logger.warning(
        "PyPort #{state.who}: request #{number(id)} was cancelled (#{reason(entry.why)}) while it was importing #{name}. " <>
          "The import goes on, for at most #{state.options.import_grace} ms (import_grace), since one that is cut short leaves " <>
          "the module broken"
      )

      leave_service(state)
    end

    entry = %{entry | importing: name, step: 1}
    state |> answer(id, entry, true, {:importing, name}) |> put(id, %{entry | answered?: true})
  end

  # --- steps ----------------------------------------------------------------------------------

  # Time to look at the request again.
  @spec next_step(State.t(), Wire.id()) :: State.next()
  def next_step(%{phase: :ready} = state, id) do
    case entry(state, id) do
      nil -> {:ok, state}
      entry -> state |> Health.look() |> next_step(id, entry)
    end
  end

  def next_step(state, _id), do: {:ok, state}

  defp next_step({:exited, state}, _id, _entry), do: {:exited, state}

  defp next_step({_health, state}, id, entry) do
    page = Health.page(state)
    place = place(state, page, id)
    left_over = left_over(state, page)
    heard? = entry.heard not in [nil, Health.heard(state)]
    entry = %{entry | heard: Health.heard(state)}
    state = state |> put(id, entry) |> sound_out(id, place)
    place = if place == :off_main and entry.waits?, do: :waiting, else: place

    begun = begun(entry, StatusPage.alive(page), id)

    case blame(place, page, left_over, Health.well?(state), heard?) do
      :it -> proceed(state, id, entry, left_over || place, begun, heard?)
      :other -> {:ok, leave(state, id, entry, begun)}
      :soon -> {:ok, leave_late(state, id, entry, begun)}
    end
  end

  # A request that has not begun may begin yet: only Python can say that it has not, or its page when it is dead.
  defp begun(%{begun?: true}, _page, _id), do: true
  defp begun(_entry, page, id), do: StatusPage.begun(page, id)

  # A request that main is still at although it has been answered: main tidies up after it, for a moment.
  defp left_over(state, %{running: running}) when running != nil do
    if :ets.member(state.connection.table, running), do: nil, else: running
  end

  defp left_over(_state, _page), do: nil

  # Whether main, which may be at another request, lets other code run meanwhile: then this is answered by the next
  # look, with the request that keeps the event loop from running, if one does, and with the module that it is importing.
  defp sound_out(state, id, place) when place in [:running, :off_main] do
    ping(state, id)
    culprit = state.cancellation.culprit
    if place == :off_main and culprit == nil, do: put_culprit(state, :unheard), else: state
  end

  defp sound_out(state, _id, _place), do: state

  # Which request is the reason that no answer comes.
  defp blame(:running, _page, _left_over, _well?, _heard?), do: :it

  defp blame(place, _page, left_over, _well?, _heard?)
       when left_over != nil and place in [:waiting, :passed],
       do: :it

  # Main is at an earlier one.
  defp blame(:waiting, %{running: running}, _left_over, _well?, _heard?) when running != nil, do: :other

  # Main is idle. Its answer may be on the way; but if Python is silent, it takes no requests any more.
  defp blame(:waiting, _page, _left_over, well?, _heard?), do: if(well?, do: :soon, else: :it)
  defp blame(:passed, %{running: nil}, _left_over, well?, _heard?), do: if(well?, do: :soon, else: :it)
  defp blame(:passed, _page, _left_over, _well?, _heard?), do: :soon

  # If the request in main holds the interpreter, this one cannot even be told to end. A health state comes too late to
  # show it.
  defp blame(:off_main, %{running: running}, _left_over, _well?, heard?) when running != nil,
    do: if(heard?, do: :it, else: :soon)

  # It goes on although it was told to end, or blocks the loop, so that it cannot be told.
  defp blame(:off_main, _page, _left_over, _well?, _heard?), do: :it
  defp blame(:unknown, _page, _left_over, _well?, _heard?), do: :soon

  # Without a page the oldest request is taken for the one that runs.
  defp place(state, nil, id) do
    oldest = :ets.foldl(fn row, least -> min(elem(row, 0), least) end, id, state.connection.table)
    if oldest == id, do: :running, else: :unknown
  end

  defp place(_state, page, id), do: StatusPage.place(page, id)

  # It delays no other request.
  defp leave(state, id, entry, begun) do
    state
    |> answer(id, entry, begun, nil)
    |> put(id, %{entry | answered?: true, blamed: nil, step: 1})
    |> wait(id, max(state.options.cancel_grace, @again_ms))
  end

  defp leave_late(%{options: %{cancel_grace: grace}} = state, id, entry, begun) do
    left = entry.since + grace - now()
    if left > 0, do: wait(state, id, left), else: leave(state, id, entry, begun)
  end

  defp proceed(state, id, %{step: 2, obstacle: obstacle} = entry, obstacle, begun, heard?) do
    if alone?(state, obstacle, heard?) do
      {:ok, abandon(state, id, entry, begun)}
    else
      culprit = culprit(state.cancellation.culprit, obstacle, id)
      {:kill, if(entry.importing, do: :import, else: :request), put_culprit(state, culprit)}
    end
  end

  # Something else is in the way by now.
  defp proceed(state, id, %{step: 2} = entry, obstacle, begun, heard?),
    do: proceed(state, id, %{entry | step: 1, blamed: nil}, obstacle, begun, heard?)

  defp proceed(%{options: options} = state, id, entry, obstacle, begun, heard?) do
    now = now()
    # A request that began although it was cancelled has its grace from then on.
    blamed = entry.blamed || now
    left = blamed + if(entry.importing, do: options.import_grace, else: options.cancel_grace) - now

    entry = %{entry | blamed: blamed}

    cond do
      left > 0 ->
        {:ok, state |> put(id, entry) |> wait(id, if(entry.importing, do: min(left, @again_ms), else: left))}

      alone?(state, obstacle, heard?) ->
        {:ok, abandon(state, id, entry, begun)}

      true ->
        {:ok, warn(state, id, %{entry | step: 2, obstacle: obstacle}, begun)}
    end
  end

  # The last grace begins.
  defp warn(%{options: %{kill_grace: grace}} = state, id, entry, begun) do
    # The caller's patience may be over before the kill, on a crowded machine.
    tell_caller(state, id, {:so_far, begun, nil, other_culprit(state, entry.obstacle, id)})
    state = state |> put(id, entry) |> dump(:request) |> wait(id, grace - min(@news_ms, div(grace, 2)))

    # Last, since Logger may make its callers wait.
    Logger.warning(
      "PyPort #{state.who}: request #{number(id)} goes on #{now() - entry.since} ms after it was cancelled " <>
        "(#{reason(entry.why)}); Python is killed if it has not ended in #{grace} ms"
    )

    state
  end

  # --- requests that are abandoned ------------------------------------------------------------

  # Whether the request delays no other: requests have threads of their own, and Python has answered since the last look
  # that its event loop is free. An answer from before may be out of date: code may hold the interpreter since then.
  defp alone?(%{options: %{threads: threads}, cancellation: %{culprit: culprit}}, obstacle, heard?),
    do: threads > 0 and obstacle == :off_main and culprit == :none and heard?

  # The request cannot be stopped, so the server takes no more requests, and is replaced when the others have ended.
  defp abandon(state, id, entry, begun) do
    take_no_more(state)
    state = state |> answer(id, entry, begun, nil) |> put(id, %{entry | answered?: true, abandoned?: true})

    Logger.warning(
      "PyPort #{state.who}: request #{number(id)} goes on #{now() - entry.since} ms after it was cancelled " <>
        "(#{reason(entry.why)}), and cannot be stopped. The server takes no more requests, and starts anew when its other " <>
        "requests have ended"
    )

    if state.cancellation.replacing?, do: state, else: replace(put_in(state.cancellation.replacing?, true))
  end

  # Starts anew, unless requests are open that were not abandoned.
  @spec replace(State.t()) :: State.t()
  def replace(%{cancellation: %{entries: entries}} = state) do
    abandoned = Enum.count(entries, fn {_id, entry} -> entry.abandoned? end)

    if Connection.pending(state.connection) > abandoned,
      do: Process.send_after(self(), :replace, @again_ms),
      else: send(self(), :restart)

    state
  end

  # --- culprits -------------------------------------------------------------------------------

  # The culprit as the errors of all requests name it; nil where there is none.
  defp culprit(%{} = blocking, :off_main, _id), do: blocking
  defp culprit(:unheard, :off_main, _id), do: %{request: nil, code: nil}
  defp culprit(_none, place, id) when place in [:running, :off_main], do: %{request: number(id), code: nil}
  defp culprit(_any, left_over, _id) when is_binary(left_over), do: %{request: number(left_over), code: nil}
  defp culprit(_any, _waiting, _id), do: nil

  # The culprit as the error of one request names it: a request is not its own.
  defp other_culprit(state, obstacle, id),
    do: state.cancellation.culprit |> culprit(obstacle, id) |> others(number(id))

  defp others(%{request: request} = culprit, number) when request != number, do: culprit
  defp others(_own_or_none, _number), do: nil

  defp put_culprit(state, culprit), do: put_in(state.cancellation.culprit, culprit)

  # --- the kill -------------------------------------------------------------------------------

  # Before its Python is killed: answers the requests that are known to be in the way, with their stack. Gives the culprit,
  # which a pong that is still on its way does not change.
  @spec before_kill(State.t()) :: {Error.culprit() | nil, State.t()}
  def before_kill(state) do
    page = Health.page(state)
    state = state |> last_stack() |> answer_stuck(page, &(StatusPage.begun(page, &1) != false))
    culprit = state.cancellation.culprit
    {if(is_map(culprit), do: culprit), state}
  end

  # After it was killed, with its last page: answers the others. Gives their stack.
  @spec after_kill(State.t(), Error.culprit() | nil, StatusPage.t() | nil) :: {String.t() | nil, State.t()}
  def after_kill(state, culprit, page) do
    state = state |> put_culprit(culprit) |> answer_stuck(page, fn _id -> true end)
    {state.cancellation.stack, state}
  end

  defp answer_stuck(%{cancellation: %{entries: entries, stack: stack, culprit: culprit}} = state, page, whom?) do
    for {id, %{step: 2} = entry} <- entries, whom?.(id), reduce: state do
      state -> answer(state, id, entry, begun(entry, page, id), stack, others(culprit, number(id)))
    end
  end

  # A dump may still be under way, or may have come later than it was waited for.
  defp last_stack(%{cancellation: %{stack: nil, dump: {_pid, _reason, _at, mark}}} = state),
    do: put_in(state.cancellation.stack, Stacks.since(state.connection, mark))

  defp last_stack(state), do: state

  # Has the stacks taken of a Python whose interpreter is held for too long; the kill follows, at once the second
  # time.
  @spec dump_before_kill(State.t(), :gil_held | :stuck) :: State.next()
  def dump_before_kill(%{cancellation: %{doom: nil}} = state, why),
    do: {:ok, dump(put_in(state.cancellation.doom, why), why)}

  def dump_before_kill(state, why), do: {:kill, why, state}

  # `dumped/3` gets the stacks.
  defp dump(%{cancellation: part, connection: connection} = state, reason) do
    if part.dump != nil and Process.alive?(elem(part.dump, 0)) do
      state
    else
      server = self()
      mark = Stacks.mark(connection)

      # Half of what is left is for Python to answer; the other for faulthandler, and for the news of it. A Python whose
      # interpreter is held gives no answer.
      answer_ms = if reason == :request, do: div(min(state.options.kill_grace, @answer_ms), 2), else: 0
      pid = spawn(fn -> send(server, {:dumped, self(), Stacks.take_before_kill(connection, answer_ms)}) end)
      %{state | cancellation: %{part | dump: {pid, reason, System.monotonic_time(), mark}, stack: nil}}
    end
  end

  # The stacks have been taken.
  @spec dumped(State.t(), pid(), {:ok, String.t()} | {:error, Error.t()}) :: State.next()
  def dumped(%{cancellation: %{dump: {pid, reason, at, _mark}} = part} = state, pid, result) do
    stack =
      case result do
        {:ok, stack} ->
          stack

        {:error, error} ->
          Logger.warning("PyPort #{state.who}: no stacks: #{error.message}")
          nil
      end

    duration = System.monotonic_time() - at
    Events.tell(state, :server, :dump, %{duration: duration}, %{reason: reason, stack: stack})
    state = %{state | cancellation: %{part | dump: if(stack == nil, do: part.dump), stack: stack}}
    state |> tell_stack(stack) |> doomed()
  end

  def dumped(state, _pid, _result), do: doomed(state)

  defp doomed(%{cancellation: %{doom: nil}} = state), do: {:ok, state}

  defp doomed(%{cancellation: %{doom: why}} = state),
    do: if(Health.well?(state), do: {:ok, put_in(state.cancellation.doom, nil)}, else: {:kill, why, state})

  defp tell_stack(state, nil), do: state

  defp tell_stack(state, stack) do
    page = StatusPage.alive(Health.page(state))

    for {id, %{step: 2} = entry} <- state.cancellation.entries, reduce: state do
      state ->
        # Loading a library holds the interpreter, so that no pong can say it.
        if entry.importing == nil and stack =~ @import_frame do
          importing(state, id, entry, "a module")
        else
          culprit = other_culprit(state, entry.obstacle, id)
          tell_caller(state, id, {:so_far, begun(entry, page, id), stack, culprit})
          state
        end
    end
  end

  # --- small things ---------------------------------------------------------------------------

  defp answer(state, id, entry, begun, stack, culprit \\ nil)
  defp answer(state, _id, %{answered?: true}, _begun, _stack, _culprit), do: state

  defp answer(state, id, entry, begun, stack, culprit) do
    tell_caller(state, id, {:timed_out, begun, stack, culprit})
    state |> put(id, %{entry | answered?: true}) |> silence(id)
  end

  defp tell_caller(state, id, news) do
    with [{_id, ref, _caller, _extra}] <- :ets.lookup(state.connection.table, id),
         do: send(ref, {ref, news})
  end

  # Drop output, calls and objects of a request that no process waits for.
  defp silence(state, id), do: state |> Requests.silence(id) |> Ownership.cast({:disclaim, {:reply, id}})

  defp ping(state, id), do: Connection.command(state.connection, Wire.ping(id))

  defp entry(%{cancellation: %{entries: entries}}, id), do: Map.get(entries, id)

  defp why(state, id) do
    with %{why: why} <- entry(state, id), do: why
  end

  defp put(%{cancellation: part} = state, id, entry),
    do: %{state | cancellation: %{part | entries: Map.put(part.entries, id, entry)}}

  defp wait(state, id, ms) do
    Process.send_after(self(), {:cancel_step, id}, max(ms, 0))
    state
  end

  defp reason(:timeout), do: "its timeout has passed"
  defp reason(:caller_down), do: "its caller has died"
  defp reason(:stopped), do: "its stream is read no further"

  defp number(<<number::64>>), do: number
end
