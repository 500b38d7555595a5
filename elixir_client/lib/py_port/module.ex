defmodule PyPort.Module do
  @moduledoc ~S'''
  A module of Elixir with the public functions of a Python module.

      defmodule MyApp.Statistics do
        use PyPort.Module, module: "statistics", server: MyApp.Pool
      end

      MyApp.Statistics.mean([1, 2, 6])            #=> {:ok, 3}
      MyApp.Statistics.mean!([1, 2, 6])           #=> 3
      MyApp.Statistics.quantiles!([1, 2, 3], n: 2) #=> [2.0]

  Each function has the arities of its parameters, those with defaults left out from the right. Keyword arguments are a keyword
  list, which is the last argument. The documentation is that of Python, and the spec follows the type hints. A change of the
  Python file recompiles the module.

  ## Options

    * `:module` - the name of the Python module. Required.
    * `:only`, `:except` - lists of names of functions.
    * `:python`, `:python_env` - the Python that is asked while the module compiles, as in `PyPort.Server`. Default: that of the default
      pool.

  All other options are those of `PyPort.call/4`, for each call: `server:`, `timeout:` and so on.

  Python imports the module while Elixir compiles. If that Python is not there, or cannot import it, a warning says so. The functions are then
  looked up at run time: calls work, and the compiler, the documentation and `function_exported?/3` know no names.

  ## Examples

      iex> defmodule Example.Math do
      ...>   use PyPort.Module, module: "math", only: [:gcd, :sqrt, :log]
      ...> end
      iex> Example.Math.gcd(12, 18)
      {:ok, 6}
      iex> Example.Math.sqrt!(9.0)
      3.0
      iex> {:error, %PyPort.Error{type: "ValueError"}} = Example.Math.log(-1)
  '''

  alias PyPort.{Env, Sources}

  @own [:module, :only, :except, :python, :python_env]
  # Python has no limit for `*args`, a function of Elixir has.
  @most_extra 4
  # Words that cannot be the name of a function of Elixir.
  @reserved ~w(after and catch do else end false fn in nil not or rescue true when)

  @boot "import sys; sys.path += sys.argv[2:]; from port_server.cli import functions; functions.main(sys.argv[1])"

  defmacro __using__(options) do
    quote bind_quoted: [options: options] do
      name = PyPort.Module.name!(options)
      request = PyPort.Module.request(options)

      case PyPort.Module.functions(options) do
        {:ok, file, functions} ->
          if file, do: @external_resource(file)

          for function <- functions, {kind, arity, spec, doc} <- PyPort.Module.clauses(function) do
            parameters = Macro.generate_arguments(arity, __MODULE__)
            bang? = kind == :bang
            elixir_name = String.to_atom(function["name"] <> if(bang?, do: "!", else: ""))
            target = name <> ":" <> function["name"]
            names = PyPort.Module.keywords(function)
            if doc, do: @doc(doc)
            @spec unquote(spec)
            def unquote(elixir_name)(unquote_splicing(parameters)) do
              PyPort.Module.run(
                unquote(bang?),
                unquote(target),
                unquote(parameters),
                unquote(names),
                unquote(Macro.escape(request))
              )
            end
          end

        {:error, why} ->
          IO.warn(why, Macro.Env.stacktrace(__ENV__))

          # The Erlang VM calls it for functions that do not exist.
          @doc false
          def unquote(:"$handle_undefined_function")(function, arguments) do
            PyPort.Module.run_unknown(unquote(name), function, arguments, unquote(Macro.escape(request)))
          end
      end
    end
  end

  @doc false
  @spec name!(keyword()) :: String.t()
  def name!(options) do
    case options[:module] do
      name when is_binary(name) and name != "" -> name
      other -> raise ArgumentError, "use PyPort.Module needs module: \"my_pkg.stats\", got: #{inspect(other)}"
    end
  end

  @doc false
  @spec request(keyword()) :: keyword()
  def request(options) do
    request = Keyword.drop(options, @own)
    _ = PyPort.Options.call!(request)
    request
  end

  # --- while it compiles ------------------------------------------------------------------------

  @doc false
  @spec functions(keyword()) :: {:ok, Path.t() | nil, [map()]} | {:error, String.t()}
  def functions(options) do
    name = name!(options)

    with {:ok, python, variables} <- python(options),
         {:ok, %{"file" => file, "functions" => functions}} <- ask(python, variables, name) do
      {:ok, file, Enum.filter(functions, &chosen?(&1["name"], options))}
    else
      {:error, why} ->
        {:error, "the functions of the Python module #{name} are looked up at run time, because #{why}"}
    end
  end

  defp chosen?(name, options) do
    listed = &Enum.any?(options[&1] || [], fn one -> to_string(one) == name end)
    name not in @reserved and (options[:only] == nil or listed.(:only)) and not listed.(:except)
  end

  defp python(options) do
    case Env.put_default(Keyword.take(options, [:python, :python_env])) do
      [python_env: name] ->
        with {:ok, python} <- Env.interpreter(name), do: {:ok, python, Env.variables(name)}

      options ->
        python = options[:python] || System.get_env("PYPORT_PYTHON") || "python3"

        case System.find_executable(python) do
          nil -> {:error, "there is no Python #{python}"}
          path -> {:ok, path, []}
        end
    end
  end

  defp ask(python, variables, name) do
    # The project that is compiled has no application yet.
    own = Enum.filter([Path.expand("priv/python")], &File.dir?/1)
    given = Enum.join(own ++ List.wrap(System.get_env("PYTHONPATH")), ":")
    path = Sources.path(if(given == "", do: nil, else: given))
    arguments = ["-P", "-c", @boot, name | Env.package_path()]

    case System.cmd(python, arguments, env: variables ++ [{"PYTHONPATH", path || nil}]) do
      {answer, 0} -> {:ok, :erlang.binary_to_term(answer, [:safe])}
      {_said, _status} -> {:error, "#{python} could not import it (its message stands above)"}
    end
  rescue
    error in [ErlangError, ArgumentError] -> {:error, Exception.message(error)}
  end

  @doc false
  # Each function that is defined for one of Python's: its kind, arity and spec, and the text, which the first has.
  @spec clauses(map()) :: [{:plain | :bang, arity(), Macro.t(), String.t() | nil}]
  def clauses(%{"params" => params, "var" => var, "doc" => doc} = function) do
    positional = Enum.filter(params, & &1["positional"])
    required = Enum.count(positional, &(not &1["optional"]))
    most = length(positional) + if(var, do: @most_extra, else: 0)
    last = if keywords(function) == [], do: most, else: most + 1
    # With keywords for all of them.
    least = if keywords(function) == [], do: required, else: min(required, 1)

    for kind <- [:plain, :bang], arity <- least..max(least, last) do
      text = if arity == least, do: text(kind, function["name"], doc)
      {kind, arity, spec(kind, function, positional, arity), text}
    end
  end

  defp text(:bang, name, _doc), do: "Like `#{name}`, but gives the value itself and raises `PyPort.Error`."
  defp text(:plain, name, ""), do: "Calls `#{name}` of Python."
  defp text(:plain, _name, doc), do: doc

  defp spec(kind, function, positional, arity) do
    types = Enum.map(positional, & &1["type"])
    types = types |> Stream.concat(Stream.repeatedly(fn -> "term()" end)) |> Enum.take(arity)
    types = if keywords(function) == [], do: types, else: List.update_at(types, -1, &"#{&1} | keyword()")
    returns = function["returns"]

    {bang, value} =
      if kind == :bang, do: {"!", returns}, else: {"", "{:ok, #{returns}} | {:error, PyPort.Error.t()}"}

    name = inspect(String.to_atom(function["name"] <> bang))

    {:"::", meta, [{_x, call_meta, arguments}, value]} =
      Code.string_to_quoted!("x(#{Enum.join(types, ", ")}) :: #{value}")

    {:"::", meta, [{Code.string_to_quoted!(name), call_meta, arguments}, value]}
  end

  @doc false
  # The names of its keyword arguments; `:any` where it takes all.
  @spec keywords(map()) :: [String.t()] | :any
  def keywords(%{"keywords" => true}), do: :any
  def keywords(%{"params" => params}), do: for(%{"named" => true, "name" => name} <- params, do: name)

  # --- when it is called ------------------------------------------------------------------------

  @doc false
  @spec run(boolean(), String.t(), list(), [String.t()] | :any, keyword()) :: term()
  def run(bang?, target, arguments, names, request) do
    {arguments, keywords} = split(arguments, names)

    if bang?,
      do: PyPort.call!(target, arguments, keywords, request),
      else: PyPort.call(target, arguments, keywords, request)
  end

  @doc false
  @spec run_unknown(String.t(), atom(), list(), keyword()) :: term()
  def run_unknown(module, function, arguments, request) do
    name = Atom.to_string(function)
    bang? = String.ends_with?(name, "!")
    run(bang?, module <> ":" <> String.trim_trailing(name, "!"), arguments, :any, request)
  end

  # A last argument that is a keyword list holds keywords of the function, if it has such ones.
  defp split(arguments, names) do
    with [_ | _] = last <- List.last(arguments),
         true <- Keyword.keyword?(last),
         true <- names == :any or Enum.all?(last, fn {key, _value} -> Atom.to_string(key) in names end) do
      {Enum.drop(arguments, -1), last}
    else
      _value -> {arguments, []}
    end
  end
end
