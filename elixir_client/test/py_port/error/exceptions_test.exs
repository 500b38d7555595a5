defmodule PyPort.Error.ExceptionsTest do
  # What an exception carries besides its message.
  use ExUnit.Case, async: true

  import PyPort.Test.{Processes, Servers}

  alias PyPort.{Error, Object}

  setup_all do
    %{server: start_server()}
  end

  @own """
  class ApiError(Exception):
      def __init__(self, status, **more):
          super().__init__(f"status {status}")
          self.status = status
          self.__dict__.update(more)
  """

  defp error(server, code, options \\ []) do
    {:error, error} = PyPort.eval(@own <> code, %{}, [server: server] ++ options)
    error
  end

  test "attributes are a map of what has a counterpart", %{server: server} do
    code = """
    from port_server import Atom
    import datetime
    error = ApiError(404, body={"a": [1, float("nan")]}, at=datetime.date(2024, 1, 1), lock=object(),
                     atom=Atom("never_met_" + "before_17"), large="x" * 100_000)
    error.add_note("a note")
    raise error
    """

    assert %Error{kind: :python, message: "status 404", value: nil} = error = error(server, code)
    assert error.attributes == %{"status" => 404, "body" => %{"a" => [1, :nan]}, "at" => ~D[2024-01-01]}
    assert error(server, "1 / 0").attributes == %{}
  end

  test "an attribute that cannot be read or written harms no other", %{server: server} do
    code = """
    class Bad:
        @property
        def __dict__(self): raise RuntimeError
    raise ApiError(1, bad=Bad(), cycle=(c := []) + [c.append(c)], surrogate="\\ud800", ok=2)
    """

    assert error(server, code).attributes == %{"status" => 1, "ok" => 2}
  end

  for threads <- [0, 2] do
    test "the exception itself is an object, on request (threads: #{threads})" do
      server = start_server(threads: unquote(threads))

      assert %Error{value: %Object{} = value} =
               error = error(server, "raise ApiError(404)", error_value: true)

      assert error.message == "status 404"
      assert PyPort.eval!("e.status + 1", %{e: value}, server: server) == 405
      assert held(server) > 0
      PyPort.release(value)
      assert eventually(fn -> held(server) == 0 end)

      assert %Error{value: %Object{}} =
               error(server, "await __import__('asyncio').sleep(0)\n1 / 0", error_value: true)

      assert %Error{value: nil} = error(server, "1 / 0")

      assert %Error{kind: :decode, value: nil} =
               elem(PyPort.eval("1", %{x: <<255>>}, server: server, error_value: true), 1)
    end
  end

  test "it belongs to the owner that was named, and the option is not for streams", %{server: server} do
    owner = spawn(fn -> receive do: (:end -> :ok) end)
    assert %Error{value: value} = error(server, "raise ApiError(1)", error_value: true, owner: owner)
    assert holds?(server, owner)
    send(owner, :end)
    assert eventually(fn -> match?({:error, _gone}, PyPort.eval("e", %{e: value}, server: server)) end)
    assert_raise ArgumentError, ~r/:error_value/, fn -> PyPort.stream("[1]", %{}, error_value: true) end
  end

  test "a group reads as Python prints it", %{server: server} do
    {:ok, session} = PyPort.open_session(server: server)

    setup = """
    import traceback
    def fail():
        errors = []
        for code in ("1 / 0", "{}['k']"):
            try: eval(code)
            except Exception as error: errors.append(error)
        try: raise ValueError("cause")
        except ValueError as cause:
            raise ExceptionGroup("many", [*errors, ExceptionGroup("inner", errors[:1])]) from cause
    def printed():
        try: fail()
        except Exception as error: return "".join(traceback.format_exception(error))
    """

    PyPort.eval!(setup, %{}, session: session)
    printed = PyPort.eval!("printed()", %{}, session: session)
    assert {:error, error} = PyPort.eval("fail()", %{}, session: session)
    assert %Error{type: "ExceptionGroup", message: "many (3 sub-exceptions)"} = error
    assert below_the_caller(error.traceback) == below_the_caller(printed)
    assert Exception.message(error) =~ "| ZeroDivisionError: division by zero"
    assert Exception.message(error) =~ "+-+---------------- 1 ----------------"
  end

  # Below the frame of the code that calls `fail`.
  defp below_the_caller(traceback), do: traceback |> String.split("in fail\n") |> Enum.drop(2)
end
