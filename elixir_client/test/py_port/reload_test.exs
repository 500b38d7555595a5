defmodule PyPort.ReloadTest do
  # In development a request sees the Python files as they are. Another VM, since the setting is of the whole application.
  use ExUnit.Case, async: true

  @moduletag :tmp_dir

  test "a change of a file starts the servers of the pools anew, and says so once", %{tmp_dir: dir} do
    File.mkdir_p!(Path.join(dir, "app/ebin"))
    File.mkdir_p!(Path.join(dir, "app/priv/python/my_pkg"))
    File.write!(Path.join(dir, "app/ebin/app.app"), "{application, app, [{vsn, \"1\"}, {applications, []}]}.")
    module = Path.join(dir, "app/priv/python/my_pkg/__init__.py")
    File.write!(module, "answer = 1\n")

    script = """
    Application.put_env(:py_port, :reload, true)
    Application.put_env(:py_port, :pool, size: 2)
    :ok = Application.load(:app)
    {:ok, _} = Application.ensure_all_started(:py_port)
    answer = fn -> PyPort.call!("importlib:import_module", ["my_pkg"], %{}, return: :object) |> PyPort.getattr("answer") end
    os_pids = fn -> for %{os_pid: pid, draining: nil} <- PyPort.status(), do: pid end
    {:ok, 1} = answer.()
    Process.sleep(150)
    {:ok, 1} = answer.()
    before = os_pids.()
    slow = Task.async(fn -> PyPort.eval("import time; time.sleep(0.5); 5") end)
    # Pools that have just ended are no reason to forget the others.
    {:ok, members} = PyPort.Registry.fetch(Process.whereis(PyPort.Default))
    gone = for _ <- 1..20, do: spawn(fn -> :ok end)
    for pid <- gone, do: PyPort.Registry.put_pool(%{members | pool: pid, manager: pid})
    Process.sleep(150)
    File.write!(#{inspect(module)}, "answer = 22\\n")
    for _ <- 1..8, do: {:ok, 22} = answer.()
    {:ok, 5} = Task.await(slow)
    for pid <- gone, do: PyPort.Registry.delete_pool(pid)
    [] = before -- (before -- os_pids.())
    # A file that is new, and one that is gone, count as well.
    File.write!(#{inspect(Path.join(dir, "app/priv/python/other.py"))}, "")
    Process.sleep(150)
    before = os_pids.()
    {:ok, 22} = answer.()
    [] = before -- (before -- os_pids.())
    IO.puts("done")
    """

    {output, status} =
      System.cmd("elixir", ["-pa", "_build/test/lib/*/ebin", "-pa", Path.join(dir, "app/ebin"), "-e", script],
        stderr_to_stdout: true
      )

    assert status == 0, output
    assert output =~ "done"
    assert [_before, _one, _two] = String.split(output, "changed: the servers of the pools start anew")
    assert output =~ "my_pkg/__init__.py"
  end
end
