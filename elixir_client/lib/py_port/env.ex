defmodule PyPort.Env do
  @moduledoc """
  Python environments: built by uv from a few lines of configuration, locked, checked before use. docs/environments.md
  shows the way from a new project to a release.

      # mix.exs
      compilers: Mix.compilers() ++ [:py_port]

      # config/config.exs
      config :py_port, :uv_init, project: "python"

  Without the line in mix.exs, and under `Mix.install/2`, the environment is built when the application `:py_port`
  starts for the first time. Scripts and notebooks may also call `PyPort.uv_init/2`.

  ## Options

    * `:pyproject_toml` - the text of a `pyproject.toml`; or
    * `:project` - a directory with a `pyproject.toml` of its own, relative to the application's. Its lock is the
      `uv.lock` beside it. Needed where the project names files by relative paths.
    * `:environments` - several environments: `[default: [pyproject_toml: ...], ml: [project: "python/ml"]]`. A server
      or a pool chooses one with `python_env: :ml`; without it it runs in `:default`, or in the only one. Options outside
      of it hold for all.
    * `:python` - which Python, as `uv venv --python` understands it. Default: what `requires-python` asks for.
    * `:uv` - the program. Default: the `uv` on the PATH.
    * `:uv_version` - the version of uv. Another uv on the PATH, or else `python3 -m pip`, fetches it from PyPI into our
      cache, its SHA-256 verified. Without this option nothing is fetched.
    * `:offline` - use no network: everything has to be in uv's cache. Default: `false`.
    * `:frozen` - the lock has to be there, and a failed build is an error. For production images. Default: `false`.
    * `:force` - build even where nothing has changed. Default: `false`.
    * `:index` - the URL of a package index instead of PyPI, or a list of it and of `{:extra, "URL"}`.
    * `:native_tls` - trust the certificates that this system trusts, for proxies that inspect TLS. Default: `false`.
    * `:cache_dir` - where caches live: ours (a private uv, the source of the port server) and uv's. Default: ours in the
      user's cache directory, uv's where uv has it.
    * `:extra_args` - more words for `uv sync`, such as `["--extra", "gpu"]`.
  """

  alias PyPort.Env.{Build, Check, Config, Manifest, Package, Platform}

  require Logger

  # The environments of another node: `name=path`, separated by colons.
  @variable "PYPORT_ENVS"

  # Tells Python the packages of each environment, so that a ModuleNotFoundError names the one that has the module.
  @packages "PYPORT_PACKAGES"

  # --- for servers ------------------------------------------------------------------------------

  @doc """
  The path of the Python in an environment, for programs that run it themselves; else a text that says why there is none.

  ## Examples

      {:ok, python} = PyPort.Env.interpreter(:default)
      System.cmd(python, ["-m", "pip", "list"])
  """
  @spec interpreter(atom()) :: {:ok, Path.t()} | {:error, String.t()}
  def interpreter(name) do
    # After a failed build an earlier environment is not the one that is asked for.
    with nil <- failure(name), {:ok, manifest, dir} <- fetch(name) do
      # The environment of a release is never built again, and may be read-only.
      unless release?() and Path.dirname(dir) == base(), do: Build.use_dir(dir)
      # The interpreter can go away under a running VM; the rest is checked once.
      words = Check.interpreter(manifest, dir) || once(manifest, dir)
      if words, do: {:error, words}, else: {:ok, Path.join(dir, manifest.python.executable)}
    else
      :error -> {:error, missing(name)}
      words -> {:error, words}
    end
  end

  defp failure(name), do: :persistent_term.get({__MODULE__, :failure, name}, nil)

  defp once(manifest, dir) do
    key = {__MODULE__, :checked, manifest.name}

    if :persistent_term.get(key, nil) != {manifest, dir} do
      words = Check.problem(manifest, dir, Platform.here())
      if words == nil, do: :persistent_term.put(key, {manifest, dir})
      words
    end
  end

  defp missing(name) do
    known = Enum.map(configured(), & &1.name)

    cond do
      release?() ->
        "this release carries no Python environment #{inspect(name)} (looked for #{Manifest.path(base(), name)}). Add the " <>
          "step to mix.exs: releases: [my_app: [steps: [:assemble, &PyPort.Release.copy_environments/1]]]"

      name in known ->
        "the Python environment #{inspect(name)} is not built: run mix py_port.sync"

      true ->
        known = if known == [], do: "none", else: Enum.map_join(known, ", ", &inspect/1)
        "there is no Python environment #{inspect(name)}; config :py_port, :uv_init has #{known}"
    end
  rescue
    error in ArgumentError -> Exception.message(error)
  end

  @doc false
  # The variables of a Python in the environment `name`, nil for one of none. In an environment it finds what uv has
  # installed there and nothing else: other variables change how Python works, not what it finds. PYTHONNOUSERSITE is
  # for a Python that a release carries; a `venv` ignores the packages of the user's home anyway.
  @spec variables(atom() | nil) :: [{String.t(), String.t() | nil}]
  def variables(name) do
    own = if name, do: [{"PYTHONPATH", nil}, {"PYTHONHOME", nil}, {"PYTHONNOUSERSITE", "1"}], else: []

    known =
      for {name, _base, manifest, dir} <- known(),
          do: "#{name}=#{Path.join(dir, manifest.python.packages_dir)}"

    if known == [], do: own, else: [{@packages, Enum.join(known, ":")} | own]
  end

  @doc false
  # Whether the Python that said hello is the one that its environment was built for.
  @spec running(atom() | nil, map()) :: :ok | {:error, String.t()}
  def running(name, info) do
    with true <- name != nil,
         {:ok, manifest, _dir} <- fetch(name),
         %{python: version} when is_binary(version) <- info,
         words when is_binary(words) <- Check.version(manifest, version) do
      {:error, words}
    else
      _fine_or_unknown -> :ok
    end
  end

  @doc false
  # The manifest of an environment, and its directory.
  @spec fetch(atom()) :: {:ok, Manifest.t(), Path.t()} | :error
  def fetch(name), do: with({_base, manifest, dir} <- find(name), do: {:ok, manifest, dir})

  defp find(name) do
    named = for {^name, base} <- named(), do: base

    Enum.find_value(List.wrap(registered(name)) ++ named ++ [base()], :error, fn base ->
      with {:ok, manifest, dir} <- Manifest.read(base, name), do: {base, manifest, dir}, else: (:error -> nil)
    end)
  end

  # Built by `uv_init/2` in this VM.
  defp registered(name), do: :persistent_term.get({__MODULE__, :place, name}, nil)

  defp named do
    for entry <- (System.get_env(@variable) || "") |> String.split(":", trim: true),
        [name, base] <- [String.split(entry, "=", parts: 2)],
        do: {String.to_atom(name), base}
  end

  defp known do
    registered = for {{__MODULE__, :place, name}, _base} <- :persistent_term.get(), do: name
    names = Enum.uniq(registered ++ Keyword.keys(named()) ++ Manifest.names(base()))
    for name <- names, {base, manifest, dir} <- [find(name)], do: {name, base, manifest, dir}
  end

  @doc false
  # Beside the libraries: `_build/<env>/py_port`, and in a release `py_port` under its root.
  @spec base() :: Path.t()
  def base, do: Path.expand("../../py_port", lib_dir())

  # An escript is one file, in which the library has no directory. Then the directory of that file counts.
  defp lib_dir do
    case :code.lib_dir(:py_port) do
      {:error, :bad_name} -> :code.which(__MODULE__) |> Path.dirname() |> Path.join("py_port")
      dir -> to_string(dir)
    end
  end

  @doc false
  # The directory with the Python source of the server, for the path of a Python; none in an escript.
  @spec package_path() :: [Path.t()]
  def package_path, do: if(is_list(:code.priv_dir(:py_port)), do: [Package.source_dir()], else: [])

  @doc false
  # In a release a library's directory carries its version.
  @spec release?() :: boolean()
  def release?, do: Path.basename(lib_dir()) != "py_port"

  # --- what is configured -----------------------------------------------------------------------

  @doc false
  @spec configured() :: [Config.t()]
  def configured, do: Config.all!(Application.get_env(:py_port, :uv_init), host_dir())

  # The application that Mix runs; a script has none, and keeps its lock beside what is built for it.
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

  # The applications of an umbrella share the build, so they share the lock: it stands beside mix.lock.
  defp umbrella(dir, project) do
    [build, lock] = for key <- [:build_path, :lockfile], do: Path.expand(project[key] || "_build", dir)
    if Path.dirname(build) == Path.dirname(lock), do: Path.dirname(lock), else: dir
  end

  @doc false
  # A server or a pool that names no Python runs in the configured environment: `:default`, or the only one.
  @spec put_default(options) :: options when options: keyword() | map()
  def put_default(options) do
    with nil <- options[:python] || options[:python_env],
         name when name != nil <- default(),
         do: put_in(options[:python_env], name),
         else: (_named_or_none -> options)
  end

  defp default do
    built = if release?(), do: Manifest.names(base()), else: Enum.map(configured(), & &1.name)

    case Enum.uniq(Keyword.keys(named()) ++ built) do
      [only] -> if registered(:default), do: :default, else: only
      names -> if registered(:default) || :default in names, do: :default
    end
  rescue
    # A configuration that cannot be understood is an error of the servers that need it.
    ArgumentError -> :default
  end

  # --- builds -----------------------------------------------------------------------------------

  @doc false
  # Builds the configured environments before a server starts: the first request of a script would time out before its
  # packages are installed. A failure is logged, and is the error of servers that need the environment.
  @spec start() :: :ok
  def start do
    # The Mix compiler may have failed in this VM: it is not tried again.
    for config <- if(release?(), do: [], else: configured()), failure(config.name) == nil do
      with {:error, words} <- build(config), do: Logger.warning("PyPort: " <> words)
    end

    :ok
  rescue
    error in ArgumentError -> Logger.warning("PyPort: " <> Exception.message(error))
  end

  @doc false
  @spec build(Config.t()) :: Build.result()
  def build(config) do
    with {:error, words} <- build(config, base()) do
      :persistent_term.put({__MODULE__, :failure, config.name}, words)
      {:error, words}
    end
  end

  defp build(config, base) do
    escript =
      "an escript carries no files, so no Python environment can be built in it: name a Python in which the package " <>
        "port-server is installed with the option python:"

    result = if package_path() == [], do: {:error, escript}, else: Build.run(config, base, &IO.write/1)
    with {:ok, _what} <- result, do: :persistent_term.erase({__MODULE__, :failure, config.name})
    result
  end

  @doc false
  # Builds an environment at run time, under `:name`. `changed?` tells whether that name now means another environment.
  @spec init(String.t(), keyword()) :: {:ok, name :: atom(), changed? :: boolean()} | {:error, String.t()}
  def init(pyproject_toml, options) do
    {name, options} = Keyword.pop(options, :name, :default)
    config = Config.new!(name, Keyword.put(options, :pyproject_toml, pyproject_toml), File.cwd!())
    base = Path.join([Config.cache_dir(config), "envs", Config.digest(config)])
    # A script has no `priv` to commit from: the lock stands beside the environment.
    config = %{config | host_dir: Path.join(base, "lock")}

    with {:ok, what} <- build(config, base) do
      changed? = registered(name) != base or what == :built
      :persistent_term.put({__MODULE__, :place, name}, base)
      {:ok, name, changed?}
    end
  end

  # --- for other nodes --------------------------------------------------------------------------

  @doc false
  @spec install_env() :: %{String.t() => String.t()}
  def install_env do
    places = for {name, base, _manifest, _dir} <- known(), do: "#{name}=#{base}"
    if places == [], do: %{}, else: %{@variable => Enum.join(places, ":")}
  end

  @doc false
  @spec install_paths() :: [Path.t()]
  def install_paths do
    paths =
      for {name, base, manifest, dir} <- known() do
        # A Python that uv has fetched is not on other machines; the system's has to be there.
        own? = manifest.kind == :venv and managed?(manifest.python.base_prefix)
        [Manifest.path(base, name), dir] ++ if(own?, do: [manifest.python.base_prefix], else: [])
      end

    paths |> Enum.concat() |> Enum.uniq()
  end

  @doc false
  # Whether uv has fetched a Python: then it can be moved. uv's directories are called
  # `cpython-3.12.4-linux-x86_64-gnu`, wherever they stand.
  @spec managed?(Path.t()) :: boolean()
  def managed?(prefix),
    do: Path.basename(prefix) =~ ~r/^[a-z]+-\d+(\.\d+)*([a-z]+\d*)?(\+[a-z]+)?-(linux|macos|windows)-/
end
