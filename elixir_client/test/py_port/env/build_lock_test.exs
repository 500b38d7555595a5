defmodule PyPort.Env.BuildLockTest do
  # Changes PATH.
  use ExUnit.Case, async: false

  alias PyPort.Env.BuildLock

  @moduletag :tmp_dir

  setup %{tmp_dir: dir}, do: {:ok, path: Path.join(dir, "default.lock")}

  defp run(path, fun), do: BuildLock.run(path, fn words -> send(self(), {:waiting, words}) end, fun)

  test "gives what the function gives, and is free afterwards, also if the function raises", %{path: path} do
    assert run(path, fn -> :mine end) == :mine
    assert_raise RuntimeError, fn -> run(path, fn -> raise "no" end) end
    assert run(path, fn -> :mine end) == :mine
    refute_received {:waiting, _words}
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
    assert run(path, fn -> :mine end) == :mine
  end

  test "a holder that was killed holds nothing: another VM", %{path: path} do
    code =
      "PyPort.Env.BuildLock.run(#{inspect(path)}, &IO.puts/1, fn -> IO.puts(:held); Process.sleep(:infinity) end)"

    elixir = System.find_executable("elixir")
    arguments = ["-pa", to_string(:code.lib_dir(:py_port)) <> "/ebin", "-e", code]
    other = Port.open({:spawn_executable, elixir}, [:binary, :exit_status, line: 80, args: arguments])
    assert_receive {^other, {:data, {:eol, "held"}}}, 30_000
    {:os_pid, pid} = Port.info(other, :os_pid)

    waiting = fn words ->
      assert words =~ "process #{pid}"
      System.cmd("kill", ["-9", to_string(pid)])
    end

    assert BuildLock.run(path, waiting, fn -> :mine end) == :mine
  end

  # As on macOS.
  test "a system without flock uses perl", %{path: path, tmp_dir: dir} do
    was = System.get_env("PATH")
    File.mkdir_p!(Path.join(dir, "bin"))
    for name <- ["cat", "perl"], do: File.ln_s!(System.find_executable(name), Path.join([dir, "bin", name]))
    System.put_env("PATH", Path.join(dir, "bin"))
    on_exit(fn -> System.put_env("PATH", was) end)
    test = self()

    assert run(path, fn ->
             waiting = fn words -> send(test, {:waiting, words}) end
             inner = Task.async(fn -> BuildLock.run(path, waiting, fn -> send(test, :inner) end) end)
             assert_receive {:waiting, _words}, 5_000
             refute_received :inner
             inner
           end)
           |> Task.await() == :inner
  end
end
