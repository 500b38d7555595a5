defmodule PyPort.Uv do
  # The program uv: which one, how it is called, and that it ends when we do. What it is told to do is
  # PyPort.Env.Build's, where one comes from that nobody installed PyPort.Uv.Download's.
  @moduledoc false

  alias PyPort.Env.Config
  alias PyPort.Uv.Download

  @enforce_keys [:path, :version]
  defstruct [:path, :version]

  @type t :: %__MODULE__{path: Path.t(), version: String.t()}
  @type print :: (iodata() -> term())

  # Dependency groups (`--no-dev`), relocatable environments and the lock as it is now.
  @oldest "0.5.0"

  # From here on the flag has the first name; the second still works there, with a warning.
  @system_certs_since "0.11.0"

  # uv would take these for orders about another project, or against our own flags.
  @unset ~w(VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH UV_FROZEN UV_LOCKED UV_PROJECT UV_WORKING_DIR UV_ACTIVE) ++
           ~w(UV_REQUIRE_HASHES)

  # A port does not end its program, so a watcher does when our end of stdin closes: with the port, its owner or the VM.
  @shell ~S"""
  exec 3<&0 </dev/null 2>/dev/null
  "$@" 3<&- 2>&1 &
  program=$!
  (while read -r _ <&3; do :; done; kill -TERM "$program") >/dev/null 2>&1 &
  watcher=$!
  wait "$program"
  status=$?
  kill -KILL "$watcher" 2>/dev/null
  exit "$status"
  """

  @install_words "Install uv (`python3 -m pip install uv`, `pipx install uv`, `brew install uv`, `apk add uv`, or see " <>
                   "https://docs.astral.sh/uv/), name it with the option uv:, or set uv_version: \"0.9.5\" (any version " <>
                   "of PyPI's) and PyPort fetches that one into its own cache."

  @doc """
  The uv to use: `uv:`, else the one on the PATH, else our own cache's, else (where `uv_version:` allows it) PyPI's.
  """
  @spec find(Config.t(), print()) :: {:ok, t()} | {:error, String.t()}
  def find(config, print) do
    case look(config) do
      {:fetch, version} -> fetch(config, version, print)
      found_or_error -> found_or_error
    end
  end

  defp fetch(config, version, print) do
    with {:ok, path} <- Download.fetch(config, version, print),
         {:error, said} <- probe(path),
         do: {:error, "uv #{version} was fetched to #{path}, but does not work here: #{said}"}
  end

  @doc "The same for who fetches nothing: `{:fetch, version}` where `find/2` would."
  @spec look(Config.t()) :: {:ok, t()} | {:fetch, String.t()} | {:error, String.t()}
  def look(%Config{uv: path} = config) when is_binary(path) do
    case System.find_executable(path) || System.find_executable(Path.expand(path, config.host_dir)) do
      nil -> {:error, "the uv of the option uv:, #{inspect(path)}, does not exist or may not be executed"}
      path -> named(path)
    end
  end

  def look(%Config{uv_version: version} = config) do
    cached = version && Download.path(Config.cache_dir(config), version)
    on_path = System.find_executable("uv")

    case Enum.find_value([on_path, cached], &fitting(&1, version)) do
      %__MODULE__{} = uv -> {:ok, uv}
      nil -> missing(config, on_path)
    end
  end

  defp named(path) do
    case probe(path) do
      {:ok, %{version: version} = uv} ->
        if usable?(version), do: {:ok, uv}, else: {:error, too_old(path, version)}

      {:error, said} ->
        {:error, "#{path} does not work: #{said}"}
    end
  end

  defp too_old(path, version), do: "#{path} is uv #{version}; it has to be #{@oldest} or newer"

  defp fitting(nil, _version), do: nil

  defp fitting(path, version) do
    case probe(path) do
      {:ok, %{version: found} = uv} when version in [nil, found] -> if usable?(found), do: uv
      _other -> nil
    end
  end

  defp missing(%Config{uv_version: nil}, on_path) do
    case on_path && probe(on_path) do
      nil ->
        {:error, "uv was not found on the PATH. " <> @install_words}

      {:ok, %{version: old}} ->
        {:error, too_old(on_path, old) <> ". " <> @install_words}

      {:error, said} ->
        {:error, "#{on_path} does not work (#{said}). " <> @install_words}
    end
  end

  defp missing(%Config{uv_version: version, offline: true} = config, _on_path) do
    {:error,
     "uv #{version} is neither on the PATH nor in #{Config.cache_dir(config)}, and offline: true forbids to fetch it. " <>
       "Build once with the network, or install it"}
  end

  defp missing(%Config{uv_version: version}, _on_path), do: {:fetch, version}

  # A shim of pyenv or asdf is on the PATH even where no version behind it is chosen: only running it tells.
  defp probe(path) do
    case System.cmd(path, ["--version"], stderr_to_stdout: true) do
      {said, 0} ->
        case Regex.run(~r/^uv (\d+\.\d+\.\d+)/, said) do
          [_, version] -> {:ok, %__MODULE__{path: path, version: version}}
          nil -> {:error, "it is no uv, and says: #{String.trim(said)}"}
        end

      {said, status} ->
        {:error, "status #{status}: #{String.trim(said)}"}
    end
  rescue
    error -> {:error, Exception.message(error)}
  end

  defp usable?(version), do: Version.compare(version, @oldest) != :lt

  @doc "The words that stand before every command."
  @spec global_args(t(), Config.t()) :: [String.t()]
  def global_args(uv, config) do
    offline = if config.offline, do: ["--offline"], else: []
    tls = if config.native_tls, do: [tls_flag(uv.version)], else: []
    offline ++ tls
  end

  @doc "What the flag for the system's certificates is called in a version of uv."
  @spec tls_flag(String.t()) :: String.t()
  def tls_flag(version) do
    if Version.compare(version, @system_certs_since) == :lt, do: "--native-tls", else: "--system-certs"
  end

  @doc """
  Runs uv, hands on what it says as it says it, and gives all of it at the end.

  Options: `:cd`, `:env` (more variables), `:print`.
  """
  @spec run(t(), Config.t(), [String.t()], keyword()) :: {:ok, String.t()} | {:error, String.t()}
  def run(uv, config, args, options) do
    variables = Keyword.get(options, :env, []) ++ cache(config) ++ Enum.map(@unset, &{&1, nil})
    command = [uv.path | args] ++ global_args(uv, config)

    case stream(command, [env: variables] ++ Keyword.take(options, [:cd, :print])) do
      {output, 0} -> {:ok, output}
      {output, status} -> {:error, if(output == "", do: "uv ended with status #{status}", else: output)}
    end
  end

  # Whoever names a cache wants all of it there.
  defp cache(%Config{cache_dir: nil}), do: []
  defp cache(%Config{cache_dir: dir}), do: [{"UV_CACHE_DIR", Path.join(dir, "uv-cache")}]

  @doc "Runs a program that ends with us; its stdout and stderr are handed on as they come, and given."
  @spec stream([String.t()], keyword()) :: {String.t(), non_neg_integer()}
  def stream(command, options) do
    print = Keyword.get(options, :print, fn _data -> :ok end)
    env = for {name, value} <- Keyword.get(options, :env, []), do: {to_charlist(name), value(value)}
    cd = for {:cd, dir} <- options, do: {:cd, String.to_charlist(dir)}

    port =
      Port.open(
        {:spawn_executable, ~c"/bin/sh"},
        [:binary, :exit_status, :use_stdio, :hide, {:args, ["-c", @shell, "sh" | command]}, {:env, env}] ++ cd
      )

    collect(port, print, [])
  end

  defp value(nil), do: false
  defp value(value), do: String.to_charlist(value)

  defp collect(port, print, said) do
    receive do
      {^port, {:data, data}} ->
        print.(data)
        collect(port, print, [said | data])

      {^port, {:exit_status, status}} ->
        {said |> IO.iodata_to_binary() |> valid_utf8(), status}
    end
  end

  defp valid_utf8(data) do
    case :unicode.characters_to_binary(data) do
      text when is_binary(text) -> text
      {_failed, text, _rest} -> text
    end
  end
end
