defmodule PyPort.Server.Preload do
  # The owner of a pool's template: the Python that runs the code of `preload:` once, and forks the members of the pool. It
  # starts the template when a member asks for it, and looks after it: a template that has ended, does not answer, or has
  # lost its socket is started anew with the next member. Members go on without it.
  #
  # A member's server starts the stub of the template in place of a Python: see port_server/server/preload.py.
  @moduledoc false
  use GenServer

  require Logger

  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{Connection, Error, Reaper, Registry}
  alias PyPort.Server.Launch

  # How long a member's server waits until the template has its socket. The code runs after that.
  @boot_ms 30_000

  # The longest path of a Unix socket that every system takes: 103 bytes on macOS, 107 on Linux.
  @socket_bytes 103

  # The longest line of its output that goes to Logger in one piece.
  @line_bytes 4_096

  # :booting until it has its socket, :loading while the code runs, then :ready; :alone where there is no stub, and the members
  # run the code themselves. A template whose code has run may take `answer_ms` to answer; a fork takes milliseconds.
  defstruct [:pool, :who, :options, :port, :dir, :stub, :timer, phase: :down, waiting: [], answer_ms: 5_000]

  # The program that a member's server starts: the stub, with the path of the socket; or a Python that runs the code itself.
  @type member :: {:stub, stub :: Path.t(), socket :: Path.t()} | {:code, String.t() | PyPort.Code.t()}

  @spec start_link({pid(), map()}) :: GenServer.on_start()
  def start_link({pool, options}), do: GenServer.start_link(__MODULE__, {pool, options})

  @spec member(pid()) :: {:ok, member()} | {:error, Error.t()}
  def member(pool) do
    GenServer.call(Registry.fact(pool, :template), :member, @boot_ms)
  catch
    :exit, {:timeout, _call} ->
      {:error, unavailable("the template of preload: has not begun within #{@boot_ms} ms")}

    :exit, _reason ->
      {:error, unavailable("the template of preload: was stopped while a Python waited for it")}
  end

  # The next member gets another template, which runs the code anew.
  @spec renew(pid()) :: :ok
  def renew(pool) do
    with preload when is_pid(preload) <- Registry.fact(pool, :template), do: GenServer.cast(preload, :renew)
    :ok
  end

  @impl true
  def init({pool, options}) do
    Process.flag(:trap_exit, true)
    Registry.put_fact(pool, :template, self())
    {:ok, %__MODULE__{pool: pool, who: inspect(options.name || pool), options: options}}
  end

  @impl true
  def handle_call(:member, from, %{phase: phase} = state) when phase in [:down, :booting],
    do: {:noreply, launch(%{state | waiting: [from | state.waiting]})}

  def handle_call(:member, _from, %{phase: :alone} = state), do: {:reply, code(state), state}

  def handle_call(:member, from, state) do
    if File.exists?(socket(state)) do
      GenServer.reply(from, {:ok, {:stub, state.stub, socket(state)}})
      {:noreply, ask(state)}
    else
      Logger.warning("PyPort #{state.who}: the socket of the template (preload) is gone, it is started anew")
      {:noreply, launch(%{close(state) | waiting: [from]})}
    end
  end

  @impl true
  def handle_cast(:renew, %{phase: :alone} = state), do: {:noreply, state}
  def handle_cast(:renew, %{waiting: []} = state), do: {:noreply, close(state)}
  def handle_cast(:renew, state), do: {:noreply, launch(close(state))}

  # Whether it answers; while its code runs it cannot.
  defp ask(%{phase: :ready, timer: nil} = state) do
    command(state.port, "?")
    %{state | timer: :erlang.start_timer(state.answer_ms, self(), :answer)}
  end

  defp ask(state), do: state

  # As a message: for a template that has just ended it is no error; that end is the next message.
  defp command(port, data), do: send(port, {self(), {:command, data}})

  @impl true
  def handle_info({port, {:data, {_eol, line}}}, %{port: port} = state), do: {:noreply, line(line, state)}

  def handle_info({port, {:exit_status, status}}, %{port: port} = state),
    do: {:noreply, ended("exit status #{status}", state)}

  # A port that could not write to it ends without an exit status.
  def handle_info({:EXIT, port, reason}, %{port: port} = state),
    do: {:noreply, ended("its standard input (#{inspect(reason)})", state)}

  def handle_info({:timeout, timer, what}, %{timer: timer} = state) do
    why =
      if what == :answer,
        do: "has not answered for #{state.answer_ms} ms",
        else: "was not ready within #{state.options.init_timeout} ms (init_timeout)"

    Logger.error("PyPort #{state.who}: the template (preload) #{why}, it is killed and started anew")
    {:noreply, failed(unavailable("the template of preload: #{why}"), state)}
  end

  def handle_info(_late, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state), do: close(state)

  # --- the template's words ---------------------------------------------------------------------

  defp line(<<0, "listening ", stub::binary>>, %{phase: :booting} = state) do
    state = %{state | phase: :loading, stub: stub}
    answer({:ok, {:stub, stub, socket(state)}}, state)
  end

  defp line(<<0, "stubless ", path::binary>>, %{phase: :booting} = state) do
    Logger.warning(
      "PyPort #{state.who}: #{path} is missing, which is built with the C extensions, so each member runs the code of " <>
        "preload: itself. mix py_port.doctor tells how to get a C compiler"
    )

    state = close(state)
    answer(code(state), %{state | phase: :alone})
  end

  defp line(<<0, "ready", _none::binary>>, state), do: %{stop_timer(state) | phase: :ready}
  defp line(<<0, "alive", _none::binary>>, state), do: stop_timer(state)

  defp line(<<0, "threads ", names::binary>>, state) do
    Logger.warning(
      "PyPort #{state.who}: the code of preload: has left threads, which do not exist in the members: #{names}. Start " <>
        "them in init_code"
    )

    state
  end

  defp line("", state), do: state

  defp line(text, state) do
    if state.options.logger, do: Logger.info("PyPort #{state.who} preload: #{text}")
    state
  end

  defp answer(answer, state) do
    Enum.each(state.waiting, &GenServer.reply(&1, answer))
    %{state | waiting: []}
  end

  defp code(%{options: options}) do
    with {:ok, %{preload: code}} <- Launch.unseal(options), do: {:ok, {:code, code}}
  end

  # --- its process ------------------------------------------------------------------------------

  defp launch(%{phase: :booting} = state), do: state

  defp launch(%{options: options} = state) do
    dir = Launch.new_dir()
    state = %{state | phase: :booting, dir: dir}
    Reaper.watch(self(), dir)

    with {:ok, options} <- Launch.unseal(options),
         :ok <- fits(socket(state)),
         :ok <- File.mkdir(dir),
         :ok <- File.chmod(dir, 0o700),
         {:ok, port, os_pid} <- Launch.open_template(options, @line_bytes) do
      Reaper.watch(self(), os_pid, Reaper.start_time(os_pid), dir)
      config = :erlang.term_to_binary(%{socket: socket(state), code: Launch.code(options.preload)})
      command(port, [<<byte_size(config)::32>>, config])
      timeout = options.init_timeout
      timer = if timeout != :infinity, do: :erlang.start_timer(timeout, self(), :init)
      %{state | port: port, timer: timer}
    else
      {:error, %Error{} = error} ->
        failed(error, state)

      {:error, reason} ->
        failed(unavailable("the directory #{dir} could not be made: #{:file.format_error(reason)}"), state)
    end
  end

  # A code that has failed is reported by the members that have waited for it.
  defp ended(how, state) do
    Logger.warning("PyPort #{state.who}: the template (preload) has ended with #{how}")
    failed(unavailable("the template of preload: ended with #{how}"), state)
  end

  defp failed(error, state), do: answer({:error, error}, close(state))

  # Kills it, and removes what is left of it.
  defp close(state) do
    if state.port do
      Reaper.kill(self())
      Connection.close(state.port)
    end

    if state.dir, do: File.rm_rf(state.dir)

    %{stop_timer(state) | phase: :down, port: nil, dir: nil}
  end

  defp stop_timer(state) do
    if state.timer, do: :erlang.cancel_timer(state.timer)
    %{state | timer: nil}
  end

  defp fits(socket) when byte_size(socket) <= @socket_bytes, do: :ok

  defp fits(socket) do
    {:error,
     unavailable(
       "the template of preload: cannot listen on the socket #{socket}, whose path has #{byte_size(socket)} bytes, and may " <>
         "have #{@socket_bytes}. Set TMPDIR to a directory with a shorter path"
     )}
  end

  defp socket(%{dir: dir}), do: Path.join(dir, "template")
end
