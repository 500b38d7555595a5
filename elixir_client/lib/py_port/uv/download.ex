defmodule PyPort.Uv.Download do
  # Fetches a uv that nobody installed: the wheel of one version, from the package index, into our own cache.
  #
  # A wheel is a zip file, so nothing but OTP is needed: httpc asks the index, :zip unpacks. The index is read as HTML
  # (PEP 503), because every mirror speaks that, and OTP before 27 has no JSON. A slim OTP may lack inets or ssl: then
  # a python3 with pip does the same, by its own configuration of indexes, proxies and certificates; pip comes second
  # because an image that has Elixir need not have Python.
  #
  # The SHA-256 is the one that the index states. It tells a damaged or truncated file, and a file host that is not to
  # be trusted as much as the index; against a lying index only a uv of one's own helps (`uv:`).
  @moduledoc false

  alias PyPort.Env.{Config, Platform}

  @pypi "https://pypi.org/simple"

  # A wheel of uv has some 20 MB; a line on which that takes longer is no line.
  @timeout_ms 120_000
  # A mirror leads to its file host, and that to where the file lies; more is a circle.
  @redirects 5

  @doc "Where a version lives in the cache."
  @spec path(Path.t(), String.t()) :: Path.t()
  def path(cache, version), do: Path.join([cache, "uv-bin", "#{version}-#{target()}", "uv"])

  # A cache may be shared between machines (or an image's stages) of different kinds.
  defp target do
    case Platform.here() do
      %{libc: {kind, _version}, machine: machine} -> "#{kind}-#{machine}"
      %{os: os, machine: machine} -> "#{os}-#{machine}"
    end
  end

  @doc "Fetches a version and gives its path."
  @spec fetch(Config.t(), String.t(), PyPort.Uv.print()) :: {:ok, Path.t()} | {:error, String.t()}
  def fetch(config, version, print) do
    path = path(Config.cache_dir(config), version)
    index = index(config)
    print.("==> PyPort: fetching uv #{version} from #{redact(index)} into #{Path.dirname(path)}\n")

    with {:ok, wheel} <- wheel(index, version),
         {:ok, binary} <- unpack(wheel),
         do: install(path, binary)
  end

  defp install(path, binary) do
    aside = "#{path}.#{System.pid()}-#{System.unique_integer([:positive])}"

    with :ok <- File.mkdir_p(Path.dirname(path)),
         :ok <- File.write(aside, binary),
         :ok <- File.chmod(aside, 0o755),
         :ok <- File.rename(aside, path) do
      {:ok, path}
    else
      {:error, reason} ->
        File.rm(aside)
        {:error, "uv could not be written to #{path}: #{:file.format_error(reason)}; see cache_dir:"}
    end
  end

  defp index(%Config{index: index}) do
    Enum.find(index, &is_binary/1) || System.get_env("UV_DEFAULT_INDEX") || System.get_env("UV_INDEX_URL") ||
      @pypi
  end

  # URLs of private indexes carry passwords.
  defp redact(url), do: String.replace(url, ~r{//[^/@]*@}, "//***@")

  defp wheel(index, version) do
    if start_client() do
      page = String.trim_trailing(index, "/") <> "/uv/"

      with {:ok, html} <- get(page),
           {:ok, url, sha256} <- choose(html, page, version, Platform.here()),
           {:ok, wheel} <- get(url),
           :ok <- verify(wheel, sha256, redact(url)),
           do: {:ok, wheel}
    else
      with_pip(version)
    end
  end

  @doc """
  Finds the wheel of a version for a platform on an index's page, with its hash.

  A link is `<a href="URL#sha256=HEX" ...>NAME</a>`; the name's last part says what it runs on (PEP 425, 600, 656).
  """
  @spec choose(String.t(), String.t(), String.t(), Platform.t()) ::
          {:ok, String.t(), String.t()} | {:error, String.t()}
  def choose(html, page, version, platform) do
    tag = tag(platform)

    found =
      for [_, href, name] <-
            Regex.scan(
              ~r{<a\s[^>]*?href="([^"]*)"[^>]*>\s*(uv-#{Regex.escape(version)}-[^<\s]*\.whl)\s*</a>},
              html
            ),
          name =~ tag,
          do: String.split(href, "#sha256=")

    case found do
      [[url, sha256] | _rest] ->
        {:ok, follow(page, unescape(url)), String.downcase(sha256)}

      [[_url] | _rest] ->
        {:error, "#{redact(page)} states no SHA-256 for uv #{version}, so it is not taken"}

      [] ->
        {:error,
         "#{redact(page)} has no uv #{version} for #{platform.machine} and #{words(platform)}; see uv_version:"}
    end
  end

  defp unescape(url), do: String.replace(url, "&amp;", "&")

  # Where a link leads. Within a host its credentials go along, as with pip; another host is not told them.
  defp follow(from, link) do
    from = URI.parse(from)
    to = URI.merge(from, link)
    same? = {to.scheme, to.host, to.port} == {from.scheme, from.host, from.port}
    userinfo = to.userinfo || if(same?, do: from.userinfo)
    to_string(%{to | userinfo: userinfo, authority: nil})
  end

  defp words(%{libc: :unknown, os: os}), do: os
  defp words(%{libc: libc}), do: Platform.words(libc)

  defp tag(%{libc: {:musl, _version}, machine: machine}), do: ~r/musllinux_\d+_\d+_#{machine}\b/
  defp tag(%{libc: {:glibc, _version}, machine: machine}), do: ~r/manylinux_\d+_\d+_#{machine}\b/
  defp tag(%{os: "darwin", machine: "aarch64"}), do: ~r/macosx_\d+_\d+_arm64\b/
  defp tag(%{os: "darwin", machine: machine}), do: ~r/macosx_\d+_\d+_#{machine}\b/
  defp tag(%{os: os}), do: ~r/#{os}/

  @doc "Compares data with the hash it should have."
  @spec verify(binary(), String.t(), String.t()) :: :ok | {:error, String.t()}
  def verify(data, sha256, what) do
    case apply(:crypto, :hash, [:sha256, data]) |> Base.encode16(case: :lower) do
      ^sha256 ->
        :ok

      other ->
        {:error, "what came as #{what} has the SHA-256 #{other}, not #{sha256} as the index says: not used"}
    end
  end

  @doc "Takes the program out of its wheel."
  @spec unpack(binary()) :: {:ok, binary()} | {:error, String.t()}
  def unpack(wheel) do
    wanted = fn {:zip_file, name, _info, _comment, _offset, _size} ->
      to_string(name) =~ ~r{/(scripts|bin)/uv$}
    end

    case :zip.unzip(wheel, [
           :memory,
           {:file_filter, fn entry -> elem(entry, 0) == :zip_file and wanted.(entry) end}
         ]) do
      {:ok, [{_name, binary}]} -> {:ok, binary}
      _other -> {:error, "the wheel of uv is not what was expected: no program uv in it"}
    end
  end

  # --- httpc ------------------------------------------------------------------------------------

  # Under Mix (Elixir 1.15 and newer) the code paths hold only what the project names.
  defp start_client do
    for app <- [:crypto, :inets, :ssl], do: ensure_path(app)

    case Application.ensure_all_started(:inets) do
      {:ok, _started} -> match?({:ok, _started}, Application.ensure_all_started(:ssl)) and profile()
      {:error, _reason} -> false
    end
  end

  defp ensure_path(app) do
    if Code.ensure_loaded?(Mix) and function_exported?(Mix, :ensure_application!, 1),
      do: apply(Mix, :ensure_application!, [app])
  rescue
    _missing -> :ok
  end

  defp profile do
    case apply(:inets, :start, [:httpc, [profile: __MODULE__]]) do
      {:ok, _pid} -> :ok
      {:error, {:already_started, _pid}} -> :ok
    end

    for {option, names} <- [
          proxy: ~w(http_proxy HTTP_PROXY),
          https_proxy: ~w(https_proxy HTTPS_PROXY all_proxy ALL_PROXY)
        ],
        url = Enum.find_value(names, &System.get_env/1),
        %URI{host: host, port: port} when is_binary(host) <- [URI.parse(url)] do
      apply(:httpc, :set_options, [
        [{option, {{String.to_charlist(host), port || 80}, no_proxy()}}],
        __MODULE__
      ])
    end

    true
  end

  defp no_proxy do
    (System.get_env("no_proxy") || System.get_env("NO_PROXY") || "")
    |> String.split([",", " "], trim: true)
    |> Enum.map(&String.to_charlist/1)
  end

  defp get(url, redirects \\ @redirects)
  defp get(url, 0), do: {:error, "#{redact(url)} leads in circles"}

  defp get(url, redirects) do
    {bare_url, headers} = credentials(url)
    options = [timeout: @timeout_ms, autoredirect: false] ++ tls(url)

    request =
      {String.to_charlist(bare_url),
       [{~c"accept", ~c"text/html, */*"}, {~c"user-agent", ~c"py_port"} | headers]}

    case apply(:httpc, :request, [:get, request, options, [body_format: :binary], __MODULE__]) do
      {:ok, {{_http, 200, _reason}, _headers, body}} ->
        {:ok, body}

      {:ok, {{_http, status, _reason}, answer, _body}} when status in [301, 302, 303, 307, 308] ->
        case List.keyfind(answer, ~c"location", 0) do
          {_name, location} -> url |> follow(to_string(location)) |> get(redirects - 1)
          nil -> {:error, "#{redact(url)} answered with status #{status} and leads nowhere"}
        end

      {:ok, {{_http, status, _reason}, _headers, _body}} ->
        {:error, "#{redact(url)} answered with status #{status}; see index: and uv_version:"}

      {:error, reason} ->
        {:error, "#{redact(url)} cannot be reached (#{why(reason)}). " <> reach_words()}
    end
  end

  defp reach_words do
    "Check the network and HTTPS_PROXY, name a mirror with index:, or install uv yourself"
  end

  defp why({:failed_connect, details}) do
    case List.keyfind(details, :inet, 0) || List.keyfind(details, :inet6, 0) do
      {_family, _options, reason} -> inspect(reason, limit: 8)
      nil -> inspect(details, limit: 8)
    end
  end

  defp why(reason), do: inspect(reason, limit: 8)

  defp credentials(url) do
    case URI.parse(url) do
      %URI{userinfo: info} = uri when is_binary(info) ->
        basic = "Basic " <> Base.encode64(URI.decode(info))
        {to_string(%{uri | userinfo: nil, authority: nil}), [{~c"authorization", String.to_charlist(basic)}]}

      _plain ->
        {url, []}
    end
  end

  defp tls("https:" <> _rest) do
    [
      ssl:
        [
          verify: :verify_peer,
          depth: 8,
          customize_hostname_check: [match_fun: apply(:public_key, :pkix_verify_hostname_match_fun, [:https])]
        ] ++ roots()
    ]
  end

  defp tls(_http), do: []

  # SSL_CERT_FILE is what every other tool here goes by, and what a company sets.
  defp roots do
    case System.get_env("SSL_CERT_FILE") do
      file when file not in [nil, ""] -> [cacertfile: String.to_charlist(file)]
      _none -> [cacerts: apply(:public_key, :cacerts_get, [])]
    end
  end

  # --- pip --------------------------------------------------------------------------------------

  defp with_pip(version) do
    dir =
      Path.join(
        System.tmp_dir() || "/tmp",
        "py_port-uv-#{System.pid()}-#{System.unique_integer([:positive])}"
      )

    File.mkdir_p!(dir)

    arguments = [
      "-m",
      "pip",
      "download",
      "--quiet",
      "--no-deps",
      "--only-binary",
      ":all:",
      "--dest",
      dir,
      "uv==#{version}"
    ]

    try do
      with python when is_binary(python) <- System.find_executable("python3"),
           {_said, 0} <- System.cmd(python, arguments, stderr_to_stdout: true),
           [wheel] <- Path.wildcard(Path.join(dir, "*.whl")) do
        File.read(wheel)
      else
        nil ->
          {:error,
           "this OTP has no inets and ssl, and there is no python3 with pip either, to fetch uv with: install uv"}

        {said, _status} when is_binary(said) ->
          {:error, "pip could not fetch uv #{version}: #{String.trim(said)}"}

        [] ->
          {:error, "pip has fetched no wheel of uv #{version}"}
      end
    after
      File.rm_rf(dir)
    end
  end
end
