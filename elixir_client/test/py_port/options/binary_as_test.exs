defmodule PyPort.BinaryAsTest do
  use ExUnit.Case, async: true

  import PyPort.Test.Servers

  @kinds "[type(x).__name__ for x in [b, *d, *d.values()]]"

  test "of a server, for each request that does not say otherwise" do
    server = start_server(binary_as: :bytes, allow: [{String, :upcase, 1}])
    globals = %{b: "a", d: %{"k" => <<255>>}}
    assert PyPort.eval!(@kinds, globals, server: server) == ~w[bytes bytes bytes]
    assert PyPort.eval!("b", globals, server: server, timeout: :infinity) == "a"

    assert PyPort.eval!(@kinds, %{b: "a", d: %{"k" => "v"}}, server: server, binary_as: :str) ==
             ~w[str str str]

    assert PyPort.call!("builtins:repr", ["a"], %{}, server: server) == "b'a'"
    assert Enum.to_list(PyPort.stream("[type(b).__name__]", %{b: "a"}, server: server)) == ["bytes"]

    {:ok, session} = PyPort.open_session(server: server)
    assert PyPort.eval!("repr(b)", %{b: "a"}, session: session) == "b'a'"

    called = "import port_server; repr(port_server.call('String', 'upcase', [b]))"
    assert PyPort.eval!(called, %{b: "a"}, server: server) == "b'A'"
    assert PyPort.eval!("repr(f('x'))", %{f: & &1}, server: server) == "b'x'"
  end

  test "of a pool, for its servers" do
    pool = start_supervised!({PyPort.Pool, size: 1, binary_as: :bytes})
    assert PyPort.eval!("repr(b)", %{b: "a"}, server: pool) == "b'a'"
    assert PyPort.eval!("repr(b)", %{b: "a"}, server: pool, binary_as: :str) == "'a'"
  end

  test "another value is refused" do
    assert_raise ArgumentError, ~r/option :binary_as must be :str or :bytes, got: :text/, fn ->
      PyPort.Server.start_link(binary_as: :text)
    end
  end
end
