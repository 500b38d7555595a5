defmodule PyPort.SessionTest do
  use ExUnit.Case, async: true

  import PyPort.Test.Processes, only: [eventually: 1]
  import PyPort.Test.Servers

  alias PyPort.{Error, Session}

  setup_all do
    start_supervised!({PyPort.Server, name: __MODULE__})
    {:ok, server: __MODULE__}
  end

  test "names stay from one request to the next, and never reach another session", %{server: server} do
    {:ok, one} = PyPort.open_session(server: server)
    {:ok, two} = PyPort.open_session(server: server)
    assert PyPort.eval("x = 1\ndef f(): return x * 10", %{}, session: one) == {:ok, nil}
    assert PyPort.eval("x = 2", %{}, session: two) == {:ok, nil}
    assert PyPort.eval("f() + x", %{}, session: one) == {:ok, 11}
    assert PyPort.eval("x", %{}, session: two) == {:ok, 2}
    assert {:error, %Error{type: "NameError"}} = PyPort.eval("f", %{}, session: two)
    assert {:error, %Error{type: "NameError"}} = PyPort.eval("x", %{}, server: server)
  end

  test "globals of a request stay, too", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)
    assert PyPort.eval("a", %{a: 1}, session: session) == {:ok, 1}
    assert PyPort.eval("a + 1", %{}, session: session) == {:ok, 2}
  end

  test "any process may use a session; it ends with the one that opened it", %{server: server} do
    opener = start_actor()
    {:ok, session} = tell(opener, fn -> PyPort.open_session(server: server) end)
    assert PyPort.eval("x = 1; x", %{}, session: session) == {:ok, 1}
    Process.exit(opener, :kill)
    assert eventually(fn -> match?({:error, _}, PyPort.eval("x", %{}, session: session)) end)
    assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("x", %{}, session: session)
    assert message =~ session.name
  end

  test "a closed session is a clear error; closing it again does no harm", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)
    assert PyPort.close_session(session) == :ok
    assert PyPort.close_session(session) == :ok
    assert {:error, %Error{kind: :unavailable}} = PyPort.eval("1", %{}, session: session)
  end

  test "a session on a server that has ended says so, whatever runs under its name now" do
    server = start_server()
    {:ok, session} = PyPort.open_session(server: server)
    stop_supervised!(server)
    assert {:error, %Error{kind: :unavailable, message: message}} = PyPort.eval("1", %{}, session: session)
    assert message =~ "session"
    assert message =~ "ended"
    assert PyPort.close_session(session) == :ok
  end

  test "a server that is not there cannot open one" do
    assert {:error, %Error{kind: :unavailable}} = PyPort.open_session(server: NoSuchServer)
  end

  test "openers that die while they open one leave nothing behind" do
    server = start_server()

    for _ <- 1..200 do
      pid = spawn(fn -> PyPort.open_session(server: server) end)
      if :rand.uniform(2) == 1, do: :erlang.yield()
      Process.exit(pid, :kill)
    end

    # Rows of the dead are swept on the next heartbeat.
    assert nothing_left?(server)
  end

  test "session: and server: together are a programmer's error", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)

    assert_raise ArgumentError, ~r/a session carries its server/, fn ->
      PyPort.eval("1", %{}, session: session, server: server)
    end

    assert_raise ArgumentError, ~r/must be a session of PyPort.open_session\/1/, fn ->
      PyPort.eval("1", %{}, session: "name")
    end

    assert_raise ArgumentError, ~r/unknown option :session for PyPort.open_session/, fn ->
      PyPort.open_session(session: session)
    end
  end

  test "is inspected in a line" do
    session = %Session{server: self(), name: "7"}
    assert inspect(session) == "#PyPort.Session<7 #{inspect(self())}>"
  end

  describe "with a name and an owner" do
    test "all processes find it by its name, until it ends" do
      name = :"session_#{System.unique_integer([:positive])}"
      {:ok, session} = PyPort.open_session(name: name)
      assert {:ok, nil} = PyPort.eval("x = 1", %{}, session: name)
      ask = fn -> PyPort.eval("x", %{}, session: name) end
      assert ask |> Task.async() |> Task.await() == {:ok, 1}
      assert PyPort.call("builtins:len", [[1]], %{}, session: name) == {:ok, 1}
      assert "yield x" |> PyPort.stream(%{}, session: name) |> Enum.to_list() == [1]

      assert {:error, %PyPort.Error{kind: :unavailable, message: message}} = PyPort.open_session(name: name)
      assert message =~ "is open as #{inspect(name)} already"

      assert PyPort.close_session(name) == :ok
      assert PyPort.close_session(name) == :ok
      assert {:error, %PyPort.Error{kind: :unavailable, message: message}} = ask.()
      assert message =~ "no session is open as #{inspect(name)}"
      assert_raise PyPort.Error, fn -> PyPort.stream("1", %{}, session: name) |> Enum.to_list() end
      assert {:ok, another} = PyPort.open_session(name: name)
      refute another.name == session.name
      PyPort.close_session(another)
      assert_raise ArgumentError, fn -> PyPort.open_session(name: "text") end
    end

    test "a name is free again where the owner has ended before the session had it" do
      name = :"session_#{System.unique_integer([:positive])}"
      {dead, monitor} = spawn_monitor(fn -> :ok end)
      assert_receive {:DOWN, ^monitor, :process, ^dead, _reason}

      for _ <- 1..20 do
        assert {:error, %PyPort.Error{kind: :unavailable}} = PyPort.open_session(name: name, owner: dead)
        assert {:error, %PyPort.Error{}} = PyPort.eval("1", %{}, session: name)
      end

      {:ok, session} = PyPort.open_session(name: name)
      assert PyPort.transfer(name, self()) == :ok
      assert PyPort.close_session(session) == :ok
      assert {:error, %PyPort.Error{kind: :unavailable}} = PyPort.transfer(name, self())
    end

    test "it ends with its owner, which can be another process, and change" do
      holder = fn -> spawn(fn -> receive do: (:end -> :ok) end) end
      [first, second] = [holder.(), holder.()]
      name = :"session_#{System.unique_integer([:positive])}"
      {:ok, session} = PyPort.open_session(owner: first, name: name)
      assert {:ok, nil} = PyPort.eval("x = 1", %{}, session: session)
      assert PyPort.transfer(session, second) == :ok
      send(first, :end)
      assert {:ok, 1} = PyPort.eval("x", %{}, session: session)
      assert {:ok, 1} = PyPort.eval("x", %{}, session: name)
      send(second, :end)

      assert PyPort.Test.Processes.eventually(
               fn -> match?({:error, _gone}, PyPort.eval("x", %{}, session: name)) end,
               200
             )

      assert {:error, %PyPort.Error{kind: :unavailable}} = PyPort.transfer(session, self())
    end
  end
end
