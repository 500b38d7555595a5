defmodule PyPort.Test.Faults do
  # One fault, and what is left of it. A server of its own under its supervisor; the deed; then the look around: a server
  # that works (the same or the next one), no process of the old group, no fd, no row, no object, no process of the BEAM.
  # Where PYPORT_FAULTS names a file, each case adds the row of docs/reliability.md that it has measured.
  import ExUnit.Assertions
  import ExUnit.Callbacks, only: [start_supervised!: 1]
  import PyPort.Test.{Processes, Servers}

  alias PyPort.{Error, Registry, Server}

  @programs Path.expand("../../../tests/faults/programs", __DIR__)

  # From the promise: no orphan after a second.
  @gone_within_ms 1_000

  @type report :: %{
          outcome: term(),
          ms: non_neg_integer(),
          server: :goes_on | :replaced,
          back_ms: non_neg_integer()
        }

  @doc "A program of tests/faults/programs, which knows its file."
  def program(name) do
    path = Path.join(@programs, name <> ".py")
    %PyPort.Code{source: File.read!(path), file: path, line: 1}
  end

  @doc "Runs such a program: its outcome."
  def run(server, name, options \\ []) do
    {globals, options} = Keyword.pop(options, :globals, %{})
    PyPort.eval(program(name), globals, [server: server] ++ options)
  end

  @doc """
  Does `deed` to a server of its own, checks that nothing is left, and gives what was seen and how long it took.

  Options, beside those of the server: `:within` (ms until the outcome), `:back_within` (ms until the server, or the next
  one, answers), `:dies` (whether this Python ends, if only after the outcome), `:warm` (code that runs before anything is counted), `:tidy` (code that ends what the fault left running on
  purpose), `:saw` and `:became` (words for the table, where the outcome does not say them), `:per` (how many requests share the time), `:quiet` (no row).
  """
  def fault(name, options \\ [], deed) do
    {mine, server_options} =
      Keyword.split(options, [:within, :back_within, :dies, :warm, :tidy, :saw, :became, :per, :quiet])

    server = start(server_options)
    if code = mine[:warm], do: {:ok, _} = PyPort.eval(code, %{}, server: server)
    before = look(server)
    {ms, outcome} = timed(fn -> deed.(server) end)
    within = Keyword.get(mine, :within, 5_000)
    assert ms <= within, "#{name}: #{ms} ms until the outcome, at most #{within} were promised"

    # A caller may have its answer before its Python has its end.
    if mine[:dies], do: assert(gone?(before.os_pid))
    {back_ms, :ok} = timed(fn -> works_again!(server, Keyword.get(mine, :back_within, 5_000)) end)
    if code = mine[:tidy], do: {:ok, _} = PyPort.eval(code, %{}, server: server)

    report = %{outcome: outcome, ms: ms, server: became(server, before), back_ms: back_ms}
    assert_nothing_left!(report.server, server, before)
    unless mine[:quiet], do: record(name, mine, report)
    report
  end

  # A server that its supervisor starts anew.
  defp start(options) do
    name = :"fault_#{System.unique_integer([:positive])}"
    options = Keyword.merge([name: name, heartbeat_interval: 200], options)
    start_supervised!(Supervisor.child_spec({Server, options}, id: name))
    {:ok, 1} = PyPort.eval("1", %{}, server: name, timeout: 60_000)
    name
  end

  def timed(fun) do
    started = System.monotonic_time(:millisecond)
    result = fun.()
    {System.monotonic_time(:millisecond) - started, result}
  end

  @doc "Until the server, or the one that the supervisor starts in its place, answers."
  def works_again!(server, within \\ 5_000) do
    until = System.monotonic_time(:millisecond) + within
    works_again(server, until)
  end

  defp works_again(server, until) do
    case PyPort.eval("6 * 7", %{}, server: server, timeout: 5_000) do
      {:ok, 42} ->
        :ok

      other ->
        assert System.monotonic_time(:millisecond) < until, "no server works: #{inspect(other)}"
        Process.sleep(5)
        works_again(server, until)
    end
  end

  # --- what is there --------------------------------------------------------------------------

  @doc "What there is of a server: its Python, its group, its fds, and what belongs to it in the BEAM."
  def look(server) do
    owner = Process.whereis(server)
    {:ok, connection} = Registry.fetch(owner)
    # Beats and the first request have opened what they open by now.
    Process.sleep(1)

    %{
      owner: owner,
      dir: connection.dir,
      os_pid: connection.os_pid,
      fds: fds(connection.os_pid),
      relatives: relatives(owner)
    }
  end

  @doc "The processes of a group that are not dead."
  def members(group) do
    for entry <- File.ls!("/proc"),
        entry =~ ~r/^\d+$/,
        {:ok, stat} <- [File.read("/proc/#{entry}/stat")],
        [state, _parent, pgrp | _] = stat |> String.split(") ") |> List.last() |> String.split(),
        pgrp == "#{group}" and state not in ["Z", "X"],
        do: String.to_integer(entry)
  end

  @doc "Whether no process of a group is left in time."
  def group_gone?(group), do: eventually(fn -> members(group) == [] end, div(@gone_within_ms, 10))

  defp fds(os_pid) do
    case File.ls("/proc/#{os_pid}/fd") do
      {:ok, fds} -> length(fds)
      {:error, _reason} -> 0
    end
  end

  # Processes that the owner has started, or that serve a request of this one.
  defp relatives(owner) do
    for pid <- Process.list(),
        {:dictionary, words} <- [Process.info(pid, :dictionary)],
        relatives = List.wrap(words[:"$ancestors"]) ++ List.wrap(words[:"$callers"]),
        owner in relatives,
        into: MapSet.new(),
        do: pid
  end

  # --- what is left ---------------------------------------------------------------------------

  defp became(server, before) do
    if Server.os_pid(server) == before.os_pid, do: :goes_on, else: :replaced
  end

  defp assert_nothing_left!(:goes_on, server, before) do
    assert nothing_left?(server)
    assert eventually(fn -> members(before.os_pid) == [before.os_pid] end, 300), "processes are left"

    assert eventually(fn -> fds(before.os_pid) <= before.fds end, 300),
           "fds: #{before.fds} before, #{fds(before.os_pid)} now"

    assert eventually(fn -> match?([%{state: :idle, objects: 0}], PyPort.status(server)) end, 500),
           "not idle: #{inspect(PyPort.status(server))}"

    assert eventually(fn -> MapSet.subset?(relatives(before.owner), before.relatives) end, 300)
  end

  defp assert_nothing_left!(:replaced, server, before) do
    assert group_gone?(before.os_pid), "left of the group: #{inspect(members(before.os_pid))}"
    assert eventually(fn -> relatives(before.owner) == MapSet.new() end)
    assert eventually(fn -> not File.exists?(before.dir) end), "the directory of the old server is left"
    assert eventually(fn -> beam_fds(before) == [] end), "open in the BEAM: #{inspect(beam_fds(before))}"
    assert Registry.fetch(before.owner) == :error
    refute Enum.any?(Port.list(), &(Port.info(&1, :os_pid) == {:os_pid, before.os_pid}))
    assert nothing_left?(server)
  end

  # Of the BEAM's own fds those that lead to what the old server had.
  defp beam_fds(before) do
    for fd <- File.ls!("/proc/self/fd"),
        {:ok, target} <- [File.read_link("/proc/self/fd/#{fd}")],
        String.starts_with?(target, [before.dir, "/proc/#{before.os_pid}/"]),
        do: target
  end

  # --- the table ------------------------------------------------------------------------------

  @doc "Adds a row to the table: the fault, what the caller sees, what becomes of the server, and the time in ms."
  def record_row(name, saw, became, ms) do
    if path = System.get_env("PYPORT_FAULTS") do
      File.write!(path, Enum.join([name, saw, became, ms], "\t") <> "\n", [:append])
    end

    :ok
  end

  defp record(name, mine, report) do
    saw = mine[:saw] || saw(report.outcome)
    became = mine[:became] || if(report.server == :goes_on, do: "goes on", else: "replaced")
    record_row(name, saw, became, div(report.ms, mine[:per] || 1))
  end

  defp saw({:ok, _value}), do: "its answer"

  defp saw({:error, %Error{} = error}) do
    details =
      [
        error.type,
        error.signal,
        error.exit_status && "status #{error.exit_status}",
        error.begun != nil && "`begun: #{error.begun}`",
        error.stack && "where it was",
        error.stderr != [] && "its last words"
      ]
      |> Enum.filter(& &1)

    Enum.join(["`:#{error.kind}`" | details], ", ")
  end

  defp saw(other), do: inspect(other)
end
