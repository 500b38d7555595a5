defmodule PyPort.Interactive do
  @moduledoc ~S'''
  Python sigils that evaluate on the spot, for IEx and Livebook: `~P` on every Elixir, `~PY` on Elixir 1.15 and newer.

      iex> import PyPort.Interactive
      iex> data = [3, 1, 2]
      iex> ~P"""
      ...> import statistics
      ...> middle = statistics.median(data)
      ...> middle * 10
      ...> """
      20
      iex> middle
      2

  The sigil gives the value of the code's last expression. Elixir variables that the code reads are names in Python, and names
  that the code binds at its top level are Elixir variables afterwards:

    * Names that go in: those that the code reads and that are variables here. A function among them is called back,
      `f = &String.upcase/1` and then `~P"f('a')"`.
    * Names that come out: those that the top level of the code may bind (assignments, imports, loops, `def`, `class`, ...).
      If a branch was not taken, the variable keeps the value that it had, or is `nil`; after `del` it is `nil`.
    * Names that Elixir cannot spell (`Counter`, `DataFrame`, `end`) are kept all the same, and the next sigil finds
      them. The exceptions are `_` and `fn`, and names like `__this__`.

  Values are converted as those of `PyPort.eval/3` are: a list comes out as an Elixir list, and goes in again as a copy, so
  that `~P"xs.append(1)"` has no effect here; bind the new list, `~P"xs = xs + [1]"`. Values without a counterpart in
  Elixir, modules, functions and classes among them, are `PyPort.Object`s, which stay the same objects.

  What the code prints goes to the shell or the notebook. An error raises `PyPort.Error`. Which names there are Python's own
  compiler says when the line is expanded, so a syntax error is one of that line.

  The sigils of `PyPort.Sigils`, which are literals, have the same names; import one of the two. In a module of an application
  the literals and `PyPort.eval/3` are the better choice, since they say what goes in and out.

  ## Options

  `put_options/1` says for the calling process (the shell, the notebook) where and how its sigils evaluate.
  '''

  alias PyPort.{Options, Sigils, SyntaxCheck}

  @key {__MODULE__, :options}

  # A person can interrupt it.
  @defaults [timeout: :infinity]

  # `_` is no variable, and `fn` not even as one of a macro's.
  @no_variables ["_", "fn"]

  @type option ::
          {:server, GenServer.server()}
          | {:session, PyPort.Session.t()}
          | {:timeout, timeout()}
          | {:binary_as, :str | :bytes}
          | {:arrays, :object | :tensor | :nx}
          | {:tables, :object | :arrow | :explorer}
          | {:owner, pid()}
          | {:stdout | :stderr, IO.device()}

  @doc ~S'''
  Evaluates Python code, and binds variables both ways; see the module's documentation. It takes no modifiers.

  ## Examples

      iex> import PyPort.Interactive
      iex> name = "world"
      iex> ~P"greeting = f'Hello, {name}'"
      nil
      iex> greeting
      "Hello, world"
  '''
  defmacro sigil_P(source, modifiers), do: evaluation(source, modifiers, __CALLER__)

  @doc ~S'''
  The same as `sigil_P/2`, under the name that Pythonx made familiar. Elixir 1.15 or newer.
  '''
  defmacro sigil_PY(source, modifiers), do: evaluation(source, modifiers, __CALLER__)

  @doc """
  Sets how the sigils of the calling process evaluate, from now on; each call replaces the options of the one before.

    * `:server` - the pid or name of a `PyPort.Server` or `PyPort.Pool`. Default: the default pool.
    * `:session` - a session of `PyPort.open_session/1`, whose names the code sees and sets, too.
    * `:timeout` - in ms. Default: `:infinity`, since a person can interrupt it.
    * `:binary_as`, `:arrays`, `:tables`, `:owner`, `:stdout`, `:stderr` - as in `PyPort.eval/3`.

  Raises `ArgumentError` for an unknown option or a value of the wrong type.

  ## Examples

      iex> PyPort.Interactive.put_options(timeout: 60_000)
      :ok
  """
  @spec put_options([option()]) :: :ok
  def put_options(options) do
    Options.interactive!(options)
    Process.put(@key, options)
    :ok
  end

  @doc false
  # The sigils expand to this call.
  @spec evaluate(PyPort.Code.t(), PyPort.globals()) :: {term(), %{String.t() => term()}}
  def evaluate(code, globals) do
    options = Keyword.merge(@defaults, Process.get(@key, []))
    PyPort.eval!(code, globals, [return: :globals] ++ options)
  end

  defp evaluation(source, modifiers, caller) do
    {source, file, line} = Sigils.place!(source, modifiers, caller)
    names = names!(source, caller, line)

    going_in =
      for name <- names.read, known?(caller, name) do
        {name, variable(name)}
      end

    coming_out =
      for name <- names.bound, name not in @no_variables do
        kept = if known?(caller, name) and name not in names.deleted, do: variable(name)

        quote generated: true,
              do: unquote(variable(name)) = Map.get(globals, unquote(name), unquote(kept))
      end

    quote generated: true do
      {value, globals} =
        PyPort.Interactive.evaluate(
          %PyPort.Code{source: unquote(source), file: unquote(file), line: unquote(line)},
          %{unquote_splicing(going_in)}
        )

      unquote_splicing(coming_out)
      # Not every code binds names.
      _ = globals
      value
    end
  end

  defp names!(source, caller, line) do
    case SyntaxCheck.of!(source, caller.file, line) do
      {:ok, names} ->
        names

      {:unknown, why} ->
        raise CompileError,
          file: caller.file,
          line: caller.line,
          description:
            "only Python can tell which names this code binds, and #{why}. Install Python 3.11 or newer, or name " <>
              "one: config :py_port, pool: [python: \"/path/to/python3\"]"
    end
  end

  # Without a context, as it is with what a person writes: `var!`. As many atoms as there are names in source code.
  defp variable(name), do: {String.to_atom(name), [generated: true], nil}

  defp known?(caller, name),
    do: name not in @no_variables and Macro.Env.has_var?(caller, {String.to_atom(name), nil})
end
