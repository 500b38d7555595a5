defmodule PyPort.Server.Cancellation.CulpritTest do
  # One request keeps others from ending, and the Python is killed for it: all of them are told which one it was.
  use ExUnit.Case, async: true

  # For most of their time these tests wait.
  @moduletag :waits

  import PyPort.Test.{FakePython, LogTo, Requests, Servers}

  alias PyPort.Error

  # The news of a kill has to reach the callers before they give up, also on a machine with other work.
  @cancel_grace 300
  @kill_grace 1_200
  defp start, do: start_server(cancel_grace: @cancel_grace, kill_grace: @kill_grace)

  # The loop is there, so that what is measured is not the import of asyncio.
  defp start_loop(server),
    do: {:ok, nil} = PyPort.eval("await __import__('asyncio').sleep(0)", %{}, server: server)

  for {where, blocker} <- [
        {"a coroutine", "await asyncio.sleep(0)\ntime.sleep(60)"},
        {"a task of its own",
         "async def child(): time.sleep(60)\nasync with asyncio.TaskGroup() as g: g.create_task(child())"},
        {"a busy loop", "await asyncio.sleep(0)\nwhile True: pass"},
        {"a function that is called", :call}
      ] do
    test "one that blocks the event loop is named in every error and in the log: #{where}" do
      attach(self())
      server = start()
      start_loop(server)
      asleep = "import asyncio\nawait asyncio.sleep(60)"
      bystander = begin_eval(server, asleep, timeout: 60_000)
      {culprit, code} = blocker(server, unquote(blocker))
      victim = spawn_eval(server, asleep, timeout: 500)
      main = begin_eval(server, "import time\ntime.sleep(60)", timeout: 60_000)

      assert {{:error, error}, ms} = Task.await(victim, 20_000)
      assert %Error{kind: :timeout, culprit: %{request: number, code: shown}} = error
      assert ms < 500 + @cancel_grace + @kill_grace + 1_000
      assert shown =~ code
      assert is_integer(number)
      text = Exception.message(error)
      assert text =~ "request #{number} kept the event loop from running, so that this one could not go on"
      assert text =~ "asyncio.to_thread"
      assert text =~ code
      assert error.stack =~ "most recent call first"

      assert {{:error, own}, _ms} = Task.await(culprit, 20_000)
      assert %Error{kind: :killed, begun: true, culprit: %{request: ^number}} = own
      assert Exception.message(own) =~ "this request kept the event loop from running"

      for {{:error, error}, _ms} <- Task.await_many([bystander, main], 20_000) do
        assert %Error{kind: :killed, culprit: %{request: ^number, code: ^shown}} = error
        assert Exception.message(error) =~ "request #{number} kept the event loop from running"
        assert error.stack =~ "most recent call first"
      end

      assert logged?("request #{number} kept the event loop from running")
    end
  end

  defp blocker(server, code) when is_binary(code) do
    task = begin_eval(server, "import asyncio, time\n" <> code, timeout: 60_000)
    {task, code |> String.split("\n") |> hd()}
  end

  # Known to give something to await, it is called by the loop itself.
  defp blocker(server, :call) do
    define = """
    import builtins, time
    async def nothing(): pass
    def slow(seconds):
        time.sleep(seconds)
        return nothing()
    builtins.slow = slow
    """

    {:ok, _} = PyPort.eval(define, %{}, server: server)
    {:ok, nil} = PyPort.call("builtins:slow", [0], %{}, server: server)
    main = begin_eval(server, "import time\ntime.sleep(0.2)")
    task = Task.async(fn -> {PyPort.call("builtins:slow", [60], %{}, server: server, timeout: 60_000), 0} end)
    Task.await(main)
    {task, "builtins:slow"}
  end

  test "one that holds the interpreter while others wait there is not taken for one of those" do
    server = start()
    start_loop(server)
    asleep = "import asyncio\nawait asyncio.sleep(60)"
    bystander = begin_eval(server, asleep, timeout: 60_000)

    begin_eval(server, "import asyncio, re\nawait asyncio.sleep(0)\nre.match('(a+)+b', 'a' * 60)",
      timeout: 60_000
    )

    assert {{:error, error}, _ms} = timed_eval(server, asleep, timeout: 500)
    assert %Error{kind: :timeout, culprit: %{request: nil}} = error
    assert Exception.message(error) =~ "the interpreter was held"
    assert error.stack =~ "in match"
    assert {{:error, %Error{kind: :killed} = error}, _ms} = Task.await(bystander)
    assert Exception.message(error) =~ "its interpreter was held"
  end

  test "one that goes on in the main thread is named to those that wait behind it" do
    server = start()
    stubborn = begin_eval(server, "import re\nre.match('(a+)+b', 'a' * 60)", timeout: 300)
    behind = spawn_eval(server, "1", timeout: 60_000)
    assert {{:error, %Error{kind: :timeout, culprit: nil} = error}, _ms} = Task.await(stubborn)
    assert Exception.message(error) =~ "the request was running, and did not end when it was told to"
    assert {{:error, %Error{kind: :killed, begun: false} = error}, _ms} = Task.await(behind)
    assert %{request: number} = error.culprit

    assert Exception.message(error) =~
             "request #{number} went on for more than #{@cancel_grace + @kill_grace} ms"
  end

  @tag :tmp_dir
  test "a pong that arrives while Python is killed does not change the report", %{tmp_dir: dir} do
    server = start_fake(dir, cancel_grace: 50, kill_grace: 100)
    monitor = server |> Process.whereis() |> Process.monitor()
    code = "page(id)\nwhile True:\n    send(A('pong'), id, {A('begun'): True})\n    time.sleep(0.001)"
    assert {{:error, %Error{kind: :timeout, begun: true}}, _ms} = timed_eval(server, code, timeout: 500)
    assert_receive {:DOWN, ^monitor, :process, _pid, {:shutdown, {:python_ended, report, _page}}}, 5_000
    assert %{kind: :killed, culprit: %{request: _number}} = report
  end

  test "a task that only ignores that it is told to end is its own culprit" do
    server = start()
    start_loop(server)

    code = """
    import asyncio
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
    """

    assert {{:error, %Error{kind: :timeout, culprit: nil} = error}, _ms} =
             timed_eval(server, code, timeout: 200)

    assert Exception.message(error) =~ "the request was running, and did not end when it was told to"
  end
end
