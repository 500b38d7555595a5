defmodule PyPort.Wire.RawPortTest do
  # The server as a stranger would drive it: Port.open/2, {packet, 4} and term_to_binary/1, nothing of PyPort.
  use ExUnit.Case, async: true

  import PyPort.Test.Processes

  @moduletag :tmp_dir

  setup %{tmp_dir: dir} do
    python = System.get_env("PYPORT_PYTHON") || System.find_executable("python3")
    stderr = Path.join(dir, "stderr")

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        {:packet, 4},
        :binary,
        :exit_status,
        args: ["-c", ~S(exec 2>>"$1"; exec "$0" -m port_server serve), python, stderr],
        env: [{~c"PYTHONPATH", String.to_charlist(Path.join(:code.priv_dir(:py_port), "python"))}]
      ])

    %{port: port, stderr: stderr}
  end

  defp tell(port, term), do: Port.command(port, :erlang.term_to_binary(term))

  defp hear(port) do
    assert_receive {^port, {:data, frame}}, 10_000

    # A heartbeat comes whenever a second has passed.
    with {:heartbeat, %{}} <- :erlang.binary_to_term(frame), do: hear(port)
  end

  test "without init, hello comes once and before the first answer", %{port: port} do
    tell(port, {:eval, "a", %{}, "1 + 1", %{}})
    assert {:hello, 1, %{os_pid: os_pid, python: "3." <> _}} = hear(port)
    assert {:os_pid, ^os_pid} = Port.info(port, :os_pid)
    assert hear(port) == {:ok, "a", 2}
    tell(port, {:call, "b", %{}, "math:sqrt", [9.0], %{}})
    assert hear(port) == {:ok, "b", 3.0}
  end

  test "a version that the server does not speak is refused by name, and it leaves", %{port: port} do
    tell(port, {:init, 99, %{}})
    assert {:goodbye, %{kind: :protocol, message: message}} = hear(port)
    assert message =~ "99"
    assert_receive {^port, {:exit_status, 1}}, 10_000
  end

  test "what cannot be understood is answered where it has an id, and the server goes on", %{port: port} do
    tell(port, {:init, 1, %{}})
    assert {:hello, 1, _info} = hear(port)
    tell(port, {:nonsense, "n", 1, 2})
    assert {:error, "n", %{kind: :protocol, message: message}} = hear(port)
    assert message =~ "nonsense"
    tell(port, {:eval, "w", :not_a_map, "1", %{}})
    assert {:error, "w", %{kind: :protocol}} = hear(port)
    Port.command(port, "this is no External Term Format")
    Port.command(port, "")
    tell(port, {:eval, "e", %{}, "'still here'", %{}})
    assert hear(port) == {:ok, "e", "still here"}
  end

  test "what has no id is told on stderr", %{port: port, stderr: stderr} do
    Port.command(port, "this is no External Term Format")
    tell(port, {:ping, "p"})
    assert {:hello, 1, _info} = hear(port)
    assert {:pong, "p", %{}} = hear(port)
    assert eventually(fn -> File.read!(stderr) =~ "131" end)
  end

  test "a port that is closed ends its Python", %{port: port} do
    tell(port, {:init, 1, %{}})
    assert {:hello, 1, %{os_pid: os_pid}} = hear(port)
    Port.close(port)
    assert gone?(os_pid)
  end

  test "a shutdown is answered by goodbye and exit status 0, after what was asked before", %{port: port} do
    tell(port, {:init, 1, %{}})
    assert {:hello, 1, _info} = hear(port)
    tell(port, {:eval, "last", %{}, "'done'", %{}})
    tell(port, {:shutdown, 1000})
    assert hear(port) == {:ok, "last", "done"}
    assert hear(port) == {:goodbye, :shutdown}
    assert_receive {^port, {:exit_status, 0}}, 10_000
  end
end
