defmodule PyPort.Env.BuildLock do
  # One build of an environment at a time, across every VM of this machine. The kernel holds the lock (flock(2)) for a
  # shell that ends with the port, so a builder that was killed holds nothing, however it died.
  @moduledoc false

  # macOS has no flock(1), but perl. The lock belongs to the open file, which the shell keeps after perl has ended.
  @shell ~S"""
  exec 9>>"$1"
  lock() { flock "$@" 9 2>/dev/null; }
  command -v flock >/dev/null || lock() { perl -e 'open F, ">&=9"; exit !flock F, $#ARGV < 0 ? 2 : 6' -- "$@"; }
  lock -n || { echo wait; lock; }
  echo "$2" >"$1"
  echo run
  read -r _
  """

  @doc """
  Runs `fun` while no other process does so under the same path. `waiting` is called once, with a sentence about the
  holder, if there is one to wait for.
  """
  @spec run(Path.t(), waiting :: (String.t() -> term()), (... -> result)) :: result when result: var
  def run(path, waiting, fun) do
    File.mkdir_p!(Path.dirname(path))
    File.touch!(path)
    arguments = ["-c", @shell, "sh", path, System.pid()]
    port = Port.open({:spawn_executable, "/bin/sh"}, [:binary, :exit_status, line: 80, args: arguments])

    await(port, path, waiting)

    try do
      fun.()
    after
      # The next caller finds it free.
      if Port.info(port) do
        Port.command(port, "\n")

        receive do
          {^port, {:exit_status, _status}} -> :ok
        end
      end
    end
  end

  defp await(port, path, waiting) do
    receive do
      {^port, {:data, {:eol, "wait"}}} ->
        holder = path |> File.read!() |> String.trim()
        waiting.("Waiting for process #{holder}, which is building this environment (its lock is #{path})")
        await(port, path, waiting)

      {^port, {:data, {:eol, "run"}}} ->
        :ok

      {^port, {:exit_status, status}} ->
        raise File.Error, reason: :eio, action: "lock (its shell ended with status #{status})", path: path
    end
  end
end
