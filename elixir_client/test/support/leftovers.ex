defmodule PyPort.Test.Leftovers do
  # Files in /dev/shm and in /tmp that only an orderly end of Python removes: by its `atexit` functions, and by the process
  # that multiprocessing has for that.
  import ExUnit.Assertions
  import ExUnit.Callbacks, only: [on_exit: 1]

  @code """
  import atexit, multiprocessing, sys, tempfile
  from multiprocessing.shared_memory import SharedMemory
  memory = SharedMemory(create=True, size=1000)
  lock = multiprocessing.get_context("spawn").Lock()
  directory = tempfile.TemporaryDirectory()
  sys.kept = memory, lock, directory
  atexit.register(lambda: open(ended, "w").close())
  ["/dev/shm/" + memory.name, "/dev/shm/sem." + lock._semlock.name[1:], directory.name]
  """

  @doc "Has it leave some; gives the file that its `atexit` function makes, and those that are to be removed."
  def leave_things(eval) do
    ended =
      Path.join(System.tmp_dir!(), "py_port_ended_#{System.pid()}_#{System.unique_integer([:positive])}")

    {:ok, files} = eval.(@code, %{ended: ended})
    on_exit(fn -> Enum.each([ended | files], &File.rm_rf/1) end)
    assert Enum.all?(files, &File.exists?/1)
    {ended, files}
  end
end
