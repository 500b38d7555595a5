defmodule PyPort.Faults.UnreadableTest do
  # The pipe from Python carries something else than frames. No answer can be told apart from the rest, so the Python ends.
  use ExUnit.Case, async: true

  import PyPort.Test.{Faults, Processes}
  import PyPort.Test.Requests, only: [spawn_eval: 3]

  alias PyPort.{Error, Server, StatusPage}

  @moduletag :tmp_dir

  # Three heartbeats, and the look after them.
  @within 3_000

  # A stray byte makes a frame that never ends, an empty frame, or one that is no term.
  for {name, what, quiet} <- [
        {"a stray byte on the port", PyPort.bytes("x"), false},
        {"a zero byte on the port", PyPort.bytes(<<0>>), true},
        {"a line of text on the port", PyPort.bytes("hello, world\n"), true},
        {"the port's file descriptor replaced", "replaced", false}
      ] do
    test name, %{tmp_dir: dir} do
      options = [within: @within, quiet: unquote(quiet)]
      what = unquote(Macro.escape(what))

      report =
        fault(unquote(name), options, fn server ->
          globals = %{what: what, mark: Path.join(dir, "mark")}
          first = Task.async(fn -> run(server, "port_fd", globals: globals, timeout: 20_000) end)
          assert eventually(fn -> File.exists?(globals.mark) end)
          # These are not answered either, although all of them run.
          behind = for n <- 1..3, do: spawn_eval(server, "n", globals: %{n: n}, timeout: 20_000)
          outcome = Task.await(first, 20_000)
          others = for {other, _ms} <- Task.await_many(behind, 20_000), do: other

          for other <- others do
            case other do
              {:error, %Error{kind: kind, begun: begun}} ->
                # A request that came when the server had gone was never sent.
                assert {kind, begun} in [killed: nil, killed: true, unavailable: false]

              # Asked of the next one.
              {:ok, n} ->
                assert n in 1..3
            end
          end

          outcome
        end)

      assert {:error, %Error{kind: :killed, begun: begun, message: message}} = report.outcome
      # It may still be at it.
      assert begun in [true, nil]
      assert message =~ "could not be read"
      assert report.server == :replaced
    end
  end

  test "a Python that is killed before its lost answers are noticed: no caller gets begun: false",
       %{
         tmp_dir: dir
       } do
    report =
      fault("answers that were lost", [quiet: true, heartbeat_interval: 60_000], fn server ->
        globals = %{what: "replaced", mark: Path.join(dir, "mark")}
        first = Task.async(fn -> run(server, "port_fd", globals: globals, timeout: 20_000) end)
        assert eventually(fn -> File.exists?(globals.mark) end)
        mark = Path.join(dir, "second")
        second = spawn_eval(server, "open(mark, 'w').close()", globals: %{mark: mark}, timeout: 20_000)
        assert eventually(fn -> File.exists?(mark) end)
        # Until the page shows that main is done with it.
        {:ok, %{dir: page_dir}} = server |> Process.whereis() |> PyPort.Registry.fetch()

        assert eventually(fn ->
                 match?(%{running: nil}, page_dir |> StatusPage.path() |> File.read!() |> StatusPage.parse())
               end)

        signal(Server.os_pid(server), "KILL")
        [Task.await(first), second |> Task.await() |> elem(0)]
      end)

    for outcome <- report.outcome, do: assert({:error, %Error{kind: :killed, begun: nil}} = outcome)
  end

  test "a small frame that is no message ends the server at once", %{tmp_dir: dir} do
    report =
      fault(
        "a frame that is no message",
        [within: 1_000, quiet: true, dies: true, heartbeat_interval: 60_000],
        fn server ->
          what = PyPort.bytes(<<5::32, "hello">>)
          run(server, "port_fd", globals: %{what: what, mark: Path.join(dir, "mark")}, timeout: 20_000)
        end
      )

    # Its own answer may have come just behind that frame.
    assert match?({:ok, nil}, report.outcome) or match?({:error, %Error{kind: :killed}}, report.outcome)
    assert report.server == :replaced
  end

  test "a large answer that takes longer than three heartbeats is an answer" do
    report =
      fault("a large answer", [within: 20_000, quiet: true, heartbeat_interval: 20], fn server ->
        size = 200 * 1_048_576
        assert {:ok, data} = PyPort.eval("bytes(size)", %{size: size}, server: server, timeout: 20_000)
        byte_size(data) == size
      end)

    assert report.outcome
    assert report.server == :goes_on
  end

  test "bytes on the port before Python says hello", %{tmp_dir: dir} do
    File.write!(Path.join(dir, "sitecustomize.py"), "import os; os.write(8, b'hello from site\\n')\n")
    name = :"fault_#{System.unique_integer([:positive])}"

    start_supervised!(
      {Server, name: name, env: [{"PYTHONPATH", dir}], heartbeat_interval: 200, init_timeout: 60_000}
    )

    {ms, outcome} = timed(fn -> PyPort.eval("1", %{}, server: name, timeout: 30_000) end)
    assert {:error, %Error{kind: :unavailable, begun: false, message: message}} = outcome
    assert message =~ "first message could not be read"
    assert message =~ "file descriptor 8"

    record_row(
      "bytes on the port before Python says hello",
      "`:unavailable` that says so, `begun: false`",
      "tried again, at growing intervals",
      ms
    )

    assert ms < @within
    assert Process.alive?(Process.whereis(name))
  end
end
