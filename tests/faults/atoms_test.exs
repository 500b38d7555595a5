defmodule PyPort.Faults.AtomsTest do
  # What the BEAM never gives back: atoms. And with them all else that can be counted, with nobody else at work.
  use ExUnit.Case, async: false

  import PyPort.Test.{Faults, Processes}

  alias PyPort.Error

  @moduletag capture_log: true

  defp faults(server) do
    assert {:error, %Error{kind: :killed}} = run(server, "segfault")
    works_again!(server)
    assert {:error, %Error{kind: :exited}} = run(server, "os_exit")
    works_again!(server)
    assert {:error, %Error{kind: :python}} = run(server, "sys_exit")
    assert {:error, %Error{kind: :timeout}} = run(server, "loop", timeout: 100)
    assert {:error, %Error{kind: :timeout}} = run(server, "c_loop", timeout: 100)
    works_again!(server)
    assert {:error, %Error{kind: :decode}} = PyPort.eval(unknown_atom(), %{}, server: server)
    assert {:error, %Error{kind: :python}} = PyPort.eval(new_exception(), %{}, server: server)
    assert {:ok, true} = run(server, "forks")
    assert {:error, %Error{kind: :timeout}} = run(server, "prints", timeout: 100, stdout: sink())
    works_again!(server)
  end

  defp unknown_atom, do: "import os, port_server; port_server.Atom('atom_' + os.urandom(8).hex())"
  defp new_exception, do: "import os; raise type('E' + os.urandom(8).hex(), (Exception,), {})('new')"

  defp sink do
    spawn(fn ->
      receive do
        {:io_request, from, ref, _request} -> send(from, {:io_reply, ref, :ok})
      end
    end)
  end

  defp counts do
    %{
      atoms: :erlang.system_info(:atom_count),
      processes: length(Process.list()),
      ports: length(Port.list()),
      tables: length(:ets.all()),
      terms: :persistent_term.info().count,
      fds: length(File.ls!("/proc/self/fd"))
    }
  end

  test "faults leave no atom, process, port, table or fd: the second time there are as many as after the first" do
    name = :fault_again
    start_supervised!({PyPort.Server, name: name, cancel_grace: 200, kill_grace: 200, logger: false})
    assert {:ok, 1} = PyPort.eval("1", %{}, server: name, timeout: 60_000)
    # Code is loaded on first use, and brings its atoms.
    for _ <- 1..2, do: faults(name)
    first = counts()
    faults(name)

    assert eventually(fn -> Enum.all?(counts(), fn {what, count} -> count <= first[what] end) end),
           inspect({first, counts()})
  end
end
