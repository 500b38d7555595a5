defmodule Bench.Profile do
  # Where the time of one tiny request goes. Three looks at the same thing, in one run, all on one core:
  #
  #   * whole requests through more and more of PyPort, each beside the others;
  #   * the timeline of real requests: the steps of PyPort.Request with a look at the clock after each, and the marks of
  #     Python's own, by the same clock (trace/trace.h), so that the spans add up to the whole;
  #   * single steps of the BEAM's side in a tight loop, where everything is in the cache.

  alias Bench.{Echo, Measure, Subjects}
  alias PyPort.{Admission, Connection, Deadline, Locator, Options, Reply, Wire}

  def run(%{rounds: rounds, out: out} = settings) do
    ladder(settings)
    steps(rounds, out)
    timeline(settings)
  end

  # --- whole requests -------------------------------------------------------------------------

  defp ladder(%{rounds: rounds, requests: requests, canned: canned, out: out}) do
    data = Subjects.request_bytes()
    direct = Echo.open(:c)
    direct_python = Echo.open(:python)
    [routed_c, routed] = for command <- [:c, :python], do: Echo.start(command)
    server = Subjects.server()

    # A PyPort server without a Python: what is left is the client, and what every port costs.
    File.write!(canned, <<131, 104, 3, 119, 5, "hello", 97, Wire.protocol_version(), 116, 0::32>>)

    {:ok, hollow} =
      PyPort.Server.start_link(
        python: System.fetch_env!("BENCH_ECHO"),
        env: [{"CANNED_HELLO", canned}],
        lost_after: :infinity
      )

    # A Python server without the client: frames by hand.
    port = Echo.open({:python, "from port_server.server import lifecycle; lifecycle.serve()"})
    Port.command(port, Wire.init(%{heartbeat_interval_ms: 0, logging: false}))
    receive do: ({^port, {:data, _hello}} -> :ok)

    subjects =
      for {name, fun} <- [
            {"echo_c", fn -> Echo.direct(direct, data) end},
            {"echo_python", fn -> Echo.direct(direct_python, data) end},
            {"routed_c", fn -> Echo.call(routed_c, data) end},
            {"routed_python", fn -> Echo.call(routed, data) end},
            {"client_only", fn -> Subjects.eval(hollow) end},
            {"python_only", fn -> Echo.direct(port, data) end},
            {"eval", fn -> Subjects.eval(server) end}
          ] do
        fun.()
        {"ladder/#{name}", fn -> Measure.p50(fun, requests) end}
      end

    Measure.rounds(subjects, rounds, out)
    for pid <- [routed_c, routed], do: Echo.close(pid)
    for port <- [direct, direct_python, port], do: Echo.close(port)
    Subjects.stop(server)
    Subjects.stop(hollow)
  end

  # --- single steps ---------------------------------------------------------------------------

  defp steps(rounds, out) do
    server = Subjects.server()
    {_found, connection} = Locator.connection(server, :infinity)
    table = :ets.new(:steps, [:set, :public, write_concurrency: true])
    id = <<1::64>>
    body = {%{deadline_ms: 5000}, "1 + 1", %{}}
    frame = Wire.request(:eval, id, body, true)
    reply = <<131, 104, 3, 119, 2, "ok", 109, 8::32, id::binary, 97, 2>>
    relay = spawn_link(&relay/0)

    steps = [
      {"an empty function", fn -> :ok end},
      {"options: Options.request!", fn -> Options.request!(server: server) end},
      {"connection: Locator.connection", fn -> Locator.connection(server, :infinity) end},
      {"id: Connection.next_id", fn -> Connection.next_id(connection) end},
      {"deadline: monotonic_time", fn -> Deadline.deadline(5000) end},
      {"encode: Wire.request", fn -> Wire.request(:eval, id, body, true) end},
      {"size: Admission.fits", fn -> Admission.fits(connection, frame) end},
      {"room: Connection.pending", fn -> Connection.pending(connection) end},
      {"alias, unalias", fn -> :erlang.unalias(:erlang.alias()) end},
      {"row: ETS insert, take",
       fn ->
         :ets.insert(table, {id, 1, self(), nil})
         :ets.take(table, id)
       end},
      {"route: Wire.route", fn -> Wire.route(reply) end},
      {"decode: Reply.outcome", fn -> Reply.outcome(reply) end},
      {"a message to another process and back", fn -> hop(relay, reply) end}
    ]

    for {_name, fun} <- steps, do: Measure.mean(fun, 10_000)
    steps = for {name, fun} <- steps, do: {"step/#{name}", fn -> Measure.mean(fun, 20_000) end}
    Measure.rounds(steps, rounds, out)
    Measure.write(out, "step/Port.command into a pipe without a reader", 1, command(frame))
    send(relay, :stop)
    Subjects.stop(server)
  end

  defp hop(relay, frame) do
    ref = make_ref()
    send(relay, {self(), ref, frame})
    receive do: ({^ref, _frame} -> :ok)
  end

  defp relay do
    receive do
      {pid, ref, frame} ->
        send(pid, {ref, frame})
        relay()

      :stop ->
        :ok
    end
  end

  # The system call and what the BEAM does around it; who reads is stopped, so that nobody is woken.
  defp command(frame) do
    port = Echo.open(:c)
    {_, 0} = System.cmd("kill", ["-STOP", "#{Echo.os_pid(port)}"])
    spent = Measure.p50(fn -> Port.command(port, frame) end, 400)
    {_, 0} = System.cmd("kill", ["-KILL", "#{Echo.os_pid(port)}"])
    receive do: ({^port, {:exit_status, _killed}} -> spent)
  end

  # --- the timeline ---------------------------------------------------------------------------

  defp timeline(%{rounds: rounds, requests: requests, traced: env, out: out}) do
    server = Subjects.server(env: for({name, value} <- env, do: {Atom.to_string(name), value}))
    for _ <- 1..500, do: traced(server)

    followed =
      for _ <- 1..rounds do
        for _ <- 1..20, do: traced(server)
        for _ <- 1..div(requests, 4), do: traced(server)
      end

    # The clock itself: the least of several, as it is taken from what was measured.
    clock = Enum.min(for _ <- 1..50, do: Measure.mean(&now/0, 1_000))
    Measure.write(out, "clock", 1, clock)
    Subjects.stop(server)
    for stamps <- Enum.concat(followed), do: IO.write(out, "timeline\t1\t#{Enum.join(stamps, " ")}\n")
  end

  # CLOCK_MONOTONIC, as the marks of plain.c; System.monotonic_time counts from elsewhere.
  defp now, do: :os.perf_counter(:nanosecond)

  # PyPort.Request.ask/2 step by step, by the same functions.
  defp traced(server) do
    t0 = now()
    options = Options.request!(server: server)
    Deadline.deadline(options.timeout)
    t1 = now()
    {_found, connection} = Locator.connection(options.server, :infinity)
    id = Connection.next_id(connection)
    t2 = now()
    frame = Wire.request(:eval, id, {%{deadline_ms: options.timeout}, "1 + 1", %{}}, true)
    t3 = now()
    :ok = Admission.fits(connection, frame)
    t4 = now()
    ref = :erlang.alias()
    t5 = now()
    Connection.insert(connection, {id, ref, self(), nil})
    true = Connection.pending(connection) <= connection.max_pending
    t6 = now()
    :ok = Connection.submit(connection, frame)
    t7 = now()
    reply = receive do: ({^ref, reply} -> reply)
    t8 = now()
    :erlang.unalias(ref)
    t9 = now()
    {:ok, 2} = Reply.outcome(reply)
    [t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, now()]
  end
end
