defmodule PyPort.CallbacksTest do
  # The client's half of calls into the BEAM, against a Python that is told what to call.
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO
  import PyPort.Test.{FakePython, Processes, Servers}

  alias PyPort.Error

  @moduletag :tmp_dir

  # Calls, and answers with all that was answered. The functions 0 and 1 are the globals f and g.
  @prelude """
  def invoke(function, args, number=1, ids=None, id=id):
      if function in (0, 1):
          function = globals_[A("fg"[function])]["index"]
      call_id = number.to_bytes(8, "big")
      send(A("invoke"), id, call_id, function, args, *([ids] if ids else []))
      return call_id

  def answer():
      message = recv()
      assert message[0] == "answer", message
      return message

  def text(value):
      if isinstance(value, bytes): return value
      if isinstance(value, dict): return {text(k): text(v) for k, v in value.items()}
      if isinstance(value, (list, tuple)): return [text(v) for v in value]
      return str(value).encode() if isinstance(value, str) else value
  """

  defp eval(server, code, globals, options \\ []),
    do: PyPort.eval(@prelude <> code, globals, [server: server] ++ options)

  # The outcome of one call, as the server saw it: ["ok", value] or ["error", map].
  defp call(server, function, args, globals \\ %{}) do
    code = "invoke(#{function}, #{args}); send(A('ok'), id, text(answer()[2]))"
    {:ok, outcome} = eval(server, code, globals)
    outcome
  end

  # A function that says who runs it, and never answers.
  defp hang(test) do
    fn ->
      send(test, {:worker, self()})
      Process.sleep(:infinity)
    end
  end

  test "functions among the top-level values are called by their place", %{tmp_dir: dir} do
    server = start_fake(dir)
    assert call(server, "globals_['f']['index']" |> field(), "[20]", %{f: &(&1 + 1)}) == ["ok", 21]

    code = """
    index = #{field("globals_['f']['index']")}
    invoke(#{field("globals_['g']['index']")}, [b"x", {b"k": [1.5]}])
    send(A("ok"), id, [text(answer()[2]), #{field("globals_['g']['arity']")}])
    """

    assert {:ok, [["ok", ["x", %{"k" => [1.5]}]], 2]} = eval(server, code, %{f: fn -> 1 end, g: &[&1, &2]})
  end

  test "exceptions, exits, throws and crashes of a call are told with their stack, and harm no other", %{
    tmp_dir: dir
  } do
    server = start_fake(dir)

    assert [
             "error",
             %{"kind" => "error", "type" => "ArgumentError", "message" => "bad", "stacktrace" => stack}
           ] = call(server, "0", "[]", %{f: fn -> raise(ArgumentError, "bad") end, g: [1]})

    assert stack =~ "callbacks_test.exs"
    refute stack =~ "lib/py_port/callbacks.ex"

    for {fun, kind, message} <- [
          {fn -> exit(:gone) end, "exit", ":gone"},
          {fn -> throw(:ball) end, "throw", ":ball"},
          {fn -> Process.exit(self(), :kill) end, "exit", "killed"},
          {fn -> exit(:normal) end, "exit", "normal"},
          {fn -> Process.exit(self(), :normal) end, "exit", "normal"},
          {fn _one -> 1 end, "error", "arity"}
        ] do
      assert ["error", %{"kind" => ^kind, "message" => text}] = call(server, "0", "[]", %{f: fun})
      assert text =~ message
    end

    assert call(server, "0", "[]", %{f: fn -> :fine end}) == ["ok", "fine"]
    assert nothing_left?(server)
  end

  test "a call runs in a process of its own that has the caller's group leader and callers", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()

    output =
      capture_io(fn ->
        call(server, "0", "[]", %{
          f: fn ->
            IO.write("from the call")
            send(test, {:worker, self(), Process.get(:"$callers"), Logger.metadata()})
          end
        })
      end)

    assert output == "from the call"
    assert_received {:worker, worker, [caller | _], _metadata}
    assert caller == test
    assert worker != test
  end

  test "requests made by a call, and by its tasks, say which call they belong to", %{tmp_dir: dir} do
    server = start_fake(dir)
    # The nested requests come while the outer one runs: it answers each with the parent that it names.
    code = """
    invoke(0, [], number=77)
    parents = []
    while len(parents) < 2:
        message = recv()
        parents.append(message[2].get("parent"))
        send(A("ok"), message[1], None)
    send(A("ok"), id, parents + [answer()[1]])
    """

    fun = fn ->
      PyPort.eval!("nested", %{}, server: server)
      Task.await(Task.async(fn -> PyPort.eval!("nested, too", %{}, server: server) end))
    end

    assert {:ok, [<<77::64>>, <<77::64>>, <<77::64>>]} = eval(server, code, %{f: fun})
    # Outside of any call there is no parent.
    code = "send(A('ok'), id, opts.get('parent'))"
    assert {:ok, nil} = eval(server, code, %{})
    assert {:ok, nil} = Task.await(Task.async(fn -> eval(server, code, %{}) end))
  end

  test "calls of one request run at the same time", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()

    code = """
    for n in range(3): invoke(0, [n], number=n)
    send(A("ok"), id, sorted(answer()[2][1] for _ in range(3)))
    """

    meet = fn n ->
      send(test, {:here, self()})
      receive(do: (:go -> n))
    end

    task = Task.async(fn -> eval(server, code, %{f: meet}) end)
    workers = for _ <- 1..3, do: assert_receive({:here, _worker}, 5_000) |> elem(1)
    Enum.each(workers, &send(&1, :go))
    assert Task.await(task) == {:ok, [0, 1, 2]}
  end

  test "a caller that dies takes its calls along, and Python is told", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()

    code =
      "invoke(0, []); globals_; import os; open(#{inspect(Path.join(dir, "told"))}, 'w').write(repr(answer()))\n" <>
        "send(A('ok'), id, None)"

    hang = hang(test)

    caller = spawn(fn -> eval(server, code, %{f: hang}, timeout: :infinity) end)
    assert_receive {:worker, worker}, 5_000
    Process.exit(caller, :kill)
    assert eventually(fn -> not Process.alive?(worker) end)
    assert eventually(fn -> match?({:ok, <<_, _::binary>>}, File.read(Path.join(dir, "told"))) end)
    assert File.read!(Path.join(dir, "told")) =~ "noproc"
    assert nothing_left?(server)
  end

  test "a call that never answers is the caller's timeout, and is ended with it", %{tmp_dir: dir} do
    server = start_fake(dir)
    hang = hang(self())

    code = """
    invoke(0, [])
    while recv()[0] != "cancel": pass
    send(A("error"), id, {A("kind"): A("cancelled"), A("message"): "cancelled", A("begun"): True})
    """

    assert {:error, %Error{kind: :timeout}} = eval(server, code, %{f: hang}, timeout: 700)
    assert_received {:worker, worker}
    assert eventually(fn -> not Process.alive?(worker) end)
    assert nothing_left?(server)
  end

  test "a call that still runs when its request has its answer is ended", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()
    hang = hang(test)

    # The second call is answered when the first one runs.
    code = "invoke(0, [], 1); invoke(1, [], 2); answer(); send(A('ok'), id, None)"

    first_runs = fn ->
      send(test, {:waiting, self()})
      receive do: (:go -> :ok)
    end

    task = Task.async(fn -> eval(server, code, %{f: hang, g: first_runs}) end)
    assert_receive {:worker, worker}, 5_000
    assert_receive {:waiting, other}, 5_000
    send(other, :go)
    assert {:ok, nil} = Task.await(task)
    assert eventually(fn -> not Process.alive?(worker) end)
    assert nothing_left?(server)
  end

  test "calls end with their server, however it ends", %{tmp_dir: dir} do
    hang = hang(self())

    for {ending, n} <- Enum.with_index([&Process.exit(&1, :kill), &GenServer.stop/1]) do
      home = Path.join(dir, "#{n}")
      File.mkdir_p!(home)
      server = start_fake(home)
      caller = Task.async(fn -> eval(server, "invoke(0, []); answer()", %{f: hang}) end)
      assert_receive {:worker, worker}, 5_000
      server |> Process.whereis() |> ending.()
      assert {:error, %Error{}} = Task.await(caller)
      assert eventually(fn -> not Process.alive?(worker) end)
    end
  end

  test "objects of a call that is stopped before it has looked at them are released", %{tmp_dir: dir} do
    server = start_fake(dir)
    marker = Path.expand("released", dir)

    # To read so many takes a while, in which the request ends.
    code = """
    invoke(0, [list(range(300_000))], ids=[7])
    send(A("ok"), id, 1)
    while (message := recv())[0] != "release": pass
    assert message[1] == [7], message
    open(#{inspect(marker)}, "w")
    """

    assert {:ok, 1} = eval(server, code, %{f: fn _numbers -> 1 end})
    assert eventually(fn -> File.exists?(marker) end)
    assert nothing_left?(server)
  end

  test "a worker that is killed harms neither its server nor other calls", %{tmp_dir: dir} do
    server = start_fake(dir)

    assert ["error", %{"kind" => "exit", "message" => message}] =
             call(server, 0, "[]", %{f: fn -> Process.exit(self(), :kill) end})

    assert message =~ "killed"
    assert ["ok", 2] = call(server, 0, "[1]", %{f: &(&1 + 1)})
    assert nothing_left?(server)
  end

  test "a call of a request that is over is answered, and not run", %{tmp_dir: dir} do
    server = start_fake(dir)

    code = """
    send(A("ok"), id, None)
    invoke(0, [])
    # Which of them is first is left open: the answer, or the next request.
    messages = {m[0]: m for m in (recv(), recv())}
    send(A("ok"), messages["eval"][1], text(messages["answer"][2]))
    """

    assert {:ok, nil} = eval(server, code, %{f: fn -> flunk("called") end})

    assert {:ok, ["error", %{"kind" => "noproc", "message" => message}]} =
             PyPort.eval("what was told", %{}, server: server)

    assert message =~ "over"
  end

  test "by name only what the server was told to allow can be called", %{tmp_dir: dir} do
    server = start_fake(dir, allow: [{Enum, :sum, 1}, {String, :upcase}, Integer])
    assert call(server, "(b'Elixir.Enum', b'sum')", "[[1, 2, 3]]") == ["ok", 6]
    assert call(server, "(b'Enum', b'sum')", "[[1, 2, 3]]") == ["ok", 6]
    assert call(server, "(b'Elixir.String', b'upcase')", "[b'a']") == ["ok", "A"]
    assert call(server, "(b'Elixir.String', b'upcase')", "[b'a', A('ascii')]") == ["ok", "A"]
    assert call(server, "(b'Elixir.Integer', b'digits')", "[12]") == ["ok", [1, 2]]

    for {function, args} <- [
          {"(b'Elixir.Enum', b'sum')", "[[1], 2]"},
          {"(b'Elixir.Enum', b'map')", "[[1]]"},
          {"(b'Elixir.System', b'halt')", "[0]"},
          {"(b'erlang', b'halt')", "[]"},
          {"(b'never_heard_of', b'it_either')", "[]"},
          {"17", "[]"},
          {"A('f')", "[]"}
        ] do
      assert ["error", %{"kind" => "refused", "message" => message}] = call(server, function, args)
      assert message =~ "allow" or message =~ "function"
    end

    assert nothing_left?(server)
  end

  test "calls outside any request are served, too", %{tmp_dir: dir} do
    server = start_fake(dir, allow: [{Enum, :sum, 1}])

    code = """
    invoke((b"Elixir.Enum", b"sum"), [[1, 2]], id=b"")
    send(A("ok"), id, text(answer()[2]))
    """

    assert eval(server, code, %{}) == {:ok, ["ok", 3]}
    assert eval(server, code, %{}) == {:ok, ["ok", 3]}
  end

  test "handles among the arguments live as long as the call", %{tmp_dir: dir} do
    server = start_fake(dir)
    test = self()

    code = """
    handle = {A("__struct__"): A("Elixir.PyPort.Object"), A("server"): None, A("token"): b"", A("id"): 7,
              A("type"): b"T", A("repr"): b""}
    invoke(0, [handle], ids=[7])
    messages = [recv(), recv()]
    send(A("ok"), id, [text(message) for message in messages])
    """

    assert {:ok, [["answer", _, ["ok", "kept"]], ["release", [7]]]} =
             eval(server, code, %{
               f: fn object ->
                 send(test, object)
                 :kept
               end
             })

    assert_received %PyPort.Object{id: 7}
    assert nothing_left?(server)
  end

  test "an argument that cannot be read is an error in Python", %{tmp_dir: dir} do
    server = start_fake(dir)
    name = "never_met_#{System.unique_integer([:positive])}"

    assert ["error", %{"message" => message}] =
             call(server, "0", "[A('#{name}')]", %{f: fn _atom -> flunk("called") end})

    assert message =~ "atom"
  end

  # Keys of the fake's maps are atoms; as bytes they are compared like str.
  defp field(path), do: path |> String.replace("['f']", "[A('f')]") |> String.replace("['g']", "[A('g')]")
end
