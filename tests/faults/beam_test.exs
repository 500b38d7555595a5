defmodule PyPort.Faults.BeamTest do
  # The BEAM itself comes to harm: another one, with servers in every state, is killed and stopped.
  use ExUnit.Case, async: true

  import PyPort.Test.{Beam, Faults, Leftovers, Processes}

  @moduletag timeout: 120_000

  # Names a server of the other BEAM after what it will be doing, and has it do that.
  @start """
  start = fn name ->
    {:ok, _} = Supervisor.start_link([{PyPort.Server, name: name, heartbeat_interval: 200}], strategy: :one_for_one)
    {:ok, 1} = PyPort.eval("1", %{}, server: name, timeout: 60_000)
    PyPort.Server.os_pid(name)
  end

  """

  @states [
    idle: nil,
    loop: "started()\nwhile True: pass",
    c_call: "started()\nsum(range(10**12))",
    children: "has_children.py"
  ]

  for {how, ending} <- [{"halts", :halt}, {"is killed with -9", :kill}] do
    test "an idle Python whose BEAM #{how} comes to an orderly end" do
      beam = {_port, os_pid} = start()
      group = ask(beam, @start <> "start.(:idle)")

      {ended, files} =
        leave_things(fn code, globals ->
          ask(beam, "PyPort.eval(#{inspect(code)}, #{inspect(globals)}, server: :idle, timeout: 60_000)")
        end)

      case unquote(ending) do
        :halt -> tell(beam, "System.halt(0)")
        :kill -> signal(os_pid, "KILL")
      end

      assert group_gone?(group)
      assert File.exists?(ended)
      assert Enum.filter(files, &File.exists?/1) == []
    end
  end

  test "the BEAM killed with -9" do
    beam = {_port, os_pid} = start()

    groups =
      for {name, code} <- @states do
        group = ask(beam, @start <> "start.(#{inspect(name)})")
        if code, do: busy(beam, name, code)
        {name, group}
      end

    assert length(members(groups[:children])) >= 6
    for name <- [:idle, :loop, :c_call], do: assert(members(groups[name]) == [groups[name]])

    # The reaper's shell and whatever else it has started go, too.
    descendants = descendants(os_pid)
    assert Enum.all?(Keyword.values(groups), &(&1 in descendants))
    signal(os_pid, "KILL")
    killed = System.monotonic_time(:millisecond)

    for {name, group} <- groups do
      gone? = group_gone?(group)
      ms = System.monotonic_time(:millisecond) - killed
      assert gone?, "#{name}: #{inspect(members(group))} a second after the BEAM was killed"

      about = %{
        idle: "idle",
        loop: "Python loop",
        c_call: "C call holding the GIL",
        children: "with children"
      }

      record_row(
        "the BEAM killed with -9 (#{about[name]})",
        "nothing: it is dead",
        "gone with all its children",
        ms
      )
    end

    assert gone?(os_pid)
    for pid <- descendants, do: assert(gone?(pid))
  end

  test "the BEAM and its reaper killed together, every Python stopped" do
    beam = {_port, os_pid} = start()

    groups =
      for {name, code} <- @states do
        group = ask(beam, @start <> "start.(#{inspect(name)})")
        if code, do: busy(beam, name, code)
        {name, group}
      end

    shell = ask(beam, ":sys.get_state(PyPort.Reaper).port |> Port.info(:os_pid) |> elem(1)")
    everyone = for {_name, group} <- groups, member <- members(group), do: member
    assert length(everyone) >= 9
    descendants = descendants(os_pid)
    signal(Enum.join(everyone, " "), "STOP")
    signal("#{shell} #{os_pid}", "KILL")
    killed = System.monotonic_time(:millisecond)

    for {name, group} <- groups do
      assert group_gone?(group), "#{name}: #{inspect(members(group))} a second after the BEAM was killed"
    end

    ms = System.monotonic_time(:millisecond) - killed
    name = "the BEAM and its reaper killed with -9, every Python stopped"
    record_row(name, "nothing: it is dead", "gone with all its children", ms)
    for pid <- descendants, do: assert(gone?(pid))
  end

  # Begun when it says so.
  defp busy(beam, name, code) do
    source = if code =~ ~r/\.py$/, do: program(Path.rootname(code)).source, else: code

    ask(beam, """
    owner = self()
    spawn(fn ->
      PyPort.eval(#{inspect(source)}, %{started: fn -> send(owner, :started) end},
        server: #{inspect(name)}, timeout: :infinity)
    end)
    receive do: (:started -> :ok)
    """)
  end

  @tag :slow
  test "the BEAM stopped with SIGSTOP" do
    beam = {_port, os_pid} = start()
    start = &ask(beam, @start <> "start.(#{inspect(&1)})")
    groups = for name <- [:idle, :waiting, :held], do: {name, start.(name)}
    ask(beam, "for name <- [:idle, :waiting, :held], do: Process.unlink(Process.whereis(name)); :ok")

    tell(beam, """
    asks = fn name, code -> Task.async(fn -> PyPort.eval(code, %{}, server: name, timeout: 30_000) end) end
    [asks.(:waiting, "import time; time.sleep(3); 'slept'"), asks.(:held, "sum(range(60_000_000)) and 'computed'")]
    |> Task.await_many(60_000)
    """)

    # Longer than heartbeats are missed, and than any grace lasts.
    assert eventually(fn -> state(groups[:held]) == "R" end)
    signal(os_pid, "STOP")
    Process.sleep(3_000)
    for {_name, group} <- groups, do: assert(members(group) == [group])
    {ms, outcomes} = timed(fn -> signal(os_pid, "CONT") && await(beam) end)

    # The pause is no fault: no process is killed for it, and every answer is there.
    assert outcomes == [ok: "slept", ok: "computed"]

    for {name, group} <- groups do
      assert ask(beam, ~s|PyPort.eval("6 * 7", %{}, server: #{inspect(name)}, timeout: 30_000)|) == {:ok, 42}
      assert ask(beam, "PyPort.Server.os_pid(#{inspect(name)})") == group
    end

    record_row("the BEAM stopped with SIGSTOP", "its answer, when it goes on", "goes on", ms)
    run_out(beam, groups)
  end

  # Told to stop, it leaves nothing either.
  defp run_out({_port, os_pid} = beam, groups) do
    tell(beam, "System.stop(0)")
    for {_name, group} <- groups, do: assert(eventually(fn -> members(group) == [] end, 1_000))
    assert eventually(fn -> not alive?(os_pid) end, 2_000)
  end

  defp state(os_pid) do
    [state | _] =
      "/proc/#{os_pid}/stat" |> File.read!() |> String.split(") ") |> List.last() |> String.split()

    state
  end
end
