defmodule PyPort.Server.AsyncDelivery.LoggingTest do
  # Python's logging in Elixir's Logger, end to end.
  use ExUnit.Case, async: false

  import ExUnit.CaptureIO
  import PyPort.Test.Servers

  require Logger

  @moduletag :capture_log

  setup do
    PyPort.Test.LogTo.attach(self())
  end

  test "a record arrives with level, logger, place and the metadata of the caller" do
    server = start_server()
    Logger.metadata(user: 17)
    code = "import logging\nlogging.getLogger('my.app').warning('%s left', 3)"
    assert {:ok, _} = PyPort.eval(code, %{}, server: server)
    assert_receive {:logged, %{level: :warning, msg: {:string, "3 left"}, meta: meta}}, 5_000
    assert %{logger: "my.app", line: 2, user: 17, request: request} = meta
    assert is_integer(request)
  end

  test "extra fields are metadata where their atoms exist, and text under extra where not" do
    server = start_server()

    fields = %{
      "order_id" => 7,
      "n0 atom of this name" => 1,
      "time" => "noon",
      "pid" => "x",
      "domain" => "shop"
    }

    # The configuration of Logger names it.
    _ = :order_id
    code = "import logging; logging.getLogger('my.app').warning('sold', extra=fields)"
    assert {:ok, _} = PyPort.eval(code, %{fields: fields}, server: server)
    assert_receive {:logged, %{msg: {:string, "sold"}, meta: meta}}, 5_000
    assert %{order_id: 7, logger: "my.app", extra: extra} = meta
    # Handlers rely on the form of these.
    assert is_integer(meta.time) and is_pid(meta.pid)
    assert extra == Map.delete(fields, "order_id")
  end

  test "messages and records arrive in the order in which Python said them" do
    server = start_server()

    code = """
    import logging, port_server
    for n in range(50):
        port_server.send(to, (port_server.Atom("sent"), n))
        logging.error("%d", n)
    """

    assert {:ok, nil} = PyPort.eval(code, %{to: self()}, server: server)

    # Whatever comes next of the two kinds, not whichever fits: the handler sends to this process, too.
    next = fn ->
      receive do
        {:sent, n} -> {:sent, n}
        {:logged, %{level: :error, msg: {:string, text}}} -> {:logged, text}
      after
        5_000 -> :nothing
      end
    end

    said = for _ <- 1..100, do: next.()
    assert said == Enum.flat_map(0..49, &[{:sent, &1}, {:logged, Integer.to_string(&1)}])
  end

  test "levels are those of Elixir" do
    server = start_server()
    code = "import logging\nlog = logging.getLogger('x')\nlog.error('e')\nlog.critical('c')\nlog.info('i')"

    assert {:ok, _} =
             PyPort.eval("import logging; logging.getLogger().setLevel(10)\n" <> code, %{}, server: server)

    structlog = "import structlog\nstructlog.get_logger().critical('sc')\nstructlog.get_logger().fatal('sf')"
    assert {:ok, _} = PyPort.eval(structlog, %{}, server: server)

    for {text, level} <- [
          {"e", :error},
          {"c", :critical},
          {"i", :info},
          {"sc", :critical},
          {"sf", :critical}
        ] do
      assert_receive {:logged, %{level: ^level, msg: {:string, ^text}}}, 5_000
    end
  end

  test "logger: false keeps records in Python" do
    server = start_server(logger: false)
    {:ok, stderr} = StringIO.open("")
    code = "import logging\nlogging.getLogger('my.app').error('not here')"
    assert {:ok, _} = PyPort.eval(code, %{}, server: server, stderr: stderr)
    # Python's own way with records without a handler.
    assert StringIO.contents(stderr) == {"", "not here\n"}
    assert delivered?(server)
    refute_received {:logged, %{msg: {:string, "not here"}}}
  end

  test "what is printed and what is logged keep their own ways" do
    server = start_server()
    code = "import logging\nprint('printed')\nlogging.error('logged')"
    assert capture_io(fn -> PyPort.eval!(code, %{}, server: server) end) == "printed\n"
    assert_receive {:logged, %{msg: {:string, "logged"}}}, 5_000
    refute_received {:logged, %{msg: {:string, "printed"}}}
  end
end
