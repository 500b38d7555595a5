defmodule PyPort.Env.Uv do
  # The program uv: which one is used, how it is called, and that it ends when its caller ends.
  @moduledoc false

  alias PyPort.Env.{Config, Platform}

  @enforce_keys [:path, :version]
  defstruct [:path, :version]

  @type t :: %__MODULE__{path: Path.t(), version: String.t()}
  @typedoc "uv, or another program that is run like it."
  @type program :: %{:path => Path.t(), optional(atom()) => term()}
  @type print :: (iodata() -> term())

  # Dependency groups (`--no-dev`), relocatable environments and the lock as it is now.
  @oldest "0.5.0"

  # uv would take these as orders about another project, or against our own flags.
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

  @install "Install uv (`python3 -m pip install uv`, `pipx install uv`, `brew install uv`, `apk add uv`, or see " <>
             "https://docs.astral.sh/uv/), or name it with the option uv:"

  @doc "The uv to use; one of the version `uv_version:` is fetched where there is none."
  @spec find(Config.t(), print()) :: {:ok, t()} | {:error, String.t()}
  def find(config, print),
    do: with({:fetch, version} <- look(config), do: fetch(config, version, print))

  @doc "The same without fetching: `uv:`, else the one on the PATH, else the one in our cache."
  @spec look(Config.t()) :: {:ok, t()} | {:fetch, version :: String.t()} | {:error, String.t()}
  def look(%Config{uv: path} = config) when is_binary(path) do
    case System.find_executable(path) || System.find_executable(Path.expand(path, config.host_dir)) do
      nil -> {:error, "the uv of the option uv:, #{inspect(path)}, does not exist or may not be executed"}
      path -> probe(path)
    end
  end

  def look(%Config{uv_version: nil}),
    do: with({:error, words} <- on_path(), do: {:error, "#{words}. #{@install}, or set uv_version:"})

  def look(%Config{uv_version: version} = config) do
    cached = cached(config, version)

    case Enum.find([on_path(), probe(cached)], &match?({:ok, %{version: ^version}}, &1)) do
      nil when config.offline ->
        here = "uv #{version} is neither on the PATH nor #{cached}"
        {:error, "#{here}, and offline: true forbids to fetch it. #{@install}"}

      found ->
        found || {:fetch, version}
    end
  end

  defp on_path do
    case System.find_executable("uv") do
      nil -> {:error, "uv was not found on the PATH"}
      path -> probe(path)
    end
  end

  # A shim of pyenv or asdf is on the PATH even if no version behind it is chosen: only running it tells.
  defp probe(path) do
    with {said, 0} <- System.cmd(path, ["--version"], stderr_to_stdout: true),
         [_, version] <- Regex.run(~r/^uv (\d+\.\d+\.\d+)/, said) do
      if Platform.numbers(version) < Platform.numbers(@oldest),
        do: {:error, "#{path} is uv #{version}; it has to be #{@oldest} or newer"},
        else: {:ok, %__MODULE__{path: path, version: version}}
    else
      {said, status} -> {:error, "#{path} does not work (status #{status}: #{String.trim(said)})"}
      nil -> {:error, "#{path} is not uv"}
    end
  rescue
    error -> {:error, "#{path} does not work (#{Exception.message(error)})"}
  end

  # A cache may be shared between machines, or stages of an image, of different kinds.
  defp cached(config, version),
    do: Path.join([Config.cache_dir(config), "uv-bin", "#{version}-#{Platform.kind()}", "bin/uv"])

  # A uv of another version fetches this one, else pip does. Both compare the SHA-256 with the index's.
  defp fetch(config, version, print) do
    path = cached(config, version)
    print.("==> PyPort: fetching uv #{version} into #{Path.dirname(path)}\n")
    target = path |> Path.dirname() |> Path.dirname()
    what = ["install", "--no-deps", "--upgrade", "--target", target, "uv==#{version}"]
    python = System.find_executable("python3")

    fetched =
      case on_path() do
        {:ok, uv} ->
          run(uv, config, ["pip" | what] ++ Config.index_args(config), print: print)

        {:error, words} ->
          index = for url when is_binary(url) <- Enum.take(config.index, 1), do: "--index-url=#{url}"
          pip = ["-m", "pip"] ++ what ++ ["--quiet", "--only-binary=:all:"] ++ index
          result = if python, do: run(%{path: python}, config, pip), else: {:error, "there is no python3"}

          with {:error, said} <- result,
               do: {:error, "#{words}, and pip could not fetch it: #{String.trim(said)}. #{@install}"}
      end

    with {:ok, _said} <- fetched, do: probe(path)
  end

  @doc """
  Runs uv, passes its output on as it comes, and gives all of it at the end.

  Options: `:cd`, `:env` (more variables), `:print`.
  """
  @spec run(program(), Config.t(), [String.t()], keyword()) :: {:ok, String.t()} | {:error, String.t()}
  def run(uv, config, args, options \\ []) do
    cache =
      for dir when is_binary(dir) <- [config.cache_dir], do: {"UV_CACHE_DIR", Path.join(dir, "uv-cache")}

    # uv has renamed the second one.
    tls = for name <- ~w(UV_SYSTEM_CERTS UV_NATIVE_TLS), config.native_tls, do: {name, "1"}
    offline = if config.offline, do: [{"UV_OFFLINE", "1"}], else: []

    unset = for name <- @unset, do: {name, false}
    variables = unset ++ (options[:env] || []) ++ cache ++ tls ++ offline
    env = for {name, value} <- variables, do: {to_charlist(name), value && to_charlist(value)}
    settings = [:binary, :exit_status, :hide, args: ["-c", @shell, "sh", uv.path | args], env: env]
    port = Port.open({:spawn_executable, "/bin/sh"}, settings ++ Keyword.take(options, [:cd]))

    case collect(port, options[:print] || fn _data -> :ok end, []) do
      {output, 0} -> {:ok, output}
      {"", status} -> {:error, "#{Path.basename(uv.path)} ended with status #{status}"}
      {output, _status} -> {:error, output}
    end
  end

  defp collect(port, print, said) do
    receive do
      {^port, {:data, data}} ->
        print.(data)
        collect(port, print, [said | data])

      {^port, {:exit_status, status}} ->
        said = IO.iodata_to_binary(said)
        {if(String.valid?(said), do: said, else: inspect(said)), status}
    end
  end
end
