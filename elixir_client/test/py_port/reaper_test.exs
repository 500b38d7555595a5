defmodule PyPort.ReaperTest do
  # Real process groups, real signals: a shell that leads a group, with a child.
  use ExUnit.Case, async: true

  import PyPort.Test.Processes

  alias PyPort.Reaper

  @moduletag :tmp_dir

  test "a group whose owner was killed is gone within a second, children too", %{tmp_dir: tmp_dir} do
    {owner, leader, child} = start_group(tmp_dir)
    Process.exit(owner, :kill)
    assert gone?(leader)
    assert gone?(child)
  end

  test "the directory of a killed owner is removed", %{tmp_dir: tmp_dir} do
    dir = Path.join(tmp_dir, "py_port-with a space")
    File.mkdir!(dir)
    {owner, leader, _child} = start_group(dir)
    Process.exit(owner, :kill)
    assert gone?(leader)
    assert eventually(fn -> not File.exists?(dir) end)
  end

  test "kill/1 ends the group and returns when the signal has been sent", %{tmp_dir: tmp_dir} do
    {owner, leader, child} = start_group(tmp_dir)
    assert :ok = Reaper.kill(owner)
    assert gone?(leader)
    assert gone?(child)
    Process.exit(owner, :kill)
  end

  test "a pid that has found a new user is left alone", %{tmp_dir: tmp_dir} do
    {owner, leader, child} = start_group(tmp_dir, fn start_time -> start_time + 1 end)
    assert :ok = Reaper.kill(owner)
    Process.sleep(50)
    assert alive?(leader)
    assert alive?(child)
    # Told the truth, it ends them.
    Reaper.watch(owner, leader, Reaper.start_time(leader), tmp_dir)
    assert :ok = Reaper.kill(owner)
    assert gone?(leader)
    Process.exit(owner, :kill)
  end

  test "a shell that is killed again and again is replaced, and knows what the one before knew", %{
    tmp_dir: tmp_dir
  } do
    reaper = Process.whereis(Reaper)
    groups = for _ <- 1..3, do: start_group(tmp_dir)

    shell = fn -> Port.info(:sys.get_state(reaper).port, :os_pid) end

    for _ <- 1..10 do
      {:os_pid, os_pid} = before = shell.()
      signal(os_pid, "KILL")
      assert eventually(fn -> shell.() not in [nil, before] end)
    end

    assert Process.whereis(Reaper) == reaper
    {owner, leader, _child} = hd(groups)
    {:os_pid, shell} = shell.()
    # In the midst of a kill as well.
    signal(shell, "STOP")
    killing = Task.async(fn -> Reaper.kill(owner) end)
    assert Task.yield(killing, 100) == nil
    signal(shell, "KILL")
    assert Task.await(killing) == :ok
    assert gone?(leader)

    for {owner, leader, child} <- groups do
      Process.exit(owner, :kill)
      assert gone?(leader)
      assert gone?(child)
    end
  end

  test "a directory is removed with its owner before a Python is started there", %{tmp_dir: tmp_dir} do
    for number <- 1..2 do
      dir = Path.join(tmp_dir, "py_port-#{number}")
      File.mkdir!(dir)
      owner = spawn(fn -> Process.sleep(:infinity) end)
      Reaper.watch(owner, dir)
      # One is killed when it has been seen, one maybe before.
      if number == 1, do: :sys.get_state(Reaper)
      Process.exit(owner, :kill)
      assert eventually(fn -> not File.exists?(dir) end)
    end
  end

  test "start_time/1 of a process that is not there is 0" do
    assert Reaper.start_time(4_194_305) == 0
  end

  defp start_group(dir, start_time \\ & &1) do
    test = self()

    owner =
      spawn(fn ->
        port =
          Port.open({:spawn_executable, "/bin/sh"}, [
            :binary,
            {:line, 64},
            args: ["-c", "sleep 60 & echo $!; wait"]
          ])

        {:os_pid, leader} = Port.info(port, :os_pid)
        Reaper.watch(self(), leader, start_time.(Reaper.start_time(leader)), dir)

        receive do
          {^port, {:data, {:eol, child}}} -> send(test, {:group, leader, String.to_integer(child)})
        end

        Process.sleep(:infinity)
      end)

    assert_receive {:group, leader, child}, 1_000
    assert alive?(leader) and alive?(child)
    {owner, leader, child}
  end
end
