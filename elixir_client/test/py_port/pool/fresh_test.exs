defmodule PyPort.Pool.FreshTest do
  # Servers that come and go while a pool is used: on demand, one by one, all at once.
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog
  import PyPort.Test.Pools
  import PyPort.Test.Processes

  alias PyPort.{Error, Pool, Server}

  test "restart/1 replaces all servers, and no request is lost" do
    pool = start_pool(size: 2)
    before = os_pids(pool)
    stop = :atomics.new(1, [])

    callers =
      for _ <- 1..4 do
        Task.async(fn ->
          Elixir.Stream.repeatedly(fn ->
            PyPort.eval("import time; time.sleep(0.002); 1", %{}, server: pool)
          end)
          |> Elixir.Stream.take_while(fn outcome -> :atomics.get(stop, 1) == 0 or outcome != {:ok, 1} end)
          |> Enum.uniq()
        end)
      end

    assert Pool.restart(pool) == :ok
    assert eventually(fn -> length(os_pids(pool)) == 2 and before -- os_pids(pool) == before end, 1_000)
    :atomics.put(stop, 1, 1)
    assert callers |> Task.await_many(10_000) |> List.flatten() |> Enum.uniq() == [{:ok, 1}]
    assert {:error, %Error{kind: :unavailable}} = Pool.restart(:no_such_pool)
  end

  test "eval_all/3 runs the code in each server, and gives each outcome" do
    pool = start_pool(size: 3)
    outcomes = Pool.eval_all(pool, "import os, sys; sys.model = n; os.getpid()", %{n: 7})
    assert Enum.map(outcomes, &elem(&1, 0)) == Pool.servers(pool)
    assert Enum.sort(for {_server, {:ok, os_pid}} <- outcomes, do: os_pid) == Enum.sort(os_pids(pool))

    for server <- Pool.servers(pool),
        do: assert(PyPort.eval!("import sys; sys.model", %{}, server: server) == 7)

    assert [{_, {:error, %Error{kind: :python}}} | _] = Pool.eval_all(pool, "1 / 0")

    # The objects are the caller's.
    for {_server, {:ok, object}} <- Pool.eval_all(pool, "[1, 2]", %{}, return: :object),
        do: assert(PyPort.call("builtins:len", [object]) == {:ok, 2})

    {:ok, session} = PyPort.open_session(server: pool)

    for wrong <- [[no_such: 1], [session: session], [server: pool]],
        do: assert_raise(ArgumentError, fn -> Pool.eval_all(pool, "1", %{}, wrong) end)

    assert {:error, %Error{kind: :unavailable}} = Pool.eval_all(:no_such_pool, "1")
  end

  @tag :tmp_dir
  test "restart/1 replaces a server once, also where it ends meanwhile", %{tmp_dir: dir} do
    starts = Path.join(dir, "starts")

    pool =
      start_pool(size: 1, init_code: "import time; open(#{inspect(starts)}, 'a').write('x'); time.sleep(0.1)")

    [one] = os_pids(pool)
    assert Pool.restart(pool) == :ok
    # While its successor starts.
    signal(one, "KILL")
    assert eventually(fn -> os_pids(pool) not in [[], [one]] end, 1_000)
    # Another one would be started within a second.
    Process.sleep(1_200)
    assert File.read!(starts) == "xx"
  end

  @tag :tmp_dir
  test "restart/1 replaces a server that was still starting when it was called", %{tmp_dir: dir} do
    path = Path.join(dir, "model")
    File.write!(path, "1")
    # Reads the file, and takes its time.
    code = """
    import time
    path = #{inspect(path)}
    model = open(path).read()
    open(path + ".read", "w").close()
    time.sleep(0.2)
    """

    {:ok, pool} = start_supervised({Pool, size: 1, init_code: code})
    assert eventually(fn -> File.exists?(path <> ".read") end)
    File.write!(path, "2")
    assert Pool.restart(pool) == :ok
    assert PyPort.await_ready(pool, 10_000) == :ok
    assert eventually(fn -> PyPort.eval("model", %{}, server: pool) == {:ok, "2"} end, 1_000)
  end

  test "a pool may have no server until a request comes" do
    {:ok, pool} = start_supervised({Pool, size: 2, min_size: 0, idle_timeout: 100, heartbeat_interval: 100})
    assert Pool.servers(pool) == []
    assert PyPort.eval("1", %{}, server: pool) == {:ok, 1}
    assert eventually(fn -> Pool.servers(pool) == [] end, 1_000)
    assert PyPort.eval("2", %{}, server: pool) == {:ok, 2}
    assert PyPort.await_ready(pool, 10_000) == :ok

    capture_log(fn ->
      {:ok, pool} = start_supervised({Pool, size: 1, min_size: 0, init_code: "1 / 0"}, id: :bad)
      assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, server: pool)
      assert message =~ "ZeroDivisionError"
    end)
  end

  test "an object keeps its server, however old the last heartbeat is" do
    options = [size: 1, min_size: 0, idle_timeout: 50, heartbeat_interval: 10_000]
    {:ok, pool} = start_supervised({Pool, options})
    object = PyPort.eval!("object()", %{}, server: pool)
    PyPort.Registry.put_fact(object.server, :heartbeat, {%{objects: 0, sessions: 0}, now() - 100})
    Process.sleep(60)
    {:ok, %{manager: manager}} = PyPort.Registry.fetch(pool)
    send(manager, :tick)
    assert [{_pid, :serving}] = PyPort.Pool.Manager.overview(manager)
    # A younger one knows that there is none.
    PyPort.Registry.put_fact(object.server, :heartbeat, {%{objects: 0, sessions: 0}, now()})
    send(manager, :tick)
    assert [{_pid, {:draining, :idle}}] = PyPort.Pool.Manager.overview(manager)
  end

  defp now, do: System.monotonic_time(:millisecond)

  test "await_ready/2 and :wait wait for the first server, or tell why there is none" do
    slow = [init_code: "import time; time.sleep(0.2)"]
    bad = [init_code: "1 / 0"]

    for module <- [Server, Pool] do
      {:ok, pid} = start_supervised({module, slow}, id: {module, :slow})
      assert {:error, %Error{kind: :timeout, begun: false}} = PyPort.await_ready(pid, 10)
      assert PyPort.await_ready(pid, 10_000) == :ok

      {us, {:ok, pid}} =
        :timer.tc(fn -> start_supervised({module, [wait: true] ++ slow}, id: {module, :waits}) end)

      assert us > 200_000
      assert PyPort.eval("1", %{}, server: pid, timeout: 100) == {:ok, 1}

      capture_log(fn ->
        {:ok, pid} = start_supervised({module, bad}, id: {module, :bad})
        assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.await_ready(pid, 10_000)
        assert message =~ "ZeroDivisionError"
        Process.flag(:trap_exit, true)
        assert {:error, %Error{message: message}} = module.start_link([wait: true] ++ bad)
        assert message =~ "ZeroDivisionError"
      end)
    end

    assert {:error, %Error{kind: :unavailable}} = PyPort.await_ready(:no_such_server)
  end

  @tag :capture_log
  test "a start with :wait that fails is one error, and no exit signal" do
    Process.flag(:trap_exit, true)

    for module <- [Server, Pool],
        do: assert({:error, %Error{kind: :unavailable}} = module.start_link(wait: true, init_code: "1 / 0"))

    refute_receive {:EXIT, _pid, _reason}, 20
  end

  @tag :tmp_dir
  test "a pool grows while requests wait, and its idle servers end", %{tmp_dir: dir} do
    {:ok, pool} = start_supervised({Pool, size: 3, min_size: 1, idle_timeout: 300, wait: true})
    assert length(Pool.servers(pool)) == 1
    gate = Path.join(dir, "gate")
    code = "import os, time\nwhile not os.path.exists(gate): time.sleep(0.005)\nos.getpid()"

    tasks =
      for _ <- 1..5, do: Task.async(fn -> PyPort.eval(code, %{gate: gate}, server: pool, timeout: 20_000) end)

    assert eventually(fn -> for(%{pending: 1} <- PyPort.status(pool), do: :busy) |> length() == 3 end, 1_000)
    File.write!(gate, "")
    os_pids = for {:ok, os_pid} <- Task.await_many(tasks, 20_000), uniq: true, do: os_pid
    assert length(os_pids) == 3

    # An object keeps its server.
    object = PyPort.eval!("object()", %{}, server: pool)
    assert eventually(fn -> length(Pool.servers(pool)) < 3 end, 1_000)
    assert PyPort.eval("o is not None", %{o: object}, server: pool) == {:ok, true}
    PyPort.release(object)
    assert eventually(fn -> length(Pool.servers(pool)) == 1 end, 1_000)
    assert PyPort.eval("1", %{}, server: pool) == {:ok, 1}

    assert_raise ArgumentError, ~r/:min_size must not be more than :size/, fn ->
      Pool.start_link(size: 1, min_size: 2)
    end
  end

  test "copy/3 moves an object by pickle, and names what cannot be copied" do
    pool = start_pool(size: 2)
    [one, two] = Pool.servers(pool)
    fraction = PyPort.eval!("from fractions import Fraction; Fraction(6, 8)", %{}, server: one)
    assert {:ok, copy} = PyPort.copy(fraction, two)
    assert copy.server == two
    assert PyPort.getattr(copy, "denominator") == {:ok, 4}
    assert {:ok, %{server: ^one}} = PyPort.copy(PyPort.eval!("[1]", %{}, server: two, return: :object), one)

    for {code, globals, type} <- [
          {"import threading; threading.Lock()", %{}, "_thread.lock"},
          {"(n for n in [])", %{}, "builtins.generator"},
          {"f", %{f: &Function.identity/1}, "port_server.runtime.api.Callback"},
          {"[f]", %{f: &Function.identity/1}, "builtins.list"}
        ] do
      object = PyPort.eval!(code, globals, server: one, return: :object)
      assert {:error, %Error{kind: :python, type: "TypeError", message: message}} = PyPort.copy(object, two)
      assert message =~ "#{type} cannot be copied"
      assert message =~ "install cloudpickle"
    end

    # Not lost at the first server where the second one fails.
    assert {:error, %Error{kind: :unavailable}} = PyPort.copy(fraction, :no_such_server)
    assert PyPort.getattr(fraction, "denominator") == {:ok, 4}
  end
end
