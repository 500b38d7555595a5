defmodule PyPort.Env.BuildLockTest do
  use ExUnit.Case, async: true

  alias PyPort.Env.BuildLock

  @moduletag :tmp_dir

  setup %{tmp_dir: dir}, do: {:ok, path: Path.join(dir, "default.lock")}

  defp run(path, fun), do: BuildLock.run(path, fn words -> send(self(), {:waiting, words}) end, fun)

  test "gives what the function gives, and leaves nothing", %{path: path, tmp_dir: dir} do
    assert run(path, fn -> File.exists?(path) end)
    assert File.ls!(dir) == []
  end

  test "a function that raises leaves nothing either", %{path: path, tmp_dir: dir} do
    assert_raise RuntimeError, fn -> run(path, fn -> raise "no" end) end
    assert File.ls!(dir) == []
  end

  test "one at a time, however many want to", %{path: path} do
    counter = :counters.new(2, [])

    work = fn ->
      :counters.add(counter, 1, 1)
      assert :counters.get(counter, 1) == 1
      Process.sleep(5)
      :counters.sub(counter, 1, 1)
      :counters.add(counter, 2, 1)
    end

    1..8 |> Enum.map(fn _ -> Task.async(fn -> run(path, work) end) end) |> Task.await_many(30_000)
    assert :counters.get(counter, 2) == 8
  end

  test "whoever waits is told for whom", %{path: path} do
    parent = self()

    holder =
      Task.async(fn ->
        run(path, fn ->
          send(parent, :held)
          assert_receive :enough, 5_000
        end)
      end)

    assert_receive :held, 5_000

    waiting = fn words ->
      send(parent, {:waiting, words})
      send(holder.pid, :enough)
    end

    BuildLock.run(path, waiting, fn -> :ok end)
    assert_received {:waiting, words}
    assert words =~ "process #{System.pid()}"
    Task.await(holder)
  end

  test "a holder that was killed holds nothing: a process of this VM", %{path: path} do
    parent = self()

    {pid, monitor} =
      spawn_monitor(fn ->
        run(path, fn ->
          send(parent, :held)
          Process.sleep(:infinity)
        end)
      end)

    assert_receive :held, 5_000
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}, 5_000
    assert File.exists?(path)
    assert run(path, fn -> :mine end) == :mine
  end

  test "a holder that was killed holds nothing: another process of this machine", %{path: path} do
    {:ok, host} = :inet.gethostname()
    sleeper = Port.open({:spawn_executable, "/bin/sleep"}, [:exit_status, {:args, ["60"]}])
    {:os_pid, pid} = Port.info(sleeper, :os_pid)
    start = PyPort.Reaper.start_time(pid)
    lock = fn pid, start -> Enum.join([host, pid, start, "<0.1.0>", "1"], "\n") end

    assert BuildLock.holder_lives?(lock.(pid, start))
    # The same number, another process.
    refute BuildLock.holder_lives?(lock.(pid, start + 1))
    System.cmd("kill", ["-9", to_string(pid)])
    assert_receive {^sleeper, {:exit_status, _status}}, 5_000
    File.write!(path, lock.(pid, start))
    assert run(path, fn -> :mine end) == :mine
  end

  test "many who find the same stale lock still go one at a time", %{path: path} do
    {:ok, host} = :inet.gethostname()
    File.write!(path, Enum.join([host, "999999999", "1", "<0.1.0>", "1"], "\n"))
    counter = :counters.new(1, [])

    work = fn ->
      :counters.add(counter, 1, 1)
      assert :counters.get(counter, 1) == 1
      Process.sleep(5)
      :counters.sub(counter, 1, 1)
    end

    1..6 |> Enum.map(fn _ -> Task.async(fn -> run(path, work) end) end) |> Task.await_many(30_000)
  end

  test "whoever waits for another host is told what to do if that is gone", %{path: path} do
    File.write!(path, Enum.join(["a-container", "1", "1", "<0.1.0>", "1"], "\n"))
    parent = self()

    waiting = fn words ->
      send(parent, {:waiting, words})
      File.rm!(path)
    end

    assert BuildLock.run(path, waiting, fn -> :mine end) == :mine
    assert_received {:waiting, words}
    assert words =~ "on a-container"
    assert words =~ "#{path}; if that machine or container is gone, remove it"
  end

  test "of another host nothing is known, so it is waited for", %{path: _path} do
    assert BuildLock.holder_lives?("elsewhere\n1\n1\n<0.1.0>\n1")
    assert BuildLock.holder_lives?("")
  end
end
