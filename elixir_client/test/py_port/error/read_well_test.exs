defmodule PyPort.Error.ReadWellTest do
  # What a person sees of each kind of error: in IEx, as an exception, in Logger, in the report of a process that crashed
  # of it. All of it real, and written down in errors.txt, which is read as a page before it is committed:
  #
  #     PYPORT_WRITE_ERRORS=1 mix test test/py_port/error/read_well_test.exs
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import PyPort.Test.FakePython, only: [fake_python: 1]
  import PyPort.Test.Processes, only: [eventually: 1]

  alias PyPort.{Error, Server}

  @page Path.expand("errors.txt", __DIR__)
  @server Golden
  # Whatever was not heard of by then is no server's.
  @moduletag timeout: 120_000

  @tag :tmp_dir
  @tag :slow
  test "each kind of error says what happened, where, and what to do", %{tmp_dir: dir} do
    Task.Supervisor.start_link(name: Golden.Tasks)
    sections = Enum.map(cases(dir), fn {title, options, ask} -> section(title, options, ask) end)
    kinds = MapSet.new(sections, &elem(&1, 0))
    text = Enum.map_join(sections, "\n", &elem(&1, 1))
    if System.get_env("PYPORT_WRITE_ERRORS"), do: File.write!(@page, text)
    assert text == File.read!(@page)
    # A new kind comes with its page.
    assert MapSet.equal?(kinds, MapSet.new(Error.kinds()))
  end

  test "a thread that has only just begun is not shown, unless it is the one that crashed" do
    crash = ~s{Current thread 0x2 (most recent call first):\n  File "a.py", line 1 in crash}
    begun = "Thread 0x0 (most recent call first):\n  <no Python frame>\n\n"
    message = Exception.message(%Error{kind: :killed, message: "it crashed", stack: begun <> crash})
    assert message =~ "in crash"
    refute message =~ "no Python frame"

    other = ~s{Thread 0x1 (most recent call first):\n  File "a.py", line 1 in f\n\n}
    crash = "Current thread 0x2 (most recent call first):\n  <no Python frame>"
    message = Exception.message(%Error{kind: :killed, message: "it crashed", stack: other <> crash})
    assert message =~ "no Python frame"
  end

  # On a machine that is slow to cancel, the process that would tell of it is ended before.
  defp cancelled_with_its_maker(tries) do
    test = self()
    inner = fn -> send(test, {:inner, eval("while True: pass")}) && nil end
    {:error, %Error{kind: :timeout}} = eval("f()", %{f: inner}, timeout: 500)

    receive do
      {:inner, error} -> error
    after
      1_000 -> if tries > 1, do: cancelled_with_its_maker(tries - 1), else: flunk("no answer")
    end
  end

  defp cases(dir) do
    [
      {"Python raised", [], fn -> eval("def share(total, of):\n    return total / of\n\nshare(1, 0)") end},
      {"Python raised, from another error, with a note", [],
       fn ->
         eval("""
         try:
             {}["key"]
         except KeyError as error:
             error.add_note("the third row")
             raise ValueError("no such column") from error
         """)
       end},
      {"it does not compile", [], fn -> eval("print((1)") end},
      {"no answer in time: it was running", [],
       fn -> eval("def spin():\n    while True: pass\n\nspin()", %{}, timeout: 300) end},
      {"no answer in time: it was waiting for its turn", [],
       fn ->
         task = Task.async(fn -> eval("import time; time.sleep(1.5)") end)
         assert eventually(fn -> hd(PyPort.status(@server)).pending == 1 end)
         error = eval("1", %{}, timeout: 100)
         Task.await(task)
         error
       end},
      {"no answer in time: it did not end when it was told to", [cancel_grace: 100, kill_grace: 1_500],
       fn ->
         monitor = Process.monitor(@server)
         error = eval("sum(range(10**12))", %{}, timeout: 300)
         # The answer does not wait for the kill.
         assert_receive {:DOWN, ^monitor, :process, _pid, _reason}, 10_000
         error
       end},
      {"cancelled, with the request that it was made for", [], fn -> cancelled_with_its_maker(5) end},
      {"the process ended", [],
       fn -> eval("import os, sys; print('bye', file=sys.__stderr__); os._exit(3)") end},
      {"the process was ended by a signal", [],
       fn -> eval("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") end},
      {"the process crashed", [],
       fn -> eval("def crash():\n    import ctypes\n    ctypes.string_at(0)\n\ncrash()") end},
      {"it was stopped", [],
       fn ->
         test = self()
         spawn(fn -> send(test, {:answer, eval("import time; time.sleep(60)")}) end)
         assert eventually(fn -> hd(PyPort.status(@server)).pending == 1 end)
         GenServer.stop(@server)
         assert_receive {:answer, error}, 10_000
         error
       end},
      {"too many are waiting", [max_pending: 1],
       fn ->
         task = Task.async(fn -> eval("import time; time.sleep(0.5)") end)
         assert eventually(fn -> hd(PyPort.status(@server)).pending == 1 end)
         error = eval("1")
         Task.await(task)
         error
       end},
      {"the result contains itself", [], fn -> eval("rows = []; rows.append({'next': rows}); rows") end},
      {"the request is too large", [max_frame_bytes: 10_000],
       fn -> eval("1", %{data: String.duplicate("x", 20_000)}) end},
      {"a binary that is no text", [], fn -> eval("len(rows)", %{rows: [%{name: <<255, 254>>}]}) end},
      {"an atom that this VM has never met", [],
       fn -> eval("from port_server import Atom; Atom('never_' + 'met_before_now')") end},
      {"the two sides do not understand each other", [python: fake_python(dir)],
       fn -> eval("send(A('error'), id, 'nonsense')") end},
      {"no such server", [], fn -> PyPort.eval("1", %{}, server: Goldne) end},
      {"no such Python", [python: "/usr/bin/python9"], fn -> eval("1") end},
      {"init_code fails", [init_code: "import no_such_module"], fn -> eval("1") end},
      {"the object was released", [],
       fn ->
         {:ok, object} = eval("object()", %{}, return: :object)
         PyPort.release(object)
         PyPort.call({object, "__hash__"})
       end},
      {"the session has ended with its server", [],
       fn ->
         {:ok, session} = PyPort.open_session(server: @server)
         GenServer.stop(@server)
         PyPort.eval("1", %{}, session: session)
       end},
      {"the session was closed", [],
       fn ->
         {:ok, session} = PyPort.open_session(server: @server)
         PyPort.close_session(session)
         PyPort.eval("1", %{}, session: session)
       end}
    ]
  end

  defp eval(code, globals \\ %{}, options \\ []) do
    PyPort.eval(code, globals, Keyword.merge([server: @server, timeout: 20_000], options))
  end

  # --- the page -------------------------------------------------------------------------------

  defp section(title, options, ask) do
    {{:error, %Error{} = error}, log} =
      with_log([format: "[$level] $message\n", level: :info, colors: [enabled: false]], fn ->
        {:ok, server} = start(options)
        monitor = Process.monitor(server)
        result = ask.()
        # What it has to say of its end it has said when it has ended.
        if match?({:error, %Error{kind: kind}} when kind in [:exited, :killed], result),
          do: assert_receive({:DOWN, ^monitor, :process, _pid, _reason}, 5_000)

        stop(server)
        result
      end)

    # The report of the supervisor of a pool that was killed with the test before may come late.
    of_others =
      ~r/^\[error\] GenServer #PID\S+ terminating\n\*\* \(stop\) killed\n.*\n.*%DynamicSupervisor.*\n+/m

    log = Regex.replace(of_others, log, "")

    text = """
    ===== #{title} =====

    --- iex> the value
    #{inspect({:error, error}, pretty: true)}

    --- iex> the exception
    #{Exception.format_banner(:error, error)}

    --- Logger
    #{if log == "", do: "(nothing)", else: String.trim(log)}

    --- the report of a process that crashed of it
    #{crash(error)}
    """

    {error.kind, masked(text)}
  end

  # Without a supervisor, so that its end is its end.
  defp start(options) do
    {:ok, server} = GenServer.start(Server, PyPort.Options.server!([name: @server] ++ options), name: @server)
    # A Python that runs, or the reason why none does.
    eval("1")
    {:ok, server}
  end

  defp stop(server) do
    GenServer.stop(server)
  catch
    :exit, _ended -> :ok
  end

  defp crash(error) do
    log =
      capture_log([format: "[$level] $message\n", colors: [enabled: false]], fn ->
        {:ok, pid} = Task.Supervisor.start_child(Golden.Tasks, fn -> raise error end)
        monitor = Process.monitor(pid)
        assert_receive {:DOWN, ^monitor, :process, _pid, _reason}, 5_000
      end)

    # Where it was raised is the test's business.
    log
    |> String.split(~r/^    \(?(py_port .*|elixir .*|test\/.*|stdlib .*)/m)
    |> hd()
    |> String.trim_trailing()
  end

  defp volatile do
    [
      # Where the server itself was is not what the page is about.
      {~r/^ *File "[^"]*port_server\/(server|runtime)\/.*\n/m, ""},
      {~r/^ *File "<string>", line 1 in <module>\n/m, ""},
      # One of its threads that has only just begun.
      {~r/^ *<no Python frame>\n/m, ""},
      {~r/#PID<[\d.]+>/, "#PID<...>"},
      {~r/\(process \d+\)/, "(process ...)"},
      {~r/This is Python [\w.+]+ \([^)]*\)( in no environment of config :py_port, :uv_init)?/,
       "This is Python ... (...)"},
      {~r/0x[0-9a-f]{6,}/, "0x..."},
      {~r/(File ")\/[^"]*\/([^"\/]+", line )\d+/, "\\1.../\\2..."},
      # Marks below a line differ between versions of Python.
      {~r/^ *[~^]+ *\n/m, ""},
      {~r/^ *Extension modules:.*\n/m, ""},
      {~r/goes on \d+ ms/, "goes on ... ms"},
      {~r/in [\d.]+ ms$/m, "in ... ms"},
      {~r/in \d+ ms, and on/, "in ... ms, and on"},
      # How terms are written differs between versions of Erlang.
      {~r/takes \d+ bytes/, "takes ... bytes"},
      {~r/a term of \d+ bytes/, "a term of ... bytes"},
      {~r/ +$/m, ""}
    ]
  end

  defp masked(text),
    do: Enum.reduce(volatile(), text, fn {what, mask}, text -> Regex.replace(what, text, mask) end)
end
