defmodule PyPort.Faults.NodesTest do
  # The node of a server is stopped. Other tests of nodes stand in test/py_port/remote_test.exs.
  use ExUnit.Case, async: false

  import PyPort.Test.{Faults, Nodes}

  alias PyPort.Error

  case PyPort.Test.Nodes.available() do
    :ok -> @moduletag timeout: 120_000
    {:error, why} -> @moduletag skip: why
  end

  test "the node of the server stopped with SIGSTOP" do
    here = start_node(config: [pool: false])
    there = start_node()
    connect(here, there)
    os_pid = on(there, do: System.pid())
    far = {PyPort.Default, there.node}
    assert on(here, [far: far], do: PyPort.eval("1", %{}, server: far, timeout: 20_000)) == {:ok, 1}
    PyPort.Test.Processes.signal(os_pid, "STOP")

    {ms, outcome} =
      timed(fn -> on(here, [far: far], do: PyPort.eval("1", %{}, server: far, timeout: 400)) end)

    PyPort.Test.Processes.signal(os_pid, "CONT")
    assert {:error, %Error{kind: :timeout, begun: nil}} = outcome
    assert ms < 400 + 2_000
    assert on(here, [far: far], do: PyPort.eval("2", %{}, server: far, timeout: 20_000)) == {:ok, 2}

    record_row(
      "the node of the server stopped with SIGSTOP",
      "`:timeout` on time",
      "goes on, when its node does",
      ms
    )
  end
end
