defmodule PyPort.SharedMemoryTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog
  import PyPort.Test.Processes, only: [eventually: 1]
  import PyPort.Test.Servers

  alias PyPort.{Connection, Registry, SharedMemory, Wire}

  @large 3_000_000

  defp server(options \\ []),
    do: start_server([binary_as: :bytes, shm_threshold: 100_000, heartbeat_interval: 10] ++ options)

  defp shared(server) do
    {:ok, connection} = server |> GenServer.whereis() |> Registry.fetch()
    SharedMemory.of(connection.calls)
  end

  defp taken(server), do: Enum.count(0..63, &(:atomics.get(shared(server).counters, &1 + 1) > 0))

  # By Python itself, as its heartbeats say.
  defp frames?(server, count) do
    eventually(fn ->
      match?([%{shm_frames: ^count, beat_age_ms: age}] when age < 1_000, PyPort.status(server))
    end)
  end

  defp free?(server), do: frames?(server, 0)
  defp bytes(server), do: server |> PyPort.status() |> hd() |> Map.fetch!(:shm_bytes)

  test "large requests and calls go there and come back equal, small ones do not" do
    server = server()
    data = :crypto.strong_rand_bytes(@large)

    assert PyPort.eval!("x[:10]", %{x: binary_part(data, 0, 99_000)}, server: server) ==
             binary_part(data, 0, 10)

    assert taken(server) == 0
    assert PyPort.eval!("x", %{x: data}, server: server) == data
    assert PyPort.call!("builtins:len", [data], %{}, server: server) == @large
    assert PyPort.eval!("sum(x)", %{x: Enum.to_list(1..100_000)}, server: server) == 5_000_050_000
    assert taken(server) > 0
    assert free?(server)
  end

  test "answers to calls, streams and sessions as well" do
    server = server()
    data = :binary.copy("a", @large)
    assert PyPort.eval!("len(f())", %{f: fn -> data end}, server: server) == @large
    assert taken(server) == 1
    assert Enum.to_list(PyPort.stream("yield len(x)\nyield x[0]", %{x: data}, server: server)) == [@large, ?a]
    {:ok, session} = PyPort.open_session(server: server)
    assert PyPort.eval!("len(x)", %{x: data}, session: session) == @large
    assert PyPort.eval!("len(x)", %{}, session: session) == @large
    assert free?(server)
  end

  test "an array refers to its frame as long as Python keeps it" do
    server = server(threads: 0)
    {:ok, session} = PyPort.open_session(server: server)
    tensor = %PyPort.Tensor{type: {:u, 8}, shape: {@large}, data: :binary.copy(<<7>>, @large)}
    code = "x = memoryview(x)\nx.readonly, x[0], len(x)"
    assert PyPort.eval!(code, %{x: tensor}, session: session) == {true, 7, @large}
    # numpy's, whose numbers must stand at a multiple of their size.
    for n <- 1..3 do
      globals = %{String.duplicate("a", n) => 1, "x" => tensor}
      assert PyPort.eval!("x.ctypes.data % 64", globals, server: server) == 0
    end

    other = %{tensor | data: :binary.copy(<<8>>, @large)}
    for _ <- 1..3, do: assert(PyPort.eval!("y[1]", %{y: PyPort.Tensor.writable(other)}, server: server) == 8)
    assert PyPort.eval!("bytes(x) == b'\\x07' * len(x)", %{}, session: session)
    assert frames?(server, 1)
    PyPort.eval!("del x", %{}, session: session)
    assert free?(server)
  end

  test "with all slots in use, and above the limit, the pipe carries the frame" do
    server = server(init_code: "kept = []")
    tensor = %PyPort.Tensor{type: {:u, 8}, shape: {200_000}, data: :binary.copy(<<7>>, 200_000)}
    for n <- 1..70, do: assert(PyPort.eval!("kept.append(x); len(kept)", %{x: tensor}, server: server) == n)
    assert frames?(server, 64)
    assert PyPort.eval!("sum(memoryview(x)[0] for x in kept)", %{}, server: server) == 490
    PyPort.eval!("kept.clear()", %{}, server: server)
    assert free?(server)

    small = server(max_shm_bytes: 1_000_000)
    assert PyPort.eval!("len(x)", %{x: :binary.copy("a", @large)}, server: small) == @large
    assert taken(small) == 0
    assert PyPort.eval!("len(x)", %{x: :binary.copy("a", 900_000)}, server: small) == 900_000
    assert taken(small) == 1

    for options <- [[shm_threshold: :infinity], [memory_limit: 2_000_000_000]] do
      none = server(options)
      assert shared(none) == nil
      assert PyPort.eval!("len(x)", %{x: :binary.copy("a", @large)}, server: none) == @large
    end
  end

  test "many callers at once get their own" do
    server = server()

    1..40
    |> Task.async_stream(
      fn n ->
        data = :binary.copy(<<n>>, 150_000 + n)
        for _ <- 1..5, do: PyPort.eval!("x", %{x: data}, server: server, timeout: 20_000) == data
      end,
      max_concurrency: 40,
      timeout: 60_000
    )
    |> Enum.each(fn {:ok, equal} -> assert Enum.all?(equal) end)

    assert free?(server)
    assert :ets.tab2list(shared(server).rows) == []
  end

  test "a caller that dies leaves no slot taken" do
    server = server()
    data = :binary.copy("a", 20_000_000)

    for ms <- 0..12 do
      pid = spawn(fn -> PyPort.eval("len(x)", %{x: data}, server: server) end)
      Process.sleep(ms)
      Process.exit(pid, :kill)
    end

    # One that had a slot, and had sent nothing.
    shared = shared(server)
    :ets.insert(shared.rows, {63, spawn(fn -> :ok end)})
    :atomics.put(shared.counters, 64, 1)

    assert eventually(fn ->
             send(server, :tick)
             bytes(server) >= 0 and :ets.tab2list(shared.rows) == []
           end)

    assert eventually(fn ->
             {:ok, file} = :file.open(shared.path, [:read, :raw, :binary])
             {:ok, page} = :file.pread(file, 64, 256)
             :file.close(file)
             generations = for slot <- 0..63, do: :atomics.get(shared.counters, slot + 1)
             for(<<generation::native-32 <- page>>, do: generation) == generations
           end)
  end

  test "pages go back to the system when it was idle for a while" do
    server = server()
    assert PyPort.eval!("len(x)", %{x: :binary.copy("a", 10_000_000)}, server: server) == 10_000_000
    assert eventually(fn -> bytes(server) >= 10_000_000 end)
    assert free?(server)
    :atomics.put(shared(server).counters, 129, System.os_time(:millisecond) - 60_000)
    send(server, :tick)
    assert eventually(fn -> bytes(server) < 100_000 end)
    assert PyPort.eval!("len(x)", %{x: :binary.copy("a", 10_000_000)}, server: server) == 10_000_000
  end

  test "code that closes every file, or puts another one there, costs the memory and nothing else" do
    server = server()
    data = :binary.copy("a", @large)
    fd = shared(server).path |> Path.basename() |> String.to_integer()
    code = "import os; other = os.open('/dev/zero', os.O_RDWR); os.dup2(other, fd); os.close(other)"
    PyPort.eval!(code, %{fd: fd}, server: server)
    assert PyPort.eval!("len(x)", %{x: data}, server: server) == @large
    PyPort.eval!("import os; os.close(fd)", %{fd: fd}, server: server)
    assert PyPort.eval!("len(x)", %{x: data}, server: server) == @large
  end

  test "a forked child frees nothing of its parent's" do
    server = server()
    tensor = %PyPort.Tensor{type: {:u, 8}, shape: {@large}, data: :binary.copy(<<7>>, @large)}

    code = """
    import gc, os
    pid = os.fork()
    if pid == 0:
        del x
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    keep = x
    """

    {:ok, session} = PyPort.open_session(server: server)
    PyPort.eval!(code, %{x: tensor}, session: session)
    other = %{tensor | data: :binary.copy(<<8>>, @large)}
    for _ <- 1..3, do: PyPort.eval!("len(y)", %{y: other}, server: server)
    assert PyPort.eval!("set(memoryview(keep)[:1000]) == {7}", %{}, session: session)
  end

  test "a frame that cannot be where it is said to be ends the server with the reason" do
    server = server()
    {:ok, connection} = server |> GenServer.whereis() |> Registry.fetch()
    ref = Process.monitor(server)

    said =
      capture_log(fn ->
        Connection.command(connection, Wire.segment(64, 1, 0, 10))
        assert_receive {:DOWN, ^ref, :process, _pid, _reason}, 5_000
      end)

    assert said =~ "Python is leaving: there is no frame of 10 bytes in slot 64"
  end

  test "what is not there is not opened" do
    table = :ets.new(:table, [])
    refute SharedMemory.open(table, %{os_pid: 1, shared_memory: nil}, 1)
    info = %{fd: 0, token: <<0::128>>, stride: 4_096, slots: 64}
    refute SharedMemory.open(table, %{os_pid: 999_999_999, shared_memory: info}, 1)
    assert SharedMemory.of(table) == nil
  end
end
