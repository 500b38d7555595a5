defmodule Mix.Tasks.PyPort.TopTest do
  # Another node, and a real task in a VM of its own that looks at it.
  use ExUnit.Case, async: false

  import PyPort.Test.Nodes

  @moduletag timeout: 120_000
  @node_problem with({:error, why} <- PyPort.Test.Nodes.available(), do: why)

  defp top(args) do
    System.cmd("mix", ["py_port.top" | args], stderr_to_stdout: true, env: [{"MIX_ENV", "test"}])
  end

  if @node_problem != :ok, do: @tag(skip: @node_problem)

  test "it shows the servers of the node that was named, once or again and again" do
    there = start_node(config: [pool: [size: 2]])
    on(there, do: {:ok, 1} = PyPort.eval("1"))
    node = Atom.to_string(there.node)
    assert {said, 0} = top(["--node", node, "--cookie", "py_port_tests", "--once"])
    assert said =~ ~r/^SERVER +STATE .* RESTARTS$/m
    assert said =~ ~r/^PyPort.Default\[1\] +(idle|busy|starting) /m
    assert said =~ ~r/^PyPort.Default\[2\] /m
    # Nobody else in the cluster was told.
    assert on(there, do: Node.list()) == []
    assert {said, 1} = top(["--node", node, "--cookie", "another", "--once"])
    assert said =~ "cannot be reached"
    assert said =~ "--cookie"
  end

  test "without a node it shows the project's own servers" do
    Mix.shell(Mix.Shell.Process)
    Mix.Tasks.PyPort.Top.run(["--once"])
    assert_received {:mix_shell, :info, [table]}
    assert table =~ "PyPort.Default"
  after
    Mix.shell(Mix.Shell.IO)
  end

  test "what it does not know is an error that names what it knows" do
    assert_raise Mix.Error, ~r/does not know --nod, y. It takes --node NAME@HOST/, fn ->
      Mix.Tasks.PyPort.Top.run(["--nod", "x", "y"])
    end

    assert_raise Mix.Error, ~r/--interval is a number of seconds/, fn ->
      Mix.Tasks.PyPort.Top.run(["--interval", "0"])
    end

    assert_raise Mix.Error, ~r/written name@host, got: here/, fn ->
      Mix.Tasks.PyPort.Top.run(["--node", "here"])
    end
  end
end
