defmodule Bench.Latency do
  # The time of one small request of a single caller, and the requests a second of many callers.

  alias Bench.{Echo, Measure, Subjects}

  @doc "Everything on one core, which the caller of this BEAM sees to."
  def pinned(%{rounds: rounds, requests: requests, out: out, only: only}) do
    data = Subjects.request_bytes()
    [c, python, tuned] = for command <- [:c, :python, :python_tuned], do: Echo.open(command)
    [routed_c, routed] = for command <- [:c, :python], do: Echo.start(command)
    server = Subjects.server()
    {:ok, session} = PyPort.open_session(server: server)
    {:ok, nil} = PyPort.eval("x = 3", %{}, session: session)
    {python_pid, os_pid} = {Echo.os_pid(routed), Subjects.os_pid(server)}

    subjects = [
      {"pinned/echo_c", fn -> Measure.p50(fn -> Echo.direct(c, data) end, requests) end},
      {"pinned/echo_python", fn -> Measure.p50(fn -> Echo.direct(python, data) end, requests) end},
      {"pinned/echo_tuned", fn -> Measure.p50(fn -> Echo.direct(tuned, data) end, requests) end},
      {"pinned/routed_c", fn -> Measure.p50(fn -> Echo.call(routed_c, data) end, requests) end},
      {"pinned/routed_python",
       fn -> Measure.p50_and_cpu(fn -> Echo.call(routed, data) end, requests, python_pid) end},
      {"pinned/eval", fn -> Measure.p50_and_cpu(fn -> Subjects.eval(server) end, requests, os_pid) end},
      {"pinned/call", fn -> Measure.p50(fn -> Subjects.call(server) end, requests) end},
      {"pinned/globals", fn -> Measure.p50(fn -> Subjects.globals(server) end, requests) end},
      {"pinned/session", fn -> Measure.p50(fn -> Subjects.session(session) end, requests) end},
      {"pinned/callback", fn -> Measure.p50(fn -> Subjects.callback(server) end, requests) end}
    ]

    run(subjects, only, rounds, out)
  end

  @doc "Where the scheduler puts them: with fresh processes each round, since where they start decides."
  def unpinned(%{rounds: rounds, requests: requests, out: out}) do
    data = Subjects.request_bytes()

    for round <- 1..rounds do
      [routed_c, routed] = for command <- [:c, :python], do: Echo.start(command)
      server = Subjects.server()

      subjects = [
        {"unpinned/routed_c", fn -> Echo.call(routed_c, data) end},
        {"unpinned/routed_python", fn -> Echo.call(routed, data) end},
        {"unpinned/eval", fn -> Subjects.eval(server) end},
        {"unpinned/call", fn -> Subjects.call(server) end},
        {"unpinned/callback", fn -> Subjects.callback(server) end}
      ]

      for {name, fun} <- turned(subjects, round) do
        Measure.p50(fun, div(requests, 4))
        Measure.write(out, name, round, Measure.p50(fun, requests))
      end

      Enum.each([routed_c, routed], &Echo.close/1)
      Subjects.stop(server)
    end
  end

  @doc "Many callers of one port; fresh processes each round."
  def callers(%{rounds: rounds, callers: callers, calls: calls, out: out}) do
    data = Subjects.request_bytes()

    for round <- 1..rounds do
      [routed_c, routed] = for command <- [:c, :python], do: Echo.start(command)
      server = Subjects.server()
      {python_pid, os_pid} = {Echo.os_pid(routed), Subjects.os_pid(server)}

      subjects = [
        {"routed_c", fn -> Echo.call(routed_c, data) end, Echo.os_pid(routed_c)},
        {"routed_python", fn -> Echo.call(routed, data) end, python_pid},
        {"eval", fn -> Subjects.eval(server) end, os_pid}
      ]

      for count <- callers, {name, fun, pid} <- turned(subjects, round) do
        each = max(div(calls, count), 1)
        Measure.rate(fun, count, max(div(each, 10), 1))
        before = Measure.cpu_ns(pid)
        rate = Measure.rate(fun, count, each)
        cpu = (Measure.cpu_ns(pid) - before) / (each * count)
        Measure.write(out, "callers_#{count}/#{name}", round, [{"", rate}, {".cpu", cpu}])
      end

      Enum.each([routed_c, routed], &Echo.close/1)
      Subjects.stop(server)
    end
  end

  @doc """
  A tiny request beside a Python thread that never rests. Each comes after a pause, when that thread has the interpreter:
  one right behind another may be there before it has it back.
  """
  def spinning(%{rounds: rounds, requests: requests, out: out}) do
    code = """
    import threading
    def spin():
        while True:
            pass
    threading.Thread(target=spin, daemon=True).start()
    """

    quiet = Subjects.server()
    beside = Subjects.server(init_code: code)
    few = max(div(requests, 10), 20)

    Measure.rounds(
      [
        {"spinning/eval_alone", fn -> Measure.p50_after_pauses(fn -> Subjects.eval(quiet) end, few) end},
        {"spinning/eval", fn -> Measure.p50_after_pauses(fn -> Subjects.eval(beside) end, few) end}
      ],
      rounds,
      out
    )

    Enum.each([quiet, beside], &Subjects.stop/1)
  end

  defp run(subjects, only, rounds, out) do
    subjects = if only, do: Enum.filter(subjects, fn {name, _} -> name in only end), else: subjects
    # A first time for everything, which does not count: caches fill, code is compiled.
    for {_name, fun} <- subjects, do: fun.()
    Measure.rounds(subjects, rounds, out)
  end

  defp turned(subjects, round) do
    {last, first} = Enum.split(subjects, rem(round - 1, length(subjects)))
    first ++ last
  end
end
