defmodule PyPort.Env do
  @moduledoc """
  Python environments: built by uv from a few lines of configuration, locked, checked before use.

      # mix.exs
      def project do
        [compilers: Mix.compilers() ++ [:py_port], ...]
      end

      # config/config.exs
      config :py_port, :uv_init,
        pyproject_toml: \"\"\"
        [project]
        name = "my_app_python"
        version = "0.0.0"
        requires-python = "==3.12.*"
        dependencies = ["numpy", "pandas"]
        \"\"\"

  `mix compile` then has [uv](https://docs.astral.sh/uv/) resolve, lock and install; `PyPort.eval/3` runs in that
  environment, and a release carries it (`PyPort.Release`). What uv says is shown while it works. The lock stands in
  `priv/py_port/default/uv.lock`: commit it. A build that fails is a warning of the compiler, and requests get
  `{:error, %PyPort.Error{kind: :unavailable}}` with the reason; with `frozen: true` it fails the compilation.

  Without the line in mix.exs, and under `Mix.install/2`, the environment is built when the application `:py_port`
  starts for the first time. Scripts and notebooks may also call `PyPort.uv_init/2`.

  ## Options

    * `:pyproject_toml` - the text of a `pyproject.toml`; or
    * `:project` - a directory with a `pyproject.toml` of its own, relative to the application's. Its lock is the
      `uv.lock` beside it. Needed where the project names files by relative paths.
    * `:environments` - several environments: `[default: [pyproject_toml: ...], ml: [project: "python/ml"]]`. A server
      chooses one with `python_env: :ml`. Options outside of it hold for all.
    * `:python` - which Python, as `uv venv --python` understands it. Default: what `requires-python` asks for.
    * `:uv` - the program. Default: the `uv` on the PATH.
    * `:uv_version` - the version of uv; where the one on the PATH is another, or there is none, it is fetched from
      PyPI into our own cache, its SHA-256 verified. Without this option nothing is fetched.
    * `:offline` - use no network: everything has to be in uv's cache. Default: `false`.
    * `:frozen` - the lock has to be there, and a failed build is an error. For production images. Default: `false`.
    * `:force` - build even where nothing has changed. Default: `false`.
    * `:index` - the URL of a package index instead of PyPI, or a list of it and of `{:extra, "URL"}`.
    * `:native_tls` - trust the certificates that this system trusts, for proxies that inspect TLS. Default: `false`.
    * `:cache_dir` - where caches live: ours (a private uv, wheels of the port server) and uv's. Default: ours in the
      user's cache directory, uv's where uv has it.
    * `:extra_args` - more words for `uv sync`, such as `["--extra", "gpu"]`.
  """

  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.Env.{Build, Check, Config, Platform, Stamp}
  alias PyPort.Error

  # Names of environments that live elsewhere than beside the application's own build: `name=path`, separated by colons.
  @variable "PYPORT_ENVS"

  # --- for servers ------------------------------------------------------------------------------

  @doc false
  # The one place that turns the option `python_env:` into an interpreter.
  @spec interpreter(atom()) :: {:ok, Path.t()} | {:error, Error.t()}
  def interpreter(name) do
    case {failure(name), fetch(name)} do
      {nil, {:ok, stamp, dir}} -> checked(stamp, dir)
      {nil, :error} -> {:error, unavailable(missing(name))}
      # What an earlier build has left is not what is asked for now.
      {words, _earlier} -> {:error, unavailable(words)}
    end
  end

  # Why the build of an environment of the configuration has failed in this VM.
  defp failure(name), do: :persistent_term.get({__MODULE__, :failure, name}, nil)

  defp checked(stamp, dir) do
    # What can change under a running VM is looked at every time, the rest once.
    findings = Check.interpreter(stamp, dir) |> if_empty(fn -> once(stamp, dir) end)

    case Enum.find(findings, &match?({:refuse, _tag, _words}, &1)) do
      nil -> {:ok, Path.join(dir, stamp.python.executable)}
      {:refuse, _tag, words} -> {:error, unavailable(words)}
    end
  end

  defp if_empty([], fun), do: fun.()
  defp if_empty(findings, _fun), do: findings

  defp once(stamp, dir) do
    key = {__MODULE__, :checked, stamp.name}

    if :persistent_term.get(key, nil) == {stamp, dir} do
      []
    else
      findings = Check.findings(stamp, dir, Platform.here()) ++ probe(stamp, dir)
      for {:warn, _tag, words} <- findings, do: warn(words)
      unless Enum.any?(findings, &match?({:refuse, _, _}, &1)), do: :persistent_term.put(key, {stamp, dir})
      findings
    end
  end

  # The interpreter says its version before it loads anything of its own: 2 ms, once.
  defp probe(stamp, dir) do
    case System.cmd(Path.join(dir, stamp.python.executable), ["-V"], stderr_to_stdout: true) do
      {said, 0} -> Check.answers(stamp, said)
      {said, _status} -> Check.fails(stamp, said)
    end
  rescue
    # A file that is there and "does not exist" names a loader that does not.
    error in ErlangError -> Check.fails(stamp, Exception.message(error))
  end

  defp warn(words) do
    require Logger
    Logger.warning("PyPort: " <> words)
  end

  # What would bring other packages, or another standard library, into an environment. `PYTHONSTARTUP` is read by prompts
  # alone; the others change how Python works and not what it finds, and stay with who runs the application. The
  # packages of the user's home are closed to a `venv` anyway, but not to a Python that a release carries.
  @variables [{"PYTHONPATH", nil}, {"PYTHONHOME", nil}, {"PYTHONNOUSERSITE", "1"}]

  @doc false
  # The variables of a Python that runs in an environment, in which it sees what uv has put there and nothing else.
  @spec variables() :: [{String.t(), String.t() | nil}]
  def variables, do: @variables

  @doc false
  # Whether the Python that said hello is the one that its environment was built for.
  @spec running(atom() | nil, map()) :: :ok | {:error, Error.t()}
  def running(nil, _info), do: :ok

  def running(name, info) do
    with {:ok, stamp, _dir} <- fetch(name),
         %{python: version} when is_binary(version) <- info,
         {:error, words} <- Check.running(stamp, version) do
      {:error, unavailable(words)}
    else
      _fine_or_unknown -> :ok
    end
  end

  @doc false
  # The record of an environment, and the directory that it lives in.
  @spec fetch(atom()) :: {:ok, Stamp.t(), Path.t()} | :error
  def fetch(name) do
    Enum.find_value(places(name), :error, fn base ->
      case Stamp.read(base, name) do
        {:ok, stamp} -> {:ok, stamp, Path.join(base, stamp.dir)}
        :error -> nil
      end
    end)
  end

  defp places(name) do
    registered = registered(name)
    named = for {^name, path} <- named_places(), do: path
    Enum.reject([registered | named] ++ [base()], &is_nil/1)
  end

  defp registered(name), do: :persistent_term.get({__MODULE__, :place, name}, nil)

  defp named_places do
    for entry <- (System.get_env(@variable) || "") |> String.split(":", trim: true),
        [name, path] <- [String.split(entry, "=", parts: 2)],
        do: {String.to_atom(name), path}
  end

  @doc false
  # Beside the libraries: `_build/<env>/py_port`, and in a release `py_port` under its root.
  @spec base() :: Path.t()
  def base, do: Path.expand("../../py_port", lib_dir())

  # An escript is one file, in which the library has no directory. Then what is beside the file counts.
  defp lib_dir do
    case :code.lib_dir(:py_port) do
      {:error, :bad_name} -> :code.which(__MODULE__) |> Path.dirname() |> Path.join("py_port")
      dir -> to_string(dir)
    end
  end

  @doc false
  # The directory with the Python source of the server, to be put on the path of a Python; none in an escript.
  @spec package_path() :: [Path.t()]
  def package_path do
    case :code.priv_dir(:py_port) do
      {:error, :bad_name} -> []
      dir -> [Path.join(to_string(dir), "python")]
    end
  end

  @doc false
  # In a release a library's directory carries its version.
  @spec release?() :: boolean()
  def release?, do: Path.basename(lib_dir()) != "py_port"

  defp missing(name) do
    known = for %Config{name: known} <- configured(), do: known

    cond do
      release?() ->
        "this release carries no Python environment #{inspect(name)} (looked for #{Stamp.path(base(), name)}). Add the " <>
          "step to mix.exs: releases: [my_app: [steps: [:assemble, &PyPort.Release.copy_environments/1]]]"

      name in known ->
        "the Python environment #{inspect(name)} is not built: run mix py_port.sync"

      true ->
        "there is no Python environment #{inspect(name)}; config :py_port, :uv_init has " <>
          if(known == [], do: "none", else: Enum.map_join(known, ", ", &inspect/1))
    end
  end

  # --- at the start of the application ----------------------------------------------------------

  @doc false
  # Builds what is configured and not built, before any server starts: a script's first request would have timed out
  # long before its packages are there. A failure is logged, and told to whoever asks for the environment.
  @spec start() :: :ok
  def start do
    unless release?(), do: Enum.each(configured(), &ensure/1)
  rescue
    error in ArgumentError -> warn(Exception.message(error))
  end

  # What the Mix compiler has just tried and failed at is not tried again in the same VM.
  defp ensure(config) do
    unless failure(config.name) do
      with {:error, words} <- build(config), do: warn(words)
    end
  end

  @doc false
  @spec build(Config.t()) :: {:ok, :built | :unchanged} | {:error, String.t()}
  def build(config) do
    result = build(config, base())
    note(config.name, result)
    result
  end

  defp build(config, base) do
    if package_path() == [],
      do:
        {:error,
         "an escript carries no files, so no Python environment can be built in it: name a Python in which the package " <>
           "port-server is installed with the option python:"},
      else: Build.run(config, base, &IO.write/1)
  end

  defp note(name, {:ok, _what}), do: :persistent_term.erase({__MODULE__, :failure, name})

  defp note(name, {:error, words}), do: :persistent_term.put({__MODULE__, :failure, name}, words)

  @doc false
  @spec configured() :: [Config.t()]
  def configured, do: Config.all!(Application.get_env(:py_port, :uv_init), host_dir())

  # The application that is being run by Mix; a script has none, and keeps its lock beside what is built for it.
  defp host_dir do
    # Mix may be on the code path, and not running: on a node that another one has started.
    with true <- Process.whereis(Mix.ProjectStack) != nil,
         file when is_binary(file) <- apply(Mix.Project, :project_file, []),
         true <- File.regular?(file) do
      file |> Path.dirname() |> umbrella(apply(Mix.Project, :config, []))
    else
      _no_project -> Path.join(base(), "lock")
    end
  end

  # The applications of an umbrella share what is built, so they share the lock, too: it stands where mix.lock does.
  defp umbrella(dir, project) do
    [build, lock] = for key <- [:build_path, :lockfile], do: Path.expand(project[key] || "_build", dir)
    if Path.dirname(build) == Path.dirname(lock), do: Path.dirname(lock), else: dir
  end

  @doc false
  # A server or a pool that names no Python runs in the configured environment `:default`, if there is one.
  @spec put_default(options) :: options when options: keyword() | map()
  def put_default(options) do
    if options[:python] || options[:python_env] || not default?(),
      do: options,
      else: put_in(options[:python_env], :default)
  end

  defp default? do
    registered(:default) != nil or List.keymember?(named_places(), :default, 0) or
      (release?() and match?({:ok, _stamp, _dir}, fetch(:default))) or
      Enum.any?(configured(), &(&1.name == :default))
  rescue
    # A configuration that cannot be understood was complained about in start/0.
    ArgumentError -> true
  end

  # --- at run time ------------------------------------------------------------------------------

  @doc false
  # Tells whether the environment of that name is another one than before.
  @spec init(String.t(), keyword()) :: {:ok, changed? :: boolean()} | {:error, Error.t()}
  def init(pyproject_toml, options) do
    {name, options} = Keyword.pop(options, :name, :default)
    options = Keyword.put(options, :pyproject_toml, pyproject_toml)
    config = Config.new!(name, options, File.cwd!())
    base = Path.join([Config.cache_dir(config), "envs", Config.digest(config)])
    # A script has no `priv` to commit from: the lock lives with what it locked.
    config = %{config | host_dir: Path.join(base, "lock")}

    case build(config, base) do
      {:ok, what} ->
        known? = registered(name) == base
        :persistent_term.put({__MODULE__, :place, name}, base)
        # What the configuration asked for, and did not get, is not asked for any more.
        note(name, {:ok, what})
        {:ok, not (known? and what == :unchanged)}

      {:error, words} ->
        {:error, unavailable(words)}
    end
  end

  # --- for other nodes --------------------------------------------------------------------------

  @doc false
  @spec install_env() :: %{String.t() => String.t()}
  def install_env do
    places = for {name, base, _stamp, _dir} <- known(), do: "#{name}=#{base}"
    if places == [], do: %{}, else: %{@variable => Enum.join(places, ":")}
  end

  @doc false
  @spec install_paths() :: [Path.t()]
  def install_paths do
    Enum.flat_map(known(), fn {name, base, stamp, dir} ->
      [Stamp.path(base, name), dir] ++ own_python(stamp)
    end)
    |> Enum.uniq()
  end

  # A Python that uv has fetched is not on other machines; the system's has to be there.
  defp own_python(%{kind: :venv, python: %{base_prefix: prefix}}),
    do: if(managed?(prefix), do: [prefix], else: [])

  defp own_python(_carried), do: []

  @doc false
  # Whether uv has fetched a Python: then it can be moved, and is nobody else's.
  @spec managed?(Path.t()) :: boolean()
  def managed?(prefix) do
    # uv's directories are called `cpython-3.12.4-linux-x86_64-gnu`, wherever they stand.
    Path.basename(prefix) =~ ~r/^[a-z]+-\d+(\.\d+)*([a-z]+\d*)?(\+[a-z]+)?-(linux|macos|windows)-/
  end

  defp known do
    names = for {{__MODULE__, :place, name}, _base} <- :persistent_term.get(), do: name

    built =
      for path <- Path.wildcard(Path.join(base(), "*.term")),
          do: path |> Path.basename(".term") |> String.to_atom()

    listed = for {name, _path} <- named_places(), do: name

    for name <- Enum.uniq(names ++ listed ++ built),
        base <- Enum.take(Enum.filter(places(name), &match?({:ok, _stamp}, Stamp.read(&1, name))), 1),
        {:ok, stamp} <- [Stamp.read(base, name)],
        do: {name, base, stamp, Path.join(base, stamp.dir)}
  end
end
