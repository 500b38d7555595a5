defmodule PyPort.Test.Processes do
  # What the tests need to see of the operating system's processes.

  @doc "Whether a process runs; a zombie that waits for its parent does not."
  def alive?(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> not (stat =~ ~r/\) [ZX] /)
      {:error, _reason} -> false
    end
  end

  @doc "Sends a signal, by the shell's own kill: slim images have no other."
  def signal(os_pid, name), do: {_, 0} = System.cmd("sh", ["-c", "kill -#{name} #{os_pid}"])

  def gone?(os_pid), do: eventually(fn -> not alive?(os_pid) end)

  @doc "Waits until `check` holds, for `tries` times 10 ms at most."
  def eventually(check, tries \\ 200) do
    cond do
      check.() -> true
      tries == 0 -> false
      true -> Process.sleep(10) && eventually(check, tries - 1)
    end
  end
end
