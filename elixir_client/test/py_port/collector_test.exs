defmodule PyPort.CollectorTest do
  use ExUnit.Case, async: true

  import PyPort.Test.Processes, only: [eventually: 1]
  import PyPort.Test.Requests
  import PyPort.Test.Servers

  alias PyPort.Collector

  # Python forgets what was collected; the heartbeat of `objects` is of a moment ago.
  defp count?(server, count) do
    eventually(fn ->
      :erlang.garbage_collect()

      PyPort.eval!("import gc; len([o for o in gc.get_objects() if type(o).__name__ == 'Kept'])", %{},
        server: server
      ) == count
    end)
  end

  setup do
    %{server: start_server(init_code: "class Kept:\n    def me(self): return self")}
  end

  # In a frame of its own, so that no register of the test holds the handle.
  defp kept(server, options \\ []), do: PyPort.eval!("Kept()", %{}, [server: server] ++ options)

  test "is compiled where there is a compiler" do
    assert Collector.loaded?() == (System.find_executable("cc") != nil)
  end

  if System.find_executable("cc") do
    test "an object is released when nothing refers to its handle", %{server: server} do
      object = kept(server)
      assert is_reference(object.ref)
      assert count?(server, 1)
      assert %PyPort.Object{} = object
      assert count?(server, 0)
    end

    test "wherever it stood in the value, and item by item of a stream", %{server: server} do
      values = PyPort.eval!("[{'a': (Kept(), 1)}, Kept()]", %{}, server: server)
      assert [%{"a" => {%{ref: one}, 1}}, %{ref: two}] = values
      assert is_reference(one) and is_reference(two)
      assert count?(server, 2)
      items = "yield Kept()\nyield Kept()" |> PyPort.stream(%{}, server: server) |> Enum.map(& &1.ref)
      assert Enum.all?([one, two | items], &is_reference/1)
      assert count?(server, 4)
      assert length(values) == 2 and length(items) == 2
      assert count?(server, 0)
    end

    test "a process that has been sent it, and a table, keep it", %{server: server} do
      table = :ets.new(:table, [])
      test = self()

      pid =
        spawn_link(fn ->
          receive do
            {:keep, object} ->
              receive do
                :use -> send(test, {:value, PyPort.call!({object, "me"}, [], %{}, return: :object)})
              end
          end
        end)

      hand = fn ->
        send(pid, {:keep, kept(server)})
        :ets.insert(table, {:object, kept(server)})
      end

      hand.()
      assert count?(server, 2)
      :ets.delete(table, :object)
      assert count?(server, 1)
      send(pid, :use)
      assert_receive {:value, _object}
      assert count?(server, 0)
    end

    test "a request keeps those that it was given, however long it waits", %{server: server} do
      test = self()

      waiting =
        for _ <- 1..5 do
          Task.async(fn ->
            object = kept(server)
            send(test, :made)
            receive(do: (:go -> PyPort.eval!("type(x).__name__", %{x: object}, server: server)))
          end)
        end

      for _ <- waiting, do: assert_receive(:made, 5_000)
      gate = new_gate()
      code = "open(gate + '.begun', 'w').close()\n" <> wait_for(gate)
      task = Task.async(fn -> PyPort.eval(code, %{gate: gate}, server: server) end)
      assert eventually(fn -> File.exists?(gate <> ".begun") end)
      for %{pid: pid} <- waiting, do: send(pid, :go)
      assert eventually(fn -> hd(PyPort.status(server)).pending == 6 end)
      for _ <- 1..3, %{pid: pid} <- waiting, do: :erlang.garbage_collect(pid)
      open_gate(gate)
      assert Task.await_many(waiting) == List.duplicate("Kept", 5)
      assert {:ok, _} = Task.await(task)
    end

    test "a named owner, and one that it was transferred to, keep it", %{server: server} do
      owner = spawn_link(fn -> Process.sleep(:infinity) end)
      assert kept(server, owner: owner).ref == nil
      assert :ok = server |> kept() |> PyPort.transfer(owner)
      for _ <- 1..5, do: :erlang.garbage_collect()
      assert count?(server, 2)
      Process.unlink(owner)
      Process.exit(owner, :kill)
      assert count?(server, 0)
    end

    test "thousands are released together", %{server: server} do
      for _ <- 1..3_000, do: kept(server)
      assert count?(server, 0)
      assert eventually(fn -> held(server) == 0 end)
    end
  end
end
