defmodule Bench.Echo do
  # The references: bare ports, used directly by the process that owns them or through a GenServer, which is the least
  # that several callers of one port need.
  use GenServer

  # A port that does nothing but what every port does.
  def open(command) do
    [program | args] = command(command)

    Port.open({:spawn_executable, program}, [
      {:packet, 4},
      :binary,
      :exit_status,
      :use_stdio,
      :hide,
      {:args, args}
    ])
  end

  defp command(:c), do: [env("BENCH_ECHO")]
  defp command(:c_tuned), do: [env("BENCH_ECHO"), "tuned"]
  defp command(:python), do: [env("PYPORT_PYTHON"), reference("echo.py")]
  defp command(:python_tuned), do: [env("PYPORT_PYTHON"), reference("echo.py"), "tuned"]
  defp command(:flood), do: [env("PYPORT_PYTHON"), reference("flood.py")]
  defp command({:python, code}), do: [env("PYPORT_PYTHON"), "-c", code]

  defp env(name), do: System.fetch_env!(name)
  defp reference(file), do: Path.expand("../reference/#{file}", __DIR__)

  def os_pid(port) when is_port(port), do: port |> Port.info(:os_pid) |> elem(1)
  def os_pid(server), do: GenServer.call(server, :os_pid)

  def close(port) when is_port(port), do: Port.close(port)
  def close(server), do: GenServer.stop(server)

  @doc "There and back, for the process that owns the port."
  def direct(port, data) do
    Port.command(port, data)
    receive do: ({^port, {:data, reply}} -> reply)
  end

  def start(command) do
    {:ok, pid} = GenServer.start_link(__MODULE__, command)
    pid
  end

  def call(server, data), do: GenServer.call(server, {:echo, data}, :infinity)

  @impl true
  def init(command), do: {:ok, {open(command), :queue.new()}}

  @impl true
  def handle_call({:echo, data}, from, {port, waiting}) do
    Port.command(port, data)
    {:noreply, {port, :queue.in(from, waiting)}}
  end

  def handle_call(:os_pid, _from, {port, _waiting} = state), do: {:reply, os_pid(port), state}

  @impl true
  def handle_info({port, {:data, reply}}, {port, waiting}) do
    {{:value, from}, waiting} = :queue.out(waiting)
    GenServer.reply(from, reply)
    {:noreply, {port, waiting}}
  end
end
