defmodule PyPort.SyntaxCheck do
  # Checks Python source in an Elixir file before it runs: whether it compiles, and which names it uses. The sigils ask while
  # a module compiles, or a line of IEx is expanded.
  #
  # It asks the interpreter in which the default pool would run, in a process of its own that imports the compiler of
  # snippets only: one for a whole compilation, started by the first sigil and ended when it has been idle for a while. If
  # no interpreter is at hand (the environment is not built yet), the source is not checked, and that is no error.
  # Rejected: a tokenizer in Elixir (Python's grammar decides which names are bound, and that grows with each version), and
  # to ask a running server (none runs while a project compiles, and otherwise it may be busy).
  @moduledoc false
  use GenServer

  alias PyPort.Env
  alias PyPort.Pool.Default

  @boot "import sys; sys.path += sys.argv[1:]; from port_server.cli import syntax_check; syntax_check.main(7, 8)"

  # Frames go over fds 7 and 8, as in PyPort.Server.Launch: a Python that prints while it starts does not disturb them.
  # Tracebacks of a Python that cannot do this are dropped.
  @shell ~S(exec "$@" 7<&0 8>&1 </dev/null >/dev/null 2>&1)

  # A crowded machine has answered by then; a compilation must not wait for ever.
  @answer_ms 10_000

  # A compilation seldom pauses for longer between two sigils; the idle process takes 12 MiB.
  @idle_ms 60_000

  @type names :: %{bound: [String.t()], deleted: [String.t()], read: [String.t()]}
  @type problem :: %{
          line: non_neg_integer(),
          column: non_neg_integer(),
          end_column: non_neg_integer(),
          message: String.t(),
          python: String.t()
        }
  @type answer :: {:ok, names()} | {:error, problem()} | {:unknown, why :: String.t()}

  # Python's answer for `source`.
  @spec of(String.t()) :: answer()
  def of(source) do
    # Two who need it first both start it; one of them finds it started.
    with {:error, {:already_started, pid}} <- GenServer.start(__MODULE__, nil, name: __MODULE__),
         do: {:ok, pid}

    GenServer.call(__MODULE__, {:of, source}, :infinity)
  catch
    # It had just been idle for too long.
    :exit, {reason, _call} when reason in [:normal, :noproc] -> of(source)
  end

  # The same for the source from `line` of a file on: a syntax error is an error of the file.
  @spec of!(String.t(), Path.t(), pos_integer()) :: {:ok, names()} | {:unknown, why :: String.t()}
  def of!(source, file, line) do
    case of(source) do
      {:error, problem} ->
        raise CompileError,
          file: file,
          line: line + max(problem.line - 1, 0),
          description: describe(problem, source)

      names_or_unknown ->
        names_or_unknown
    end
  end

  defp describe(%{message: message, python: python} = problem, source) do
    "Python #{python} cannot read this: #{message}" <> quoted(problem, source)
  end

  defp quoted(%{line: 0}, _source), do: ""

  defp quoted(%{line: line, column: column, end_column: end_column}, source) do
    case source |> String.split("\n") |> Enum.at(line - 1) do
      text when is_binary(text) and column > 0 ->
        marks = String.duplicate("^", max(end_column - column, 1))
        "\n\n    #{text}\n    #{String.duplicate(" ", column - 1)}#{marks}"

      _beyond ->
        ""
    end
  end

  # --- the process ----------------------------------------------------------------------------

  @impl true
  def init(nil) do
    Process.flag(:trap_exit, true)

    # pythons: path -> {port, version} | :none, those that were asked already; answers: source -> answer.
    {:ok, %{pythons: %{}, answers: %{}}, @idle_ms}
  end

  @impl true
  def handle_call({:of, source}, _from, state) do
    {answer, state} =
      case state.answers do
        %{^source => answer} -> {answer, state}
        _new -> ask(source, interpreters(), state, nil)
      end

    {:reply, answer, remember(state, source, answer), @idle_ms}
  end

  @impl true
  def handle_info(:timeout, state), do: {:stop, :normal, state}
  def handle_info(_of_a_port, state), do: {:noreply, state, @idle_ms}

  # An environment may be built later, so an unknown answer is not kept.
  defp remember(state, _source, {:unknown, _why}), do: state
  defp remember(state, source, answer), do: put_in(state.answers[source], answer)

  # Source that the first Python cannot read may be meant for another environment, with a newer Python.
  defp ask(_source, [], state, nil),
    do: {{:unknown, "no Python 3.11 or newer with PyPort's server was found"}, state}

  defp ask(_source, [], state, problem), do: {{:error, problem}, state}

  defp ask(source, [{python, variables} | others], state, problem) do
    {running, state} = running(python, variables, state)

    case said(running, source) do
      {:ok, names} -> {{:ok, names}, state}
      {:error, found} -> ask(source, others, state, problem || found)
      :none -> ask(source, others, put_in(state.pythons[python], :none), problem)
    end
  end

  defp running(python, variables, state) do
    case state.pythons do
      %{^python => running} ->
        {running, state}

      _new ->
        running = launch(python, variables)
        {running, put_in(state.pythons[python], running)}
    end
  end

  defp launch(python, variables) do
    arguments = ["-c", @shell, "sh", python, "-P", "-c", @boot | Env.package_path()]

    env =
      for {name, value} <- variables, do: {to_charlist(name), if(value, do: to_charlist(value), else: false)}

    options = [{:packet, 4}, :binary, :exit_status, args: arguments, env: env]
    port = Port.open({:spawn_executable, ~c"/bin/sh"}, options)

    case receive_frame(port) do
      {:ok, version} -> {port, version}
      :none -> :none
    end
  rescue
    # The machine has no room for one more process.
    _error in [ErlangError, ArgumentError] -> :none
  end

  defp said(:none, _source), do: :none

  defp said({port, version}, source) do
    Port.command(port, source)

    case receive_frame(port) do
      {:ok, answer} -> read(String.split(answer, "\n"), version)
      :none -> :none
    end
  rescue
    # It has ended meanwhile.
    ArgumentError -> :none
  end

  defp receive_frame(port) do
    receive do
      {^port, {:data, frame}} -> {:ok, frame}
      {^port, {:exit_status, _status}} -> :none
      {:EXIT, ^port, _reason} -> :none
    after
      @answer_ms ->
        Port.close(port)
        :none
    end
  end

  defp read(["names", bound, deleted, read], _version),
    do: {:ok, %{bound: String.split(bound), deleted: String.split(deleted), read: String.split(read)}}

  defp read(["error", line, column, end_column | message], version) do
    {:error,
     %{
       line: String.to_integer(line),
       column: String.to_integer(column),
       end_column: String.to_integer(end_column),
       message: Enum.join(message, "\n"),
       python: version
     }}
  end

  defp read(_other, _version), do: :none

  # The Pythons in which the code may run, with their variables: the default pool's first. With environments, those that are
  # built.
  defp interpreters do
    pool = Default.options() || []
    environments = Enum.uniq(List.wrap(pool[:python_env]) ++ Enum.map(Env.configured(), & &1.name))

    built =
      for name <- environments,
          {:ok, manifest, dir} <- [Env.fetch(name)],
          do: {Path.join(dir, manifest.python.executable), Env.variables(name)}

    case {pool[:python], environments} do
      {nil, []} -> found(System.get_env("PYPORT_PYTHON") || "python3")
      {nil, _some} -> built
      {python, _any} -> found(python) ++ built
    end
  rescue
    # A configuration that cannot be understood is an error of its users.
    ArgumentError -> []
  end

  defp found(python) do
    case System.find_executable(python) do
      nil -> []
      path -> [{path, []}]
    end
  end
end
