defmodule PyPort.StatusTest do
  use ExUnit.Case, async: true

  import PyPort.Test.{Pools, Processes, Servers}

  alias PyPort.Status

  doctest Status

  @status %Status{
    server: Analytics,
    state: :busy,
    running: 17,
    running_ms: 1_240,
    pending: 3,
    queue: 2,
    requests: 14,
    rss_bytes: 47_290_778,
    os_pid: 4711,
    restarts: 1
  }

  test "a status inspects as what there is to say" do
    assert inspect(@status) ==
             "#PyPort.Status<Analytics busy, request 17 for 1.2 s, 3 open, 2 queued, 14 answered, 45.1 MiB, " <>
               "process 4711, 1 restarts>"

    assert inspect(%Status{server: Analytics, state: :down}) == "#PyPort.Status<Analytics down, 0 answered>"
  end

  test "a table has a line for each server, its columns under their heads" do
    idle = %Status{server: Reports, state: :idle, requests: 120_000, draining: :max_age}

    assert Status.table([@status, idle]) == """
           SERVER     STATE                     REQUEST  SINCE  OPEN  QUEUE    DONE       RSS  RESTARTS
           Analytics  busy                           17  1.2 s     3      2      14  45.1 MiB         1
           Reports    idle (draining: max_age)        -      -     0      0  120000         -         0\
           """
  end

  test "a table of all has the names, and the servers of a pool numbered" do
    table = Status.table([{Solo, [@status]}, {Many, [@status, @status]}, {Empty, []}])

    assert for(line <- String.split(table, "\n"), do: line |> String.split() |> hd()) ==
             ~w(SERVER Solo Many[1] Many[2])
  end

  test "durations and sizes are said in the unit that a person would use" do
    alias PyPort.Status.Table

    assert Enum.map([0, 999, 1_000, 61_000, 7_200_000], &Table.duration/1) == [
             "0 ms",
             "999 ms",
             "1.0 s",
             "1.0 min",
             "2.0 h"
           ]

    assert Enum.map([0, 1_048_576, 3_221_225_472], &Table.bytes/1) == ["0.0 KiB", "1.0 MiB", "3.0 GiB"]
  end

  test "all has every server and pool by its name, or its pid" do
    server = start_server()
    pool = start_pool(size: 2)
    {:ok, nameless} = PyPort.Server.start_link()
    assert {:ok, 1} = PyPort.eval("1", %{}, server: nameless)
    {:ok, empty} = PyPort.Pool.start_link(size: 0)
    all = Map.new(Status.all())
    owner = Process.whereis(server)
    assert [%Status{server: ^owner, os_pid: os_pid}] = all[server]
    assert is_integer(os_pid)
    assert length(all[pool]) == 2
    assert [%Status{server: ^nameless}] = all[nameless]
    # A pool without servers and without a name is useless.
    refute Map.has_key?(all, empty)
    # The servers of a pool stand under it only.
    for %Status{server: member} <- all[pool], do: refute(Map.has_key?(all, member))
  end

  test "the table tells what is running, and since when" do
    server = start_server(heartbeat_interval: 50)

    task =
      Task.async(fn -> PyPort.eval("import time; time.sleep(30)", %{}, server: server, timeout: 60_000) end)

    assert eventually(fn -> hd(PyPort.status(server)).running != nil end)
    assert PyPort.status(server) |> Status.table() =~ ~r/ busy +\d+ +[\d.]+ m?s +1 +0 /
    Task.shutdown(task, :brutal_kill)
  end
end
