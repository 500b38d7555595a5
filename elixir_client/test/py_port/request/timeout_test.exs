defmodule PyPort.Request.TimeoutTest do
  # Time that is up, with real Pythons that run, sleep, refuse, hold the interpreter, or do not read.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import PyPort.Test.{Processes, Requests, Servers}

  alias PyPort.{Error, Server}

  @moduletag capture_log: true

  # On time is before the second step, at 1_700 ms: the graces are 1 s each. On an idle machine it takes some ms.
  describe "with the interpreter free a timeout is on time, and the server goes on" do
    for {what, code, where} <- [
          {"a loop", "def spin():\n    while True: pass\nspin()", "in spin"},
          {"a sleep", "import time\ndef nap(): time.sleep(60)\nnap()", "in nap"},
          {"a wait for a lock", "import threading\ndef wait():\n    threading.Event().wait()\nwait()",
           "in wait"},
          {"a child", "import subprocess\ndef child(): subprocess.run(['sleep', '60'])\nchild()", "in child"}
        ] do
      # A thread is stopped between two bytecodes, and these have no second one.
      @tag main_thread: what != "a loop"
      test what do
        server = start_server()
        os_pid = Server.os_pid(server)

        assert {{:error, %Error{kind: :timeout, begun: true} = error}, ms} =
                 timed_eval(server, unquote(code), timeout: 700)

        assert error.stack =~ unquote(where)
        assert [%{file: _, line: _, function: _} | _] = error.frames
        assert ms in 700..1_600
        assert {{:ok, 2}, _} = timed_eval(server, "1 + 1")
        assert Server.os_pid(server) == os_pid
        assert nothing_left?(server)
      end
    end

    test "what awaits" do
      server = start_server()
      code = "import asyncio\nasync def nap(): await asyncio.sleep(60)\nawait nap()"
      assert {{:error, %Error{kind: :timeout} = error}, ms} = timed_eval(server, code, timeout: 700)
      assert error.begun in [true, nil]
      assert ms in 700..1_600
      assert {{:ok, 2}, _} = timed_eval(server, "1 + 1")
      assert nothing_left?(server)
    end

    test "what waits for a call into the BEAM" do
      server = start_server()
      hang = fn -> Process.sleep(:infinity) end

      assert {{:error, %Error{kind: :timeout}}, ms} =
               timed_eval(server, "f()", globals: %{f: hang}, timeout: 700)

      assert ms in 300..1_200
      assert {{:ok, 2}, _} = timed_eval(server, "1 + 1")
      assert nothing_left?(server)
    end

    @tag :main_thread
    test "an item of a stream" do
      server = start_server()
      code = "import time\ndef items():\n    yield 1\n    time.sleep(60)\nfor x in items(): yield x"
      error = catch_error(PyPort.stream(code, %{}, server: server, timeout: 700) |> Enum.to_list())
      assert %Error{kind: :timeout} = error
      assert error.message =~ "no item within 700 ms"
      assert {{:ok, 2}, _} = timed_eval(server, "1 + 1")
      assert nothing_left?(server)
    end
  end

  @tag :main_thread
  test "what waits behind a long request is never run, and its timeout is on time" do
    server = start_server(heartbeat_interval: 100)
    gate = new_gate()
    blocker = begin_eval(server, wait_for(gate) <> "'whole'", timeout: :infinity)

    begun =
      for _ <- 1..5 do
        code = "import sys; sys.was_run = True"
        assert {{:error, %Error{kind: :timeout, begun: begun}}, ms} = timed_eval(server, code, timeout: 100)
        assert ms in 100..900
        begun
      end

    # By Python's word, unless the machine is too busy to have it within some ms.
    assert false in begun
    assert Enum.uniq(begun) -- [false, nil] == []

    open_gate(gate)
    assert {{:ok, "whole"}, _} = Task.await(blocker)
    assert {{:ok, false}, _} = timed_eval(server, "import sys; hasattr(sys, 'was_run')")
  end

  @tag :main_thread
  @tag :slow
  test "the same behind one that holds the interpreter, which goes on undisturbed" do
    server = start_server()
    os_pid = Server.os_pid(server)
    blocker = begin_eval(server, "sum(range(150_000_000)) > 0", timeout: :infinity)

    # Python cannot say that it has not begun, and it may begin before its cancel is read.
    assert {{:error, %Error{kind: :timeout, begun: nil}}, ms} =
             timed_eval(server, "import sys; sys.was_run = 1", timeout: 100)

    assert ms in 100..900
    assert {{:ok, true}, _} = Task.await(blocker, 60_000)
    assert {{:ok, false}, _} = timed_eval(server, "import sys; hasattr(sys, 'was_run')")
    assert Server.os_pid(server) == os_pid
    assert nothing_left?(server)
  end

  describe "what does not end is killed within its graces, and the next request has a new Python" do
    for {what, code, where} <- [
          {"code that holds the interpreter", "def heavy(): sum(range(10**12))\nheavy()", "in heavy"},
          {"a regular expression", "import re\ndef match(): re.match('(a+)+$', 'a' * 60 + 'b')\nmatch()",
           "in match"},
          {"code that swallows whatever is raised",
           "def deaf():\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass\ndeaf()",
           "in deaf"},
          {"code that blocks the loop",
           "import asyncio, time\nasync def block(): time.sleep(60)\nawait block()", "in block"}
        ] do
      test what do
        name = :"server_#{System.unique_integer([:positive])}"

        start_supervised!(
          {Server, name: name, cancel_grace: 300, kill_grace: 1_500, init_code: "import asyncio, re, time"}
        )

        assert {{:ok, 1}, _} = timed_eval(name, "1")
        os_pid = Server.os_pid(name)
        assert {{:error, %Error{kind: :timeout} = error}, ms} = timed_eval(name, unquote(code), timeout: 700)
        assert error.stack =~ unquote(where)
        assert error.begun in [true, nil]
        assert ms in 1_000..3_000
        assert gone?(os_pid)
        assert eventually(fn -> match?({{:ok, 2}, _}, timed_eval(name, "1 + 1")) end)
      end
    end
  end

  test "a Task that is shut down cancels its request, whatever it does" do
    server = start_server(heartbeat_interval: 100, cancel_grace: 300, kill_grace: 300)
    os_pid = Server.os_pid(server)
    task = begin_eval(server, "while True: pass", timeout: :infinity)
    Task.shutdown(task, :brutal_kill)
    assert nothing_left?(server)
    assert {{:ok, 2}, _} = timed_eval(server, "1 + 1", timeout: 1_000)
    assert Server.os_pid(server) == os_pid

    task = begin_eval(server, "sum(range(10**12))", timeout: :infinity)
    Task.shutdown(task, :brutal_kill)
    assert gone?(os_pid)
  end

  describe "the death of a caller ends its request at once" do
    setup do
      # No sweep comes within the test's time.
      {:ok, server: start_server(heartbeat_interval: 60_000, init_code: "import asyncio, os, sys, time")}
    end

    @endless [
      plain: "while True: pass",
      sleeping: "time.sleep(60)",
      globals: "while x: pass",
      async: "await asyncio.sleep(60)",
      "in a session": "time.sleep(60)"
    ]

    for {what, code} <- @endless, died_after <- [1, 3, 20] do
      @tag main_thread: code =~ "time.sleep"
      test "#{what}, #{died_after} ms after it has asked", %{server: server} do
        ended = new_gate()
        code = "try:\n    " <> unquote(code) <> "\nfinally: open(ended, 'w').close()"
        {:ok, session} = PyPort.open_session(server: server)
        place = if unquote(what) == :"in a session", do: [session: session], else: [server: server]
        ask = fn -> PyPort.eval(code, %{x: 1, ended: ended}, [timeout: :infinity] ++ place) end
        caller = spawn(ask)
        Process.sleep(unquote(died_after))
        Process.exit(caller, :kill)
        assert nothing_but_the_session_left?(server)
        assert {{:ok, 2}, ms} = timed_eval(server, "1 + 1")
        assert ms < 500
      end
    end

    @tag :main_thread
    test "also where it has waited behind another", %{server: server} do
      gate = new_gate()
      first = begin_eval(server, wait_for(gate))
      caller = spawn(fn -> PyPort.eval("time.sleep(60)", %{}, server: server, timeout: :infinity) end)
      assert open?(server, 2)
      Process.exit(caller, :kill)
      open_gate(gate)
      assert {{:ok, nil}, _ms} = Task.await(first)
      assert {{:ok, 2}, _ms} = timed_eval(server, "1 + 1", timeout: 2_000)
      assert nothing_left?(server)
    end

    test "and tells no process of one that ends in time", %{server: server} do
      for _ <- 1..3, do: assert({{:ok, nil}, _ms} = timed_eval(server, "time.sleep(0.02)"))
      assert nothing_left?(server)
      refute_received _anything
    end

    defp nothing_but_the_session_left?(server) do
      eventually(fn ->
        %{connection: connection, requests: requests, cancellation: cancellation} = :sys.get_state(server)
        :ets.tab2list(connection.table) == [] and requests.attached == %{} and cancellation.entries == %{}
      end)
    end
  end

  test "a session outlives a request of it that was interrupted" do
    server = start_server()
    {:ok, session} = PyPort.open_session(server: server)
    {:ok, nil} = PyPort.eval("x = 1", %{}, session: session)

    assert {:error, %Error{kind: :timeout}} =
             PyPort.eval("x = 2\nwhile True: pass", %{}, session: session, timeout: 200)

    assert {:ok, 2} = PyPort.eval("x", %{}, session: session)
  end

  test "of 200 short timeouts each has one outcome, and nothing is left" do
    server = start_server()

    outcomes =
      1..200
      |> Task.async_stream(
        fn n ->
          # About half of them are just in time.
          PyPort.eval("import time; time.sleep(0.004); n", %{n: n}, server: server, timeout: 20 + rem(n, 40))
        end,
        max_concurrency: 8,
        timeout: 30_000
      )
      |> Enum.with_index(1)

    for {{:ok, outcome}, n} <- outcomes do
      assert outcome == {:ok, n} or match?({:error, %Error{kind: :timeout}}, outcome)
    end

    assert nothing_left?(server)
    refute_received _anything
    assert {{:ok, 2}, _} = timed_eval(server, "1 + 1")
  end

  test "after_cancel: :restart gives the next request a fresh Python" do
    name = :"server_#{System.unique_integer([:positive])}"
    start_supervised!({Server, name: name, after_cancel: :restart})
    assert {{:ok, 1}, _} = timed_eval(name, "import sys; sys.mine = 1; 1")
    os_pid = Server.os_pid(name)
    assert {{:error, %Error{kind: :timeout}}, _} = timed_eval(name, "while True: pass", timeout: 100)
    assert gone?(os_pid)

    assert eventually(fn ->
             match?({{:ok, false}, _}, timed_eval(name, "import sys; hasattr(sys, 'mine')"))
           end)
  end
end
