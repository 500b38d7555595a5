defmodule PyPort.Faults.CallersTest do
  # The other side misbehaves: devices that do not read, callers with a full mailbox, too many of them. Not beside other
  # tests: some look at the VM's memory and at its table of atoms, and others have replies of 100 MiB.
  use ExUnit.Case, async: false

  import PyPort.Test.{Faults, Processes}

  alias PyPort.{Error, Server}

  @moduletag timeout: 180_000

  # 300 MB in lines of 1 MB.
  @output "for _ in range(300): print('x' * 1_000_000)\n'all'"

  defp memory, do: :erlang.memory(:total) + :erlang.memory(:binary)

  # A device that takes one request after another when it is allowed to, and counts characters.
  defp start_device(test, taken \\ 0) do
    receive do
      {:io_request, from, ref, {:put_chars, _encoding, text}} ->
        if taken == 0, do: send(test, {:paused, self()}) && receive(do: (:go_on -> :ok))
        send(from, {:io_reply, ref, :ok})
        start_device(test, taken + byte_size(IO.iodata_to_binary(text)))

      {:taken, from} ->
        send(from, {:taken, taken})
    end
  end

  test "300 MB of output with a paused reader" do
    test = self()
    device = spawn_link(fn -> start_device(test) end)
    name = "300 MB of output with a paused reader"

    report =
      fault(
        name,
        [within: 120_000, saw: "its answer, once its device has read; meanwhile nothing grows"],
        fn server ->
          os_pid = Server.os_pid(server)
          before = {memory(), rss(os_pid)}

          task =
            Task.async(fn -> PyPort.eval(@output, %{}, server: server, timeout: 120_000, stdout: device) end)

          assert_receive {:paused, ^device}, 10_000
          # As long as nobody reads it waits, and neither side keeps what it would like to print.
          for _ <- 1..20 do
            Process.sleep(20)
            {beam, python} = before
            assert memory() - beam < 100_000_000
            assert rss(os_pid) - python < 50_000_000
          end

          assert Task.yield(task, 0) == nil
          send(device, :go_on)
          Task.await(task, 120_000)
        end
      )

    assert report.outcome == {:ok, "all"}
    assert report.server == :goes_on
    send(device, {:taken, self()})
    assert_receive {:taken, taken}, 5_000
    assert taken == 300 * 1_000_001
  end

  defp rss(os_pid) do
    [_size, resident | _] = "/proc/#{os_pid}/statm" |> File.read!() |> String.split()
    String.to_integer(resident) * 4_096
  end

  test "64 callers with 10 MB each at a stopped Python" do
    options = [
      shm_threshold: :infinity,
      within: 5_000,
      back_within: 10_000,
      dies: true,
      saw: "`:overloaded` at once, or `:timeout`"
    ]

    name = "64 callers with 10 MB each at a stopped Python"

    report =
      fault(name, options, fn server ->
        {:ok, %{port: port}} = server |> Process.whereis() |> PyPort.Registry.fetch()
        signal(Server.os_pid(server), "STOP")
        data = PyPort.bytes(:binary.copy(<<0>>, 10_000_000))
        ask = fn -> PyPort.eval("len(x)", %{x: data}, server: server, timeout: 1_000) end
        tasks = for _ <- 1..64, do: Task.async(fn -> receive(do: (:go -> ask.())) end)
        for task <- tasks, do: send(task.pid, :go)
        Process.sleep(500)
        # The limit, and one of them.
        assert {:queue_size, queued} = Port.info(port, :queue_size)
        assert queued < 67_108_864 + 10_100_000
        Task.await_many(tasks)
      end)

    for {:error, %Error{kind: kind}} <- report.outcome, do: assert(kind in [:overloaded, :timeout, :killed])
    assert Enum.count(report.outcome, &match?({:error, %Error{kind: :overloaded, begun: false}}, &1)) >= 50
    assert report.server == :replaced
  end

  for {name, code} <- [
        {"log records that are not read",
         "import logging\nfor n in range(2000): logging.warning('x' * 60_000)"},
        {"messages that are not read",
         "import port_server\nfor n in range(2000): port_server.send(to, b'x' * 60_000)"}
      ] do
    test name do
      options = [
        within: 20_000,
        warm: "import logging",
        saw: "its answer, once they are read; meanwhile nothing grows"
      ]

      report =
        fault(unquote(name), options, fn server ->
          delivery = :sys.get_state(server).delivery
          :erlang.suspend_process(delivery)
          nobody = spawn(fn -> :ok end)
          before = memory()
          ask = fn -> PyPort.eval(unquote(code), %{to: nobody}, server: server, timeout: 20_000) end
          task = Task.async(ask)
          for _ <- 1..20, do: Process.sleep(20) && assert(memory() - before < 20_000_000)
          assert Task.yield(task, 0) == nil
          :erlang.resume_process(delivery)
          Task.await(task, 20_000)
        end)

      assert report.outcome == {:ok, nil}
      assert report.server == :goes_on
    end
  end

  test "a callback that waits for a request behind its own" do
    name = "a callback that waits for a request behind its own"

    report =
      fault(name, [saw: "`:timeout` that names the callback, `begun: false`"], fn server ->
        # It was there before, so it cannot be seen for whom it asks.
        asker =
          spawn_link(fn ->
            receive do: ({:ask, from} -> send(from, PyPort.eval("1", %{}, server: server, timeout: 400)))
          end)

        ask = fn ->
          send(asker, {:ask, self()}) && receive(do: ({:error, error} -> Exception.message(error)))
        end

        PyPort.eval("f()", %{f: ask}, server: server)
      end)

    assert {:ok, message} = report.outcome
    assert message =~ "waiting for a callback"
    assert report.server == :goes_on
  end

  test "stderr written as fast as it goes" do
    name = "stderr written as fast as it goes"
    options = [heartbeat_interval: 60_000, max_stderr_bytes: 4_194_304, within: 10_000, logger: false]
    options = options ++ [saw: "its answer; the file is emptied again and again"]

    report =
      fault(name, options, fn server ->
        {:ok, %{dir: dir}} = server |> Process.whereis() |> PyPort.Registry.fetch()
        path = PyPort.StderrFile.path(dir)
        task = Task.async(fn -> run(server, "floods_stderr", globals: %{seconds: 1.5}, timeout: 10_000) end)
        {largest, outcome} = largest(path, task, 0)
        {:ok, written} = outcome
        # Within a look it grows by what is written in 100 ms at the most.
        assert written > 100_000_000
        assert largest < 4_194_304 + div(written, 3)
        assert eventually(fn -> File.stat!(path).size <= 4_194_304 end)
        outcome
      end)

    assert report.server == :goes_on
  end

  defp largest(path, task, size) do
    size = max(size, File.stat!(path).size)

    case Task.yield(task, 10) do
      {:ok, outcome} -> {size, outcome}
      nil -> largest(path, task, size)
    end
  end

  test "a hung group leader" do
    hung = spawn_link(fn -> Process.sleep(:infinity) end)

    report =
      fault("a hung group leader", [saw: "`:timeout` for one that prints much, on time"], fn server ->
        # Little that is printed fits in the window, and costs only the flush; much of it never does.
        PyPort.eval(@output, %{}, server: server, timeout: 500, stdout: hung)
      end)

    assert {:error, %Error{kind: :timeout, begun: true}} = report.outcome
    assert report.server == :goes_on
  end

  test "a little output to a hung group leader" do
    hung = spawn_link(fn -> Process.sleep(:infinity) end)

    report =
      fault("a little output to a hung group leader", [quiet: true], fn server ->
        PyPort.eval("print('a word'); 1", %{}, server: server, timeout: 500, stdout: hung)
      end)

    # It has run; the answer is there, in time, whatever became of the word.
    assert report.outcome == {:ok, 1}
    assert report.ms < 3_000
    assert report.server == :goes_on
  end

  test "a dead group leader" do
    {dead, monitor} = spawn_monitor(fn -> :ok end)
    assert_receive {:DOWN, ^monitor, :process, ^dead, _}

    report =
      fault("a dead group leader", [within: 20_000], fn server ->
        PyPort.eval("for _ in range(30): print('x' * 1_000_000)\n'all'", %{},
          server: server,
          timeout: 20_000,
          stdout: dead
        )
      end)

    assert report.outcome == {:ok, "all"}
    assert report.server == :goes_on
  end

  test "a full queue" do
    report =
      fault("a full queue", [max_pending: 20, saw: "`:overloaded` at once, nothing sent"], fn server ->
        gate = self()
        hold = Task.async(fn -> PyPort.eval("wait()", %{wait: fn -> wait(gate) end}, server: server) end)
        assert_receive {:waiting, worker}, 5_000
        queued = for n <- 1..19, do: Task.async(fn -> PyPort.eval("n", %{n: n}, server: server) end)
        assert eventually(fn -> match?([%{pending: 20}], PyPort.status(server)) end)

        {ms, outcomes} = timed(fn -> for _ <- 1..100, do: PyPort.eval("1", %{}, server: server) end)
        for outcome <- outcomes, do: assert({:error, %Error{kind: :overloaded, begun: false}} = outcome)
        assert ms < 1_000

        send(worker, :open)
        assert Task.await(hold) == {:ok, "open"}
        assert Enum.map(Task.await_many(queued), &elem(&1, 1)) == Enum.to_list(1..19)
        hd(outcomes)
      end)

    assert {:error, %Error{kind: :overloaded, begun: false}} = report.outcome
    assert report.server == :goes_on
  end

  defp wait(gate) do
    send(gate, {:waiting, self()})
    receive do: (:open -> "open")
  end

  test "100,000 new atoms on their way here" do
    # The codec's own half, which is to forget them, is in test_frames.py.
    code = """
    import port_server
    [port_server.Atom(f'fault_{start}_{n}') for n in range(100_000)]
    """

    report =
      fault("100,000 new atoms on their way to the BEAM", [quiet: true], fn server ->
        before = :erlang.system_info(:atom_count)
        start = "#{System.unique_integer([:positive])}"
        outcome = PyPort.eval(code, %{start: start}, server: server, timeout: 20_000)
        # Other tests may bring a few of their own.
        assert :erlang.system_info(:atom_count) - before < 10_000
        outcome
      end)

    assert {:error, %Error{kind: :decode}} = report.outcome
    assert report.server == :goes_on
  end

  test "a mailbox of 100,000 messages" do
    report =
      fault("a mailbox of 100,000 messages", [saw: "its answer, as fast as ever"], fn server ->
        # The same process before and after, so that the machine's load is in both.
        before = median_us(server)
        for n <- 1..100_000, do: send(self(), {:mail, n})
        full = median_us(server)
        for n <- 1..100_000, do: assert_receive({:mail, ^n})
        {before, full}
      end)

    {before, full} = report.outcome
    assert report.server == :goes_on
    # A look through 100,000 messages takes a millisecond and more.
    assert full < 3 * before + 500
  end

  defp median_us(server) do
    times =
      for _ <- 1..101, do: elem(:timer.tc(fn -> {:ok, 2} = PyPort.eval("1 + 1", %{}, server: server) end), 0)

    times |> Enum.sort() |> Enum.at(50)
  end
end
