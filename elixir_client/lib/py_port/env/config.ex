defmodule PyPort.Env.Config do
  # What `config :py_port, :uv_init` asks for: checked, and one struct for each named environment. Reads the project's
  # files for the digest, and nothing else of the world.
  @moduledoc false

  defstruct [
    :name,
    :pyproject_toml,
    :project,
    :python,
    :uv,
    :uv_version,
    :cache_dir,
    :host_dir,
    native_tls: false,
    offline: false,
    frozen: false,
    force: false,
    index: [],
    extra_args: []
  ]

  @type t :: %__MODULE__{}

  @sources [:pyproject_toml, :project]
  @shared [:uv, :uv_version, :cache_dir, :native_tls, :offline, :frozen, :force, :index, :extra_args, :python]
  @known @sources ++ @shared ++ [:environments]

  # A file of a project larger than this counts by its size and time of change: data, not source.
  @hashed_bytes 1_048_576
  @skipped ~w(.venv __pycache__ .git .hg .mypy_cache .ruff_cache .pytest_cache node_modules uv.lock)
  @skipped_of_mix ~w(_build deps)

  # What uv reads of a project that is no package.
  @settings ~w(pyproject.toml uv.toml .python-version)

  @doc """
  The environments of a configuration, each as a struct.

  Relative paths are the host application's. Raises `ArgumentError` for what it does not understand.
  """
  @spec all!(keyword() | nil, Path.t()) :: [t()]
  def all!(nil, _host_dir), do: []
  def all!([], _host_dir), do: []

  def all!(config, host_dir) do
    keyword!(config, ":uv_init")
    known!(config, @known, ":uv_init")
    {named, top} = Keyword.pop(config, :environments, [])
    keyword!(named, ":environments of :uv_init")
    shared = Keyword.take(top, @shared)
    default = if Enum.any?(@sources, &top[&1]), do: [default: top], else: []

    if default != [] and Keyword.has_key?(named, :default) do
      raise ArgumentError,
            "two environments are called :default: one on top of :uv_init, one under :environments"
    end

    if default == [] and named == [] do
      raise ArgumentError,
            "config :py_port, :uv_init names no environment: it needs :pyproject_toml, :project or :environments, " <>
              "got: #{inspect(config)}"
    end

    for {name, options} <- default ++ named do
      keyword!(options, "environment #{inspect(name)}")
      new!(name, Keyword.merge(shared, options), host_dir)
    end
  end

  @doc "One environment of its options."
  @spec new!(atom(), keyword(), Path.t()) :: t()
  def new!(name, options, host_dir) do
    unless is_atom(name) and to_string(name) =~ ~r/^[a-z][a-z0-9_]*$/ do
      raise ArgumentError,
            "the name of a Python environment is an atom of small letters, digits and _, got: #{inspect(name)}"
    end

    known!(options, @sources ++ @shared, "environment #{inspect(name)}")
    Enum.each(options, fn {option, value} -> valid!(option, value) end)

    case Enum.filter(@sources, &options[&1]) do
      [_one] ->
        :ok

      [] ->
        raise ArgumentError, "environment #{inspect(name)} needs :pyproject_toml or :project"

      _both ->
        raise ArgumentError, "environment #{inspect(name)} has both :pyproject_toml and :project; one will do"
    end

    config = struct!(__MODULE__, [name: name, host_dir: host_dir] ++ options)

    %{
      config
      | project: config.project && Path.expand(config.project, host_dir),
        cache_dir: config.cache_dir && Path.expand(config.cache_dir, host_dir),
        index: List.wrap(config.index)
    }
  end

  defp keyword!(value, what) do
    unless Keyword.keyword?(value) do
      raise ArgumentError, "#{what} must be a keyword list, got: #{inspect(value)}"
    end
  end

  defp known!(options, known, what) do
    for {option, _value} <- options, option not in known do
      raise ArgumentError,
            "unknown option #{inspect(option)} for #{what}.#{PyPort.DidYouMean.similar(option, known)} " <>
              "Known options: #{Enum.map_join(known, ", ", &inspect/1)}"
    end
  end

  defp valid!(option, value) do
    unless valid?(option, value) do
      raise ArgumentError, "option #{inspect(option)} must be #{expected(option)}, got: #{inspect(value)}"
    end
  end

  defp valid?(option, nil) when option in [:pyproject_toml, :project, :python, :uv, :uv_version, :cache_dir],
    do: true

  defp valid?(option, value) when option in [:native_tls, :offline, :frozen, :force], do: is_boolean(value)
  defp valid?(:uv_version, value), do: is_binary(value) and value =~ ~r/^\d+\.\d+\.\d+$/
  defp valid?(:extra_args, value), do: is_list(value) and Enum.all?(value, &is_binary/1)
  defp valid?(:index, value), do: value |> List.wrap() |> Enum.all?(&index?/1)
  defp valid?(_path_or_text, value), do: is_binary(value)

  defp index?({:extra, url}), do: is_binary(url)
  defp index?(url), do: is_binary(url)

  defp expected(option) when option in [:native_tls, :offline, :frozen, :force], do: "true or false"
  defp expected(:uv_version), do: ~s(a full version of uv, such as "0.9.5")
  defp expected(:extra_args), do: "a list of strings, more words for uv sync"

  defp expected(:index),
    do: ~s(the URL of a package index instead of PyPI, or a list of it and of {:extra, "URL"})

  defp expected(:pyproject_toml), do: "the text of a pyproject.toml"
  defp expected(_path), do: "a string"

  @doc "Where the lock stands: with an own project uv's own place, else in the application's `priv`, to be committed."
  @spec lock_path(t()) :: Path.t()
  def lock_path(%__MODULE__{project: nil, host_dir: host, name: name}),
    do: Path.join([host, "priv", "py_port", to_string(name), "uv.lock"])

  def lock_path(%__MODULE__{project: project}), do: Path.join(project, "uv.lock")

  @doc "How uv gets indexes named."
  @spec index_args(t()) :: [String.t()]
  def index_args(%__MODULE__{index: index}) do
    Enum.flat_map(index, fn
      {:extra, url} -> ["--index", url]
      url -> ["--default-index", url]
    end)
  end

  @doc "Our own cache: a private uv, wheels of the port server, environments of scripts."
  @spec cache_dir(t() | nil) :: Path.t()
  def cache_dir(%__MODULE__{cache_dir: dir}) when is_binary(dir), do: dir

  def cache_dir(_config) do
    to_string(:filename.basedir(:user_cache, ~c"py_port"))
  rescue
    # A container without HOME.
    _error -> Path.join(System.tmp_dir() || "/tmp", "py_port-cache")
  catch
    _kind, _reason -> Path.join(System.tmp_dir() || "/tmp", "py_port-cache")
  end

  @doc "What an environment is built from, apart from its lock, as a digest. How it is built (offline, which uv) is no part."
  @spec digest(t()) :: String.t()
  def digest(%__MODULE__{} = config) do
    source = if config.project, do: project_digest(config.project), else: config.pyproject_toml

    fingerprint(
      :erlang.term_to_binary({source, config.python, config.index, config.extra_args}, minor_version: 1)
    )
  end

  @doc """
  A short name for data, to see whether it has changed. It guards against accidents, for which MD5 will do, and MD5 is
  in the BEAM itself: a release without the application `:crypto` compares, too.
  """
  @spec fingerprint(iodata()) :: String.t()
  def fingerprint(data), do: data |> :erlang.md5() |> Base.encode16(case: :lower)

  # A project may be a package with sources of its own, which are installed with it.
  defp project_digest(dir) do
    files = if elixir_too?(dir), do: Enum.map(@settings, &Path.join(dir, &1)), else: project_files(dir)
    for path <- files, do: {Path.relative_to(path, dir), file_digest(path)}
  end

  # Beside a mix.exs the files are the application's, which change all the time, unless the project says that it is
  # a package, or has others by their paths.
  defp elixir_too?(dir) do
    with true <- File.exists?(Path.join(dir, "mix.exs")),
         {:ok, text} <- File.read(Path.join(dir, "pyproject.toml")),
         do: not (text =~ ~r/build-system|tool\.uv/),
         else: (_other -> false)
  end

  defp project_files(dir) do
    case File.ls(dir) do
      {:ok, names} ->
        names
        |> Enum.sort()
        |> Kernel.--(if "mix.exs" in names, do: @skipped_of_mix, else: [])
        |> Enum.reject(&(&1 in @skipped or String.ends_with?(&1, [".egg-info", ".pyc"])))
        |> Enum.map(&Path.join(dir, &1))
        |> Enum.flat_map(&if(File.dir?(&1), do: project_files(&1), else: [&1]))

      {:error, _reason} ->
        []
    end
  end

  defp file_digest(path) do
    case File.stat(path) do
      {:ok, %{type: :regular, size: size}} when size <= @hashed_bytes -> fingerprint(File.read!(path))
      {:ok, %{size: size, mtime: mtime}} -> {size, mtime}
      {:error, _dangling_link} -> nil
    end
  end
end
