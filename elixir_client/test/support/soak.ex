defmodule PyPort.Test.Soak do
  # Good and bad requests of many callers, with servers killed at random; and afterwards the books: every request has had
  # one outcome, none has run twice, what was said not to have begun has not run, nothing grows and nothing is left.
  # `make soak` runs it for minutes, tests/faults for seconds, in a BEAM of its own.

  import PyPort.Test.Processes

  alias PyPort.{Error, Server}
  alias PyPort.Test.Faults

  @callers 16
  # Those that come to harm, and one that only has requests that end well or by their timeout: a Python whose memory can be
  # followed to the end.
  @servers [:soak_a, :soak_b, :soak_c]
  @steady :soak_steady
  @segments 6
  # After so many everything that is loaded on first use is loaded.
  @warm_segments 2
  # How often what is there is counted at the end of a segment.
  @looks 10
  @between_looks_ms 20
  @memory_limit 1_073_741_824
  # Of the steady one: how long a request may take to end after its cancel, in ms, twice.
  @patience 5_000
  # Of a request that should not meet its timeout, if its server is not harmed.
  @timeout 4_000
  # One that is stopped while it starts is started again after so long.
  @init_timeout 10_000

  # What may happen to any request when its server is killed under it, or is just being started anew.
  @collateral [:killed, :exited, :unavailable, :overloaded]

  @good [:eval, :call, :effect, :effect, :session, :object, :stream, :print, :large, :async, :nested, :raises]
  @bad [:times_out, :times_out, :dies, :segfault, :os_exit, :memory, :holds, :forks, :unknown_atom]

  @doc "Runs for so many seconds; a map of what was counted. Raises for what must not be."
  def run(seconds, say \\ fn _line -> :ok end) do
    seed = :erlang.unique_integer([:positive, :monotonic])
    token = "soak-#{System.pid()}-#{seed}"

    # outcomes: {{op, kind}, count}; effects: {token, how often it ran}; promises: {token, how often it may have}
    tables = for name <- [:outcomes, :effects, :promises], into: %{}, do: {name, :ets.new(name, [:public])}
    load_everything()
    supervisor = start_servers(token)
    Enum.each([@steady | @servers], &Faults.works_again!(&1, 60_000))

    samples =
      for segment <- 1..@segments do
        segment(tables, System.monotonic_time(:millisecond) + div(seconds * 1_000, @segments))
        sample = settle()
        say.("#{segment}/#{@segments}: #{total(tables.outcomes)} requests; #{line(sample)}")
        sample
      end

    check_effects!(tables)
    check_flat!(Enum.drop(samples, @warm_segments - 1))
    Supervisor.stop(supervisor)
    check_nothing_left!(token)

    %{
      requests: total(tables.outcomes),
      outcomes: Map.new(:ets.tab2list(tables.outcomes)),
      effects: :ets.info(tables.effects, :size),
      samples: samples
    }
  end

  # Code that is loaded on first use brings its atoms along; a rare error may be the first to need it.
  defp load_everything do
    Application.load(:ex_unit)

    for application <- [:py_port, :elixir, :logger, :ex_unit, :kernel, :stdlib],
        {:ok, modules} = :application.get_key(application, :modules),
        do: :code.ensure_modules_loaded(modules)

    # A protocol that is not consolidated, as in tests, makes the name of an implementation for each struct that it meets.
    {:ok, modules} = :application.get_key(:py_port, :modules)

    for module <- modules,
        function_exported?(module, :__struct__, 0),
        protocol <- [Inspect, String.Chars, List.Chars, Enumerable, Collectable],
        do: protocol.impl_for(module.__struct__())
  end

  defp start_servers(token) do
    options = [
      env: [{"SOAK", token}],
      heartbeat_interval: 200,
      cancel_grace: 300,
      kill_grace: 300,
      init_timeout: @init_timeout,
      logger: false,
      memory_limit: @memory_limit
    ]

    # That one must live, however late a machine with other work lets it take note of a cancel.
    patient = Keyword.merge(options, cancel_grace: @patience, kill_grace: @patience)

    servers = [
      {Server, [name: @steady] ++ patient} | for(name <- @servers, do: {Server, [name: name] ++ options})
    ]

    {:ok, pid} = Supervisor.start_link(servers, strategy: :one_for_one, max_restarts: 1_000_000)
    pid
  end

  defp total(outcomes), do: outcomes |> :ets.tab2list() |> Enum.map(&elem(&1, 1)) |> Enum.sum()

  # --- a segment ------------------------------------------------------------------------------

  defp segment(tables, until) do
    callers = for _ <- 1..@callers, do: Task.async(fn -> caller(tables, until) end)
    killer = Task.async(fn -> killer(until) end)
    Task.await_many([killer | callers], :infinity)
  end

  defp caller(tables, until) do
    if System.monotonic_time(:millisecond) < until do
      {op, server} = draw()
      {kind, error} = outcome(op, server, tables)
      :ets.update_counter(tables.outcomes, {op, kind}, 1, {{op, kind}, 0})
      check_outcome!(op, server, kind, error)
      # One outcome is all there is.
      {:messages, []} = Process.info(self(), :messages)
      caller(tables, until)
    end
  end

  defp draw do
    case :rand.uniform(100) do
      n when n <= 20 -> {Enum.random(@good ++ [:times_out]), @steady}
      n when n <= 88 -> {Enum.random(@good), Enum.random(@servers)}
      _rest -> {Enum.random(@bad), Enum.random(@servers)}
    end
  end

  defp killer(until) do
    Process.sleep(300 + :rand.uniform(1_500))

    if System.monotonic_time(:millisecond) < until do
      server = Enum.random(@servers)

      case {Enum.random([:kill, :segv, :stop, :owner, :term]), Server.os_pid(server), Process.whereis(server)} do
        {:owner, _os_pid, owner} when is_pid(owner) -> Process.exit(owner, :kill)
        {name, os_pid, _owner} when is_integer(os_pid) and name != :owner -> signal_if_there(os_pid, name)
        _just_dead -> :ok
      end

      killer(until)
    end
  end

  defp signal_if_there(os_pid, name) do
    System.cmd("sh", ["-c", "kill -#{name |> to_string() |> String.upcase()} #{os_pid} 2>/dev/null"])
  end

  # --- what is asked for ----------------------------------------------------------------------

  # :right, :wrong (a value that is not the right one), or the kind of an error, with the error.
  defp outcome(op, server, tables) do
    case request(op, server, tables) do
      {:error, %Error{} = error} -> {error.kind, error}
      right? when is_boolean(right?) -> {if(right?, do: :right, else: :wrong), nil}
    end
  end

  defp request(:eval, server, _tables) do
    n = :rand.uniform(1_000_000)
    with {:ok, value} <- eval(server, "n * 2", %{n: n}), do: value == 2 * n
  end

  defp request(:call, server, _tables) do
    with {:ok, value} <- PyPort.call("math:gcd", [12, 18], %{}, server: server, timeout: @timeout),
         do: value == 6
  end

  # What it does can be seen from here, whatever its answer was.
  defp request(:effect, server, tables) do
    token = make_ref()
    timeout = Enum.random([5, 50, @timeout])
    act = fn -> :ets.update_counter(tables.effects, token, 1, {token, 0}) end

    case eval(server, "f()", %{f: act}, timeout: timeout) do
      {:ok, value} ->
        :ets.insert(tables.promises, {token, 1..1})
        value == 1

      {:error, error} = failed ->
        :ets.insert(tables.promises, {token, if(error.begun == false, do: 0..0, else: 0..1)})
        failed
    end
  end

  defp request(:session, server, _tables) do
    with {:ok, session} <- PyPort.open_session(server: server, timeout: @timeout),
         {:ok, nil} <- PyPort.eval("x = 20", %{}, session: session, timeout: @timeout),
         {:ok, value} <- PyPort.eval("x + 1", %{}, session: session, timeout: @timeout),
         :ok <- PyPort.close_session(session),
         do: value == 21
  end

  defp request(:object, server, _tables) do
    with {:ok, object} <-
           eval(server, "import collections; collections.Counter('abracadabra')", %{}, return: :object),
         {:ok, count} <- PyPort.getitem(object, "a", timeout: @timeout),
         :ok <- PyPort.release(object),
         do: count == 5
  end

  defp request(:stream, server, _tables) do
    items =
      "for n in range(1_000): yield n"
      |> PyPort.stream(%{}, server: server, timeout: @timeout)
      |> Enum.take(600)

    items == Enum.to_list(0..599)
  rescue
    error in Error -> {:error, error}
  end

  defp request(:print, server, _tables) do
    {:ok, device} = StringIO.open("")
    outcome = eval(server, "for n in range(200): print(n)\n200", %{}, stdout: device)
    {:ok, {"", printed}} = StringIO.close(device)
    with {:ok, 200} <- outcome, do: printed == Enum.map_join(0..199, &"#{&1}\n")
  end

  defp request(:large, server, _tables) do
    data = :binary.copy(<<:rand.uniform(255)>>, 1_048_576)
    with {:ok, back} <- eval(server, "data", %{data: PyPort.bytes(data)}), do: back == data
  end

  defp request(:async, server, _tables) do
    with {:ok, value} <- eval(server, "import asyncio; await asyncio.sleep(0.01); 'late'"),
         do: value == "late"
  end

  defp request(:nested, server, _tables) do
    inner = fn n -> PyPort.eval!("n + 1", %{n: n}, server: server, timeout: @timeout) end

    case eval(server, "f(1) + f(2)", %{f: inner}) do
      {:ok, value} -> value == 5
      # An error of the inner request is an exception in the outer one.
      {:error, %Error{kind: :python} = error} -> error.message =~ "PyPort.Error" or {:error, error}
      failed -> failed
    end
  end

  defp request(:raises, server, _tables), do: expect(eval(server, "1 / 0"), :python, "ZeroDivisionError")

  defp request(:times_out, server, _tables) do
    code =
      Enum.random([
        "while True: pass",
        "import time; time.sleep(60)",
        "import asyncio; await asyncio.sleep(60)"
      ])

    expect(eval(server, code, %{}, timeout: 20 + :rand.uniform(100)), :timeout, nil)
  end

  # A caller that dies while it waits; this one only sees to that.
  defp request(:dies, server, _tables) do
    {pid, monitor} = spawn_monitor(fn -> eval(server, "while True: pass", %{}, timeout: :infinity) end)
    Process.sleep(:rand.uniform(60))
    Process.exit(pid, :kill)
    receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> true)
  end

  defp request(:segfault, server, _tables),
    do: expect(Faults.run(server, "segfault", timeout: @timeout), :killed, nil)

  defp request(:os_exit, server, _tables),
    do: expect(Faults.run(server, "os_exit", timeout: @timeout), :exited, nil)

  defp request(:memory, server, _tables),
    do: expect(Faults.run(server, "memory_hog", timeout: @timeout), :python, "MemoryError")

  defp request(:holds, server, _tables), do: expect(Faults.run(server, "c_loop", timeout: 100), :timeout, nil)

  defp request(:forks, server, _tables) do
    with {:ok, value} <- Faults.run(server, "forks", timeout: @timeout, stdout: sink()), do: value == true
  end

  defp request(:unknown_atom, server, _tables) do
    code = "import port_server, os; port_server.Atom('never_seen_' + os.urandom(8).hex())"
    expect(eval(server, code), :decode, nil)
  end

  defp eval(server, code, globals \\ %{}, options \\ []),
    do: PyPort.eval(code, globals, Keyword.merge([server: server, timeout: @timeout], options))

  defp sink, do: Process.whereis(:standard_error)

  defp expect({:error, %Error{kind: kind, type: type}}, kind, wanted) when wanted in [nil, type], do: true
  defp expect({:error, error}, _kind, _type), do: {:error, error}
  defp expect({:ok, _value}, _kind, _type), do: false

  # A request in a queue behind a bad one may run out of its own time, too, but for servers that are not harmed.
  # One whose server is told to end by SIGTERM is finished, but has nobody any more who would answer what it asks; and a
  # stream that waits for its consumer is ended there and then.
  defp check_outcome!(op, server, :python, %Error{message: message})
       when op in [:nested, :effect] and server != @steady do
    unless message =~ "this Python was told to end by SIGTERM" or message =~ "the server was stopped",
      do: raise("#{op} on #{server}: #{message}")
  end

  defp check_outcome!(op, server, kind, error) do
    allowed =
      cond do
        op == :effect -> [:right, :timeout | @collateral]
        server == @steady -> [:right, :timeout]
        true -> [:right, :timeout | @collateral]
      end

    unless kind in allowed, do: raise("#{op} on #{server}: #{kind} #{inspect(error)}")
  end

  # --- the books ------------------------------------------------------------------------------

  # Nothing is asked for now: what there is then, is what is left.
  defp settle do
    Enum.each([@steady | @servers], &Faults.works_again!(&1, 60_000))
    for name <- [@steady | @servers], do: quiet!(name)
    Enum.each(Process.list(), &:erlang.garbage_collect/1)

    Map.merge(counts(), %{
      atoms: :erlang.system_info(:atom_count),
      beam_mib: mib(:erlang.memory(:total)),
      steady_mib: mib(rss(Server.os_pid(@steady)))
    })
  end

  # What was told to end may be ending yet; what is left is there at every look.
  defp counts do
    Enum.reduce(1..@looks, %{}, fn _, least ->
      Process.sleep(@between_looks_ms)
      Map.merge(least, count(), fn _key, one, other -> min(one, other) end)
    end)
  end

  defp count do
    %{
      processes: length(Process.list()),
      ports: length(Port.list()),
      tables: length(:ets.all()),
      terms: :persistent_term.info().count,
      fds: length(File.ls!("/proc/self/fd"))
    }
  end

  # The page, the table and Python itself agree that nothing is open. It may be replaced meanwhile: what was asked of it
  # last may have been its end.
  defp quiet!(name, tries \\ 100) do
    Faults.works_again!(name, 30_000)
    PyPort.Test.Servers.nothing_left?(name)

    true =
      eventually(fn ->
        match?([%{pending: 0, queue: 0, objects: 0, sessions: 0, tasks: 0}], PyPort.status(name))
      end)
  catch
    :exit, _replaced when tries > 0 -> quiet!(name, tries - 1)
  end

  defp rss(os_pid) do
    [_size, resident | _] = "/proc/#{os_pid}/statm" |> File.read!() |> String.split()
    String.to_integer(resident) * 4_096
  end

  defp mib(bytes), do: Float.round(bytes / 1_048_576, 1)

  defp check_effects!(tables) do
    for {token, allowed} <- :ets.tab2list(tables.promises) do
      ran = Enum.sum(for {_token, times} <- :ets.lookup(tables.effects, token), do: times)
      unless ran in allowed, do: raise("a request ran #{ran} times, #{inspect(allowed)} were promised")
    end
  end

  defp check_flat!([first | _] = samples) do
    last = List.last(samples)

    if last.atoms > first.atoms do
      raise "atoms grow: #{inspect(Enum.map(samples, & &1.atoms))}: #{inspect(new_atoms(first.atoms, last.atoms))}"
    end

    # A sample may find a server that is just being started anew, and with it one of each less: what grows is above all
    # samples before it.
    earlier = Enum.drop(samples, -1)

    for key <- [:processes, :ports, :tables, :terms, :fds],
        last[key] > earlier |> Enum.map(& &1[key]) |> Enum.max() do
      counts = Enum.map(samples, & &1[key])

      raise "#{key} grow: #{inspect(counts, charlists: :as_lists)}#{if key == :processes, do: "; " <> processes()}"
    end

    for key <- [:beam_mib, :steady_mib], last[key] > first[key] * 1.15 + 4 do
      raise "#{key} grows: #{inspect(Enum.map(samples, & &1[key]))}"
    end
  end

  defp processes do
    processes = Process.list() |> Enum.map(&:proc_lib.translate_initial_call/1) |> Enum.frequencies()
    "now there are #{inspect(processes, limit: :infinity)}"
  end

  # An atom by its number in the table, which is how the BEAM writes it for itself alone.
  defp new_atoms(from, to),
    do: for(number <- from..(to - 1), do: :erlang.binary_to_term(<<131, 75, number::24>>))

  # Every child of a server has its environment, wherever it has gone.
  defp check_nothing_left!(token) do
    left = fn ->
      for entry <- File.ls!("/proc"),
          entry =~ ~r/^\d+$/ and alive?(entry),
          {:ok, environment} <- [File.read("/proc/#{entry}/environ")],
          environment =~ "SOAK=#{token}\0",
          do: entry
    end

    unless eventually(fn -> left.() == [] end, 100), do: raise("processes are left: #{inspect(left.())}")
  end

  # --- for people -----------------------------------------------------------------------------

  @doc "What `make soak` prints."
  def main(seconds) do
    IO.puts("#{@callers} callers, #{length(@servers) + 1} servers, #{seconds} s")
    %{outcomes: outcomes} = report = run(seconds, &IO.puts/1)

    for {op, of_op} <- outcomes |> Enum.group_by(fn {{op, _kind}, _count} -> op end) |> Enum.sort() do
      kinds = for {{_op, kind}, count} <- Enum.sort(of_op), do: "#{kind} #{count}"
      IO.puts("  #{String.pad_trailing(to_string(op), 14)}#{Enum.join(kinds, ", ")}")
    end

    IO.puts("#{report.requests} requests, one outcome each; #{report.effects} effects, none of them twice.")
    IO.puts("Nothing grew, and no process is left.")
  end

  defp line(sample), do: Enum.map_join(sample, ", ", fn {key, value} -> "#{key} #{value}" end)
end
