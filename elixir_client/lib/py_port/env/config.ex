defmodule PyPort.Env.Config do
  # The configuration `config :py_port, :uv_init`, validated: a struct for each environment. Reads the files of the
  # project for the digest, and nothing else.
  @moduledoc false

  defstruct [:name, :pyproject_toml, :project, :python, :uv, :uv_version, :cache_dir, :host_dir] ++
              [native_tls: false, offline: false, frozen: false, force: false, index: [], extra_args: []]

  @typedoc "The options of `PyPort.Env`, and the name and the application's directory."
  @type t :: %__MODULE__{name: atom(), host_dir: Path.t()}

  @sources [:pyproject_toml, :project]
  @flags [:native_tls, :offline, :frozen, :force]
  @shared [:uv, :uv_version, :cache_dir, :index, :extra_args, :python] ++ @flags
  @expected %{
    pyproject_toml: "the text of a pyproject.toml",
    uv_version: ~s(a full version of uv, such as "0.9.5"),
    extra_args: "a list of strings, more words for uv sync",
    index: ~s(the URL of a package index instead of PyPI, or a list of it and of {:extra, "URL"})
  }

  # A larger file of a project counts by its size and modification time: it is data, not source.
  @hashed_bytes 1_048_576
  @skipped ~w(.venv __pycache__ .git .hg .mypy_cache .ruff_cache .pytest_cache node_modules uv.lock)
  @skipped_of_mix ~w(_build deps)

  # The files that uv reads of a project that is not a package.
  @settings ~w(pyproject.toml uv.toml .python-version)

  @doc "The environments of a configuration. Relative paths start at `host_dir`. Raises `ArgumentError`."
  @spec all!(keyword() | nil, Path.t()) :: [t()]
  def all!(config, _host_dir) when config in [nil, []], do: []

  def all!(config, host_dir) do
    known!(config, @sources ++ @shared ++ [:environments], ":uv_init")
    {named, top} = Keyword.pop(config, :environments, [])

    keyword!(named, ":environments")
    default = if Enum.any?(@sources, &top[&1]), do: [default: top], else: []

    if default != [] and Keyword.has_key?(named, :default),
      do: wrong!("two environments are called :default: one in :uv_init, one under :environments")

    if default ++ named == [] do
      needed = "it needs :pyproject_toml, :project or :environments"
      wrong!("config :py_port, :uv_init names no environment: #{needed}, got: #{inspect(config)}")
    end

    shared = Keyword.take(top, @shared)
    for {name, options} <- default ++ named, do: new!(name, options, host_dir, shared)
  end

  @doc "One environment, from its options and those that it shares with others."
  @spec new!(atom(), keyword(), Path.t(), keyword()) :: t()
  def new!(name, options, host_dir, shared \\ []) do
    unless is_atom(name) and to_string(name) =~ ~r/^[a-z][a-z0-9_]*$/,
      do:
        wrong!(
          "the name of a Python environment is an atom of small letters, digits and _, got: #{inspect(name)}"
        )

    known!(options, @sources ++ @shared, "environment #{inspect(name)}")
    options = Keyword.merge(shared, options)

    for {option, value} <- options, not valid?(option, value) do
      expected = @expected[option] || if(option in @flags, do: "true or false", else: "a string")
      wrong!("option #{inspect(option)} must be #{expected}, got: #{inspect(value)}")
    end

    case Enum.filter(@sources, &options[&1]) do
      [_one] -> :ok
      [] -> wrong!("environment #{inspect(name)} needs :pyproject_toml or :project")
      _ -> wrong!("environment #{inspect(name)} has both :pyproject_toml and :project; one will do")
    end

    config = struct!(__MODULE__, [name: name, host_dir: host_dir] ++ options)
    [project, cache] = for path <- [config.project, config.cache_dir], do: path && Path.expand(path, host_dir)
    %{config | project: project, cache_dir: cache, index: List.wrap(config.index)}
  end

  @spec wrong!(String.t()) :: no_return()
  defp wrong!(words), do: raise(ArgumentError, words)

  defp keyword!(options, what),
    do: Keyword.keyword?(options) || wrong!("#{what} must be a keyword list, got: #{inspect(options)}")

  defp known!(options, known, what) do
    keyword!(options, what)

    with [{option, _value} | _] <- Keyword.drop(options, known) do
      known = Enum.map_join(known, ", ", &inspect/1)
      wrong!("unknown option #{inspect(option)} for #{what}. Known options: #{known}")
    end
  end

  defp valid?(option, value) when option in @flags, do: is_boolean(value)
  defp valid?(:extra_args, value), do: is_list(value) and Enum.all?(value, &is_binary/1)

  defp valid?(:index, value),
    do: value |> List.wrap() |> Enum.all?(&(is_binary(&1) or match?({:extra, <<_::binary>>}, &1)))

  defp valid?(_text, nil), do: true
  defp valid?(:uv_version, value), do: is_binary(value) and value =~ ~r/^\d+\.\d+\.\d+$/
  defp valid?(_text, value), do: is_binary(value)

  @doc "The place of the lock: that of a project is its own, another's is the application's `priv`, to be committed."
  @spec lock_path(t()) :: Path.t()
  def lock_path(%__MODULE__{project: nil} = config),
    do: Path.join([config.host_dir, "priv/py_port", to_string(config.name), "uv.lock"])

  def lock_path(%__MODULE__{project: project}), do: Path.join(project, "uv.lock")

  @doc "The indexes as flags of uv."
  @spec index_args(t()) :: [String.t()]
  def index_args(%__MODULE__{index: index}) do
    Enum.flat_map(index, fn
      {:extra, url} -> ["--index", url]
      url -> ["--default-index", url]
    end)
  end

  @doc "Our own cache: uv, the source of the port server, environments of scripts."
  @spec cache_dir(t()) :: Path.t()
  def cache_dir(%__MODULE__{cache_dir: dir}) when is_binary(dir), do: dir

  def cache_dir(_config) do
    to_string(:filename.basedir(:user_cache, ~c"py_port"))
  catch
    # A container without HOME.
    _kind, _reason -> Path.join(System.tmp_dir() || "/tmp", "py_port-cache")
  end

  @doc "A digest of what is built. How it is built (offline, by which uv) is no part of it, nor is the lock."
  @spec digest(t()) :: String.t()
  def digest(%__MODULE__{} = config) do
    source = if config.project, do: project_digest(config.project), else: config.pyproject_toml
    asked = {source, config.python, config.index, config.extra_args}
    asked |> :erlang.term_to_binary(minor_version: 1) |> fingerprint()
  end

  @doc "A fingerprint against accidental changes. MD5 will do, and a release without `:crypto` has it, too."
  @spec fingerprint(iodata()) :: String.t()
  def fingerprint(data), do: data |> :erlang.md5() |> Base.encode16(case: :lower)

  # A project may be a package with sources of its own, which are installed with it. Beside a mix.exs the files are the
  # application's, unless the pyproject.toml says that it is a package, or names others by their paths.
  defp project_digest(dir) do
    mix? = File.exists?(Path.join(dir, "mix.exs"))
    package? = not mix? or dir |> Path.join("pyproject.toml") |> read() =~ ~r/build-system|tool\.uv/
    skipped = if mix?, do: @skipped_of_mix, else: []
    paths = if package?, do: files(dir, @skipped ++ skipped), else: Enum.map(@settings, &Path.join(dir, &1))
    for path <- paths, do: {Path.relative_to(path, dir), file_digest(path)}
  end

  defp read(path), do: if(File.regular?(path), do: File.read!(path), else: "")

  defp files(dir, skipped) do
    for {:ok, names} <- [File.ls(dir)],
        name <- Enum.sort(names) -- skipped,
        not String.ends_with?(name, [".egg-info", ".pyc"]),
        path = Path.join(dir, name),
        file <- if(File.dir?(path), do: files(path, @skipped), else: [path]),
        do: file
  end

  defp file_digest(path) do
    case File.stat(path) do
      {:ok, %{type: :regular, size: size}} when size <= @hashed_bytes -> fingerprint(File.read!(path))
      {:ok, %{size: size, mtime: mtime}} -> {size, mtime}
      {:error, _dangling_link} -> nil
    end
  end
end
