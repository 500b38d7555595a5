defmodule PyPort.TelemetryTest do
  # Every event that PyPort.Telemetry documents, with its measurements and metadata. A stand-in takes the place of the
  # library, which is none of ours.
  use ExUnit.Case, async: true

  import PyPort.Test.{FakePython, Processes}

  alias PyPort.{Error, Pool, Server}
  alias PyPort.Test.Telemetry

  @moduletag :tmp_dir
  @moduletag capture_log: true

  defp name, do: :"told_#{System.unique_integer([:positive])}"

  defp start(name, options) do
    Telemetry.listen(name)

    start_supervised!(%{
      id: name,
      start: {Server, :start_link, [[name: name] ++ options]},
      restart: :temporary
    })

    name
  end

  test "startup and shutdown" do
    name = start(name(), heartbeat_interval: 100)
    assert_receive {:event, [:py_port, :server, :start], %{system_time: time}, metadata}, 5_000
    assert is_integer(time)
    server = Process.whereis(name)
    os_pid = Server.os_pid(name)
    assert metadata == %{server: server, name: name, os_pid: os_pid}

    assert_receive {:event, [:py_port, :server, :ready], %{duration: duration}, ^metadata}, 5_000
    assert System.convert_time_unit(duration, :native, :millisecond) in 1..5_000

    assert {:error, %Error{}} = PyPort.eval("import os; os._exit(3)", %{}, server: name)
    assert_receive {:event, [:py_port, :server, :exit], %{duration: _, pending: 1}, metadata}, 5_000
    assert %{server: ^server, os_pid: ^os_pid, error: %Error{kind: :exited, exit_status: 3}} = metadata
  end

  test "a failure to start" do
    name = start(name(), python: "/no/such/python")
    assert_receive {:event, [:py_port, :server, :boot_failure], measurements, metadata}, 5_000
    assert measurements == %{failures: 1, retry_ms: 500}
    assert %{name: ^name, os_pid: nil, error: %Error{kind: :unavailable}} = metadata
    assert_receive {:event, [:py_port, :server, :boot_failure], %{failures: 2, retry_ms: 1_000}, _}, 5_000
  end

  test "health states, also under the name of the event in version 0.1" do
    name = start(name(), heartbeat_interval: 100)
    assert {:ok, 1} = PyPort.eval("1", %{}, server: name)
    signal(Server.os_pid(name), "STOP")

    assert_receive {:event, [:py_port, :server, :health], measurements, %{state: :stopped} = metadata}, 5_000
    assert_receive {:event, [:py_port, :server, :verdict], ^measurements, %{verdict: :stopped} = old}, 5_000
    assert %{silent_ms: silent_ms, pending: 0} = measurements
    assert silent_ms >= 400
    assert metadata.previous in [:idle, :busy]
    assert Map.delete(old, :verdict) == Map.delete(metadata, :state)
    signal(Server.os_pid(name), "CONT")
    # Until its next heartbeat it is silent without being stopped, which a look may find.
    assert_receive {:event, [:py_port, :server, :health], _, %{previous: :stopped}}, 5_000
    assert eventually(fn -> match?([%{state: :idle}], PyPort.status(name)) end)
  end

  test "a request that is cancelled", %{tmp_dir: dir} do
    Telemetry.listen(name = start_fake(dir))

    code = """
    while recv()[0] != "cancel": pass
    send(A("error"), id, {A("kind"): A("cancelled"), A("message"): "cancelled", A("begun"): True})
    """

    assert {:error, %Error{kind: :timeout}} = PyPort.eval(code, %{}, server: name, timeout: 50)

    assert_receive {:event, [:py_port, :request, :cancel], %{pending: 1}, %{request: 2, reason: :timeout}},
                   5_000

    assert_receive {:event, [:py_port, :request, :cancelled], %{duration: duration}, metadata}, 5_000
    assert %{request: 2, result: :cancelled, name: ^name} = metadata
    assert duration >= 0
  end

  test "a dump and a kill", %{tmp_dir: dir} do
    Telemetry.listen(name = start_fake(dir, cancel_grace: 100, kill_grace: 400))

    assert {:error, %Error{kind: :timeout}} =
             PyPort.eval("page(id)\nwhile True: pass", %{}, server: name, timeout: 50)

    assert_receive {:event, [:py_port, :server, :dump], %{duration: _}, %{reason: :request, stack: stack}},
                   5_000

    assert stack =~ "most recent call first"

    assert_receive {:event, [:py_port, :server, :kill], %{pending: 1}, %{reason: :request, name: ^name}},
                   5_000

    assert_receive {:event, [:py_port, :server, :exit], _,
                    %{error: %Error{kind: :killed, signal: "SIGKILL"}}},
                   5_000
  end

  describe "a pool tells" do
    defp start_pool(options) do
      Telemetry.listen(name = name())
      start_supervised!({Pool, [name: name] ++ options})
      name
    end

    test "which servers it takes in and out, and why" do
      name = start_pool(size: 1, after_cancel: :restart)
      pool = Process.whereis(name)

      assert_receive {:event, [:py_port, :pool, :server_in], %{servers: 1}, metadata}, 20_000
      assert [server] = Pool.servers(name)
      about = %{pool: pool, name: name, server: server, os_pid: Server.os_pid(server), index: 1}
      assert metadata == Map.put(about, :reason, :start)

      assert {:error, %Error{}} = PyPort.eval("import os; os._exit(3)", %{}, server: name)
      assert_receive {:event, [:py_port, :pool, :server_out], measurements, metadata}, 5_000
      assert %{servers: 0, requests: 1, duration: duration} = measurements
      assert duration > 0
      assert metadata == Map.put(about, :reason, :ended)

      assert_receive {:event, [:py_port, :pool, :server_in], %{servers: 1}, %{reason: :start}}, 20_000

      assert {:error, %Error{kind: :timeout}} =
               PyPort.eval("while True: pass", %{}, server: name, timeout: 50)

      assert_receive {:event, [:py_port, :pool, :server_out], %{servers: 0}, %{reason: :restart}}, 5_000
    end

    test "which server takes over from which" do
      name = start_pool(size: 1, max_requests: 2)
      assert_receive {:event, [:py_port, :pool, :server_in], _, %{server: first, reason: :start}}, 20_000
      for _ <- 1..2, do: assert({:ok, 1} = PyPort.eval("1", %{}, server: name))
      assert_receive {:event, [:py_port, :pool, :server_in], %{servers: 1}, next}, 20_000
      assert %{reason: :max_requests, server: second, index: 1} = next
      assert_receive {:event, [:py_port, :pool, :server_out], %{servers: 1, requests: 2}, last}, 5_000
      assert %{reason: :max_requests, server: ^first, index: 1} = last
      assert first != second
    end

    test "that it is resized, and which server goes" do
      name = start_pool(size: 1)
      pool = Process.whereis(name)
      assert_receive {:event, [:py_port, :pool, :server_in], _, _}, 20_000
      :ok = Pool.resize(name, 2)
      assert_receive {:event, [:py_port, :pool, :resize], %{size: 2, previous: 1}, metadata}, 5_000
      assert metadata == %{pool: pool, name: name}
      assert_receive {:event, [:py_port, :pool, :server_in], %{servers: 2}, %{index: 2}}, 20_000
      :ok = Pool.resize(name, 1)
      assert_receive {:event, [:py_port, :pool, :resize], %{size: 1, previous: 2}, _}, 5_000

      assert_receive {:event, [:py_port, :pool, :server_out], %{servers: 1}, %{index: 2, reason: :resized}},
                     5_000
    end
  end
end
