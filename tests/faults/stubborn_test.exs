defmodule PyPort.Faults.StubbornTest do
  # Code that does not end by itself: its timeout ends it, by whatever it takes.
  use ExUnit.Case, async: true

  import PyPort.Test.{Faults, Processes}

  alias PyPort.{Error, Server}

  @timeout 400
  # As the servers have them by default. A caller has its answer at the latest after all three.
  @graces 2_000
  # What a loaded machine may add.
  @slack 1_500

  # Ended where it is, and the Python goes on.
  for {name, program} <- [
        {"infinite Python loop", "loop"},
        {"`time.sleep`", "sleep"},
        {"a lock never released", "lock"},
        {"signal handlers replaced", "signal_handlers"},
        {"cancel during print", "prints"},
        {"cancel in logging", "logs"}
      ] do
    test name do
      options = [within: @timeout + @graces + @slack, logger: false]
      {:ok, device} = StringIO.open("")

      report =
        fault(
          unquote(name),
          options,
          &run(&1, unquote(program), timeout: @timeout, stdout: device, stderr: device)
        )

      assert {:error, %Error{kind: :timeout, begun: true} = error} = report.outcome
      assert error.stack =~ "#{unquote(program)}.py"
      assert report.server == :goes_on
    end
  end

  # Its import goes on, and the module works.
  test "a timeout inside an import" do
    options = [within: @timeout + @slack, logger: false, import_grace: 20_000]

    report =
      fault("a timeout inside an import", options, fn server ->
        outcome = run(server, "imports", timeout: @timeout)
        {:ok, 7} = PyPort.eval("import slow_to_import; slow_to_import.value", %{}, server: server)
        outcome
      end)

    assert {:error, %Error{kind: :timeout, begun: true} = error} = report.outcome
    assert error.message =~ "importing slow_to_import"
    assert report.server == :goes_on
  end

  # Nothing but a kill ends it.
  for {name, program} <- [
        {"`sum(range(10**12))`", "c_loop"},
        {"catastrophic regex", "regex"},
        {"blocking code on the event loop", "blocks_the_loop"}
      ] do
    test name do
      # The first await imports the loop, which can take as long as the timeout.
      warm = "import asyncio; await asyncio.sleep(0)"
      options = [within: @timeout + @graces + @slack, dies: true, warm: warm]
      report = fault(unquote(name), options, &run(&1, unquote(program), timeout: @timeout))
      assert {:error, %Error{kind: :timeout} = error} = report.outcome
      assert error.begun in [true, nil]
      assert error.stack =~ "#{unquote(program)}.py"
      assert report.server == :replaced
    end
  end

  # Tried again and again; where it happens to be outside of its `try`, that ends it, else a kill does.
  test "except BaseException: pass in a loop" do
    options = [
      within: @timeout + @graces + @slack,
      became: "replaced, if no try meets it outside of its `try`"
    ]

    name = "`except BaseException: pass` in a loop"
    report = fault(name, options, &run(&1, "catches_everything", timeout: @timeout))
    assert {:error, %Error{kind: :timeout, begun: true} = error} = report.outcome
    assert error.stack =~ "catches_everything.py"
  end

  # An exception in a `__del__` is told to stderr and goes no further, and what comes after it is the answer.
  test "cancel in __del__" do
    options = [within: @timeout + @graces + @slack, saw: "its answer: what is raised there goes no further"]
    report = fault("cancel in `__del__`", options, &run(&1, "in_del", timeout: @timeout))
    assert report.outcome == {:ok, nil}
    assert report.ms >= @timeout
    assert report.server == :goes_on
  end

  test "recursion" do
    report = fault("recursion", &run(&1, "recursion"))
    assert {:error, %Error{kind: :python, type: "RecursionError"}} = report.outcome
    assert report.server == :goes_on
  end

  # How deep C may go is the interpreter's business: 3.11 lets it run into the end of the stack, later ones know where it is.
  test "recursion with a raised limit" do
    options = [memory_limit: 2 * 1_073_741_824, within: 20_000]

    report = fault("recursion with a raised limit", options, &run(&1, "deep_recursion", timeout: 15_000))

    case report.outcome do
      {:error, %Error{kind: :killed, signal: "SIGSEGV", begun: true} = error} ->
        assert error.stack =~ "in down"
        assert report.server == :replaced

      {:error, %Error{kind: :python, type: type}} ->
        assert type in ["RecursionError", "MemoryError"]
        assert report.server == :goes_on
    end
  end

  test "a caller that dies while it waits" do
    test = self()

    report =
      fault(
        "a caller that dies while it waits",
        [saw: "nothing: it is dead; the next one its answer"],
        fn server ->
          caller = spawn(fn -> send(test, {:never, run(server, "loop", timeout: :infinity)}) end)
          assert eventually(fn -> match?([%{running: id}] when id != nil, PyPort.status(server)) end)
          Process.exit(caller, :kill)
          PyPort.eval("'next'", %{}, server: server, timeout: 10_000)
        end
      )

    assert report.outcome == {:ok, "next"}
    assert report.server == :goes_on
    refute_received {:never, _}
  end

  test "replies after a timeout" do
    report =
      fault("replies after a timeout", [saw: "`:timeout`, and no message later"], fn server ->
        code = "import time\ntry: time.sleep(60)\nexcept BaseException: pass\n'too late'"

        outcomes =
          1..40
          |> Task.async_stream(
            fn n ->
              outcome =
                PyPort.eval("import time; time.sleep(0.01); n", %{n: n},
                  server: server,
                  timeout: 15 + rem(n, 5) * 40
                )

              {outcome, Process.info(self(), :messages)}
            end,
            max_concurrency: 8,
            timeout: 30_000
          )
          |> Enum.with_index(1)

        for {{:ok, {outcome, messages}}, n} <- outcomes do
          assert outcome == {:ok, n} or match?({:error, %Error{kind: :timeout}}, outcome)
          assert messages == {:messages, []}
        end

        # What is told to end may still answer: that is its answer.
        assert {:ok, "too late"} = PyPort.eval(code, %{}, server: server, timeout: 200)
        PyPort.eval("import time; time.sleep(60)", %{}, server: server, timeout: 100)
      end)

    assert {:error, %Error{kind: :timeout, begun: true}} = report.outcome
    assert report.server == :goes_on
    refute_received _anything
  end

  test "the server stopped with SIGSTOP" do
    options = [within: @timeout + @graces + @slack]

    report =
      fault("the server stopped with SIGSTOP", options, fn server ->
        task = Task.async(fn -> run(server, "loop", timeout: @timeout) end)
        assert eventually(fn -> match?([%{running: id}] when id != nil, PyPort.status(server)) end)
        signal(Server.os_pid(server), "STOP")
        Task.await(task, 10_000)
      end)

    assert {:error, %Error{kind: :timeout, begun: true}} = report.outcome
    assert report.server == :replaced
  end

  @tag :slow
  test "cancel during a 100 MiB reply" do
    options = [
      within: 60_000,
      saw: "`:timeout`, or its answer if it was on its way",
      cancel_grace: 20_000,
      per: 11
    ]

    size = 100 * 1_048_576

    report =
      fault("cancel during a 100 MiB reply", options, fn server ->
        # From well before the reply is made to well after it has come.
        outcomes =
          for timeout <- [1, 5, 10, 20, 30, 45, 60, 80, 100, 150, 300] do
            code = "[bytes(2**20) for _ in range(100)]"

            case PyPort.eval(code, %{}, server: server, timeout: timeout) do
              {:ok, reply} -> IO.iodata_length(reply)
              {:error, %Error{kind: :timeout}} -> :timeout
            end
          end

        Enum.uniq(outcomes)
      end)

    assert report.outcome -- [size, :timeout] == []
    assert report.server == :goes_on
  end
end
