defmodule PyPort.Env.BuildLock do
  # One build of an environment at a time, across every VM of this machine. The lock is a file that appears with its
  # content in one step (a hard link to a file written before) and says who holds it; who has died holds nothing.
  @moduledoc false

  @poll_ms 200

  # Takes over a stale lock under a second lock; whoever died in between held it for microseconds, not for this long.
  @takeover_stale_s 10

  @doc """
  Runs `fun` while no one else does under the same path. Waits as long as the holder lives; `waiting` is called
  once, with words about the holder, if there is anything to wait for.
  """
  @spec run(Path.t(), (String.t() -> term()), (... -> result)) :: result when result: var
  def run(path, waiting, fun) do
    File.mkdir_p!(Path.dirname(path))
    token = take(path, waiting, false)

    try do
      fun.()
    after
      # Only our own: after a take-over in error it is somebody else's.
      if File.read(path) == {:ok, token}, do: File.rm(path)
    end
  end

  defp take(path, waiting, told?) do
    token = token()
    aside = "#{path}.#{System.pid()}-#{System.unique_integer([:positive])}"
    File.write!(aside, token)
    linked = :file.make_link(String.to_charlist(aside), String.to_charlist(path))
    File.rm(aside)

    case linked do
      :ok ->
        token

      {:error, :eexist} ->
        wait(path, waiting, told?)

      # A file system without hard links: the content comes a moment later, and an empty lock counts as held.
      {:error, _unsupported} ->
        case File.open(path, [:write, :exclusive], &IO.binwrite(&1, token)) do
          {:ok, :ok} -> token
          {:error, :eexist} -> wait(path, waiting, told?)
          {:error, reason} -> raise File.Error, reason: reason, action: "create lock", path: path
        end
    end
  end

  defp wait(path, waiting, told?) do
    case File.read(path) do
      {:ok, content} ->
        if holder_lives?(content) do
          unless told?, do: waiting.(words(content, path))
          Process.sleep(@poll_ms)
          take(path, waiting, true)
        else
          take_over(path, content)
          take(path, waiting, told?)
        end

      {:error, _gone} ->
        take(path, waiting, told?)
    end
  end

  # Two who find the same stale lock must not both remove one: the second would remove the first's new lock.
  defp take_over(path, stale) do
    guard = path <> ".takeover"

    case File.mkdir(guard) do
      :ok ->
        if File.read(path) == {:ok, stale}, do: File.rm(path)
        File.rmdir(guard)

      {:error, _taken} ->
        with {:ok, %{mtime: mtime}} <- File.stat(guard, time: :posix),
             true <- System.os_time(:second) - mtime > @takeover_stale_s,
             do: File.rmdir(guard)

        Process.sleep(@poll_ms)
    end
  end

  # host, process id and its start (ids are used again), and within a VM the process.
  defp token do
    pid = System.pid()
    Enum.join([host(), pid, start_of(pid), :erlang.pid_to_list(self()), System.unique_integer()], "\n")
  end

  @doc false
  def holder_lives?(content) do
    case String.split(content, "\n") do
      [host, pid, start, process, _unique] -> lives?(host == host(), pid, start, process)
      _being_written -> true
    end
  end

  # Of another machine on a shared disk, or of another container, nothing can be known.
  defp lives?(false, _pid, _start, _process), do: true

  defp lives?(true, pid, start, process) do
    cond do
      pid == System.pid() -> process |> String.to_charlist() |> :erlang.list_to_pid() |> Process.alive?()
      File.exists?("/proc/self/stat") -> start_of(pid) == start
      true -> process_exists?(pid)
    end
  end

  # When a process began, in the kernel's ticks; "" for one that is not there, or dead and not yet buried.
  defp start_of(pid) do
    with {:ok, stat} <- File.read("/proc/#{pid}/stat"),
         [state | fields] = stat |> String.split(") ") |> List.last() |> String.split(" "),
         true <- state not in ["Z", "X"] do
      Enum.at(fields, 18, "")
    else
      _absent -> ""
    end
  end

  # Systems without /proc.
  defp process_exists?(pid) do
    match?({_said, 0}, System.cmd("/bin/sh", ["-c", "kill -0 #{pid}"], stderr_to_stdout: true))
  end

  defp host do
    {:ok, name} = :inet.gethostname()
    to_string(name)
  end

  defp words(content, path) do
    case String.split(content, "\n") do
      [host, pid | _rest] ->
        where = if host == host(), do: "process #{pid}", else: "process #{pid} on #{host}"

        "Waiting for #{where}, which is building this environment (its lock is #{path}" <>
          if(host == host(), do: ")", else: "; if that machine or container is gone, remove it)")

      _being_written ->
        "Waiting for another build of this environment (its lock is #{path})"
    end
  end
end
