defmodule PyPort.CastTest do
  # A call without an answer: in order, logged where it fails, and its caller's in all that it does.
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias PyPort.{Error, Server}

  setup do
    %{
      server:
        start_supervised!(
          {Server, name: :"cast_#{System.unique_integer([:positive])}", wait: true, max_frame_bytes: 100_000}
        )
    }
  end

  test "casts of one caller run in their order, and before a later call", %{server: server} do
    {:ok, nil} = PyPort.eval("import sys; sys.cast_seen = []", %{}, server: server)
    seen = PyPort.eval!("import sys; sys.cast_seen", %{}, server: server, return: :object)
    for n <- 1..200, do: assert(PyPort.cast({seen, "append"}, [n]) == :ok)

    assert PyPort.eval!("import sys; sys.cast_seen", %{}, server: server) == Enum.to_list(1..200)
  end

  test "it does not wait, and outlives its caller", %{server: server} do
    test = self()
    {us, :ok} = :timer.tc(fn -> PyPort.cast("time:sleep", [0.3], %{}, server: server) end)
    assert us < 250_000

    {pid, monitor} =
      spawn_monitor(fn ->
        :ok = PyPort.cast("builtins:max", [[1, 2], fn -> 0 end], %{}, server: server)
        send(test, :sent)
      end)

    assert_receive :sent, 5_000
    assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}
    assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
  end

  test "a failure is logged with the metadata of the caller", %{server: server} do
    log =
      capture_log([metadata: [:cast_test]], fn ->
        Logger.metadata(cast_test: "of mine")
        assert PyPort.cast("math:sqrt", [-1], %{}, server: server) == :ok
        assert PyPort.eval("1", %{}, server: server) == {:ok, 1}
        Process.sleep(50)
      end)

    assert log =~ ~s(the cast of "math:sqrt" has failed)
    assert log =~ "ValueError"
    assert log =~ "cast_test=of mine"
  end

  test "an error before it is sent is the caller's, and not logged", %{server: server} do
    log =
      capture_log(fn ->
        assert {:error, %Error{kind: :unavailable}} =
                 PyPort.cast("math:sqrt", [1], %{}, server: :no_such_server)

        assert {:error, %Error{kind: :encode}} =
                 PyPort.cast("math:sqrt", [String.duplicate("x", 200_000)], %{}, server: server)

        assert {:error, %Error{kind: :unavailable}} =
                 PyPort.cast("math:sqrt", [1], %{}, session: :no_such_session)

        assert_raise ArgumentError, fn -> PyPort.cast("math:sqrt", [1], %{}, return: :object) end

        assert_raise ArgumentError, fn ->
          PyPort.cast("math:sqrt", [1], %{}, server: spawn(fn -> Process.sleep(5_000) end))
        end
      end)

    refute log =~ "the cast of"
  end
end
