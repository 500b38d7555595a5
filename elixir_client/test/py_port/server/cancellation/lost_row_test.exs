defmodule PyPort.Server.Cancellation.LostRowTest do
  # A caller that is killed between the row of its request and the frame leaves a row of which Python knows nothing, and
  # for which no reply will ever come. It must not stay, and must not be taken for a request that will not end.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.{Connection, Server, Wire}
  alias PyPort.Test.Telemetry

  @moduletag capture_log: true

  # What PyPort.Request does, up to the moment of the kill.
  defp lose_row(server, frame \\ fn _id -> nil end) do
    %{connection: connection} = :sys.get_state(server)
    id = Connection.next_id(connection)

    Task.await(
      Task.async(fn ->
        true = Connection.insert(connection, {id, :erlang.alias(), self(), nil})
        if frame.(id), do: Connection.command(connection, frame.(id))
      end)
    )

    id
  end

  test "its place among max_pending is free again" do
    server = start_server(heartbeat_interval: 100, max_pending: 1)
    Telemetry.listen(server)
    <<number::64>> = lose_row(server)
    assert_receive {:event, [:py_port, :request, :cancelled], %{duration: _}, metadata}, 5_000
    assert %{request: ^number, result: :never_sent} = metadata
    assert nothing_left?(server)
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
  end

  test "no process is killed for it, whatever else is under way" do
    server = start_server(heartbeat_interval: 100, cancel_grace: 100, kill_grace: 100)
    os_pid = Server.os_pid(server)
    gate = new_gate()

    code = """
    import asyncio, os
    while not os.path.exists(#{inspect(gate)}): await asyncio.sleep(0.002)
    """

    elsewhere = Task.async(fn -> PyPort.eval(code, %{}, server: server, timeout: 20_000) end)
    assert open?(server, 1)
    lose_row(server)
    assert open?(server, 1)
    in_main = begin_eval(server, wait_for(gate), timeout: 20_000)
    lose_row(server)
    assert open?(server, 2)
    open_gate(gate)
    assert Task.await(elsewhere) == {:ok, nil}
    assert {{:ok, nil}, _ms} = Task.await(in_main)
    assert Server.os_pid(server) == os_pid
    assert nothing_left?(server)
  end

  test "one that Python knows keeps its row, and is killed if it does not end" do
    server = start_server(heartbeat_interval: 100, cancel_grace: 300, kill_grace: 100)
    os_pid = Server.os_pid(server)
    monitor = server |> Process.whereis() |> Process.monitor()

    code = """
    while True:
        try:
            while True: pass
        except BaseException: pass
    """

    lose_row(server, &Wire.request(:eval, &1, {%{}, code, %{}}, true))
    assert eventually(fn -> map_size(:sys.get_state(server).cancellation.entries) == 1 end)
    assert open?(server, 1)
    assert gone?(os_pid)
    assert_receive {:DOWN, ^monitor, :process, _pid, {:shutdown, _killed}}, 5_000
  end
end
