defmodule Mix.Tasks.PyPort.Doctor do
  @shortdoc "Shows what PyPort finds here, whether it works, and what to do if not"

  @moduledoc """
  Prints the whole picture: this machine, uv, the caches, every Python environment with its packages and its codec,
  and a real server with the latency of a real round trip. Ends with what to do, and with status 1 if a server does not
  work.

      mix py_port.doctor
  """
  use Mix.Task

  alias PyPort.{Env, Server, Uv}
  alias PyPort.Env.{Build, Check, Config, Package, Platform}

  @round_trips 2_000
  @width 14

  @impl true
  def run(_args) do
    Mix.Task.run("loadconfig")
    configs = Env.configured()
    # Nothing is built, and no server started, but the ones that are looked at here.
    Application.put_env(:py_port, :pool, false)
    uv_init = Application.get_env(:py_port, :uv_init)
    Application.delete_env(:py_port, :uv_init)
    {:ok, _started} = Application.ensure_all_started(:py_port)
    if uv_init, do: Application.put_env(:py_port, :uv_init, uv_init)

    machine()
    advice = Enum.flat_map([List.first(configs) || %Config{host_dir: File.cwd!()}], &tools/1)
    trouble = if configs == [], do: bare(), else: Enum.flat_map(configs, &environment/1)
    conclude(advice ++ trouble, trouble == [])
  end

  defp conclude(advice, works?) do
    for words <- Enum.uniq(advice), do: Mix.shell().info("\n* " <> words)
    Mix.shell().info(if works?, do: "\nEverything works.", else: "\nThis does not work yet; see above.")
    unless works?, do: exit({:shutdown, 1})
  end

  # --- the parts; each gives advice -------------------------------------------------------------

  defp machine do
    here = Platform.here()
    otp = :erlang.system_info(:otp_release)
    say("py_port", "#{Application.spec(:py_port, :vsn)}, Elixir #{System.version()}, OTP #{otp}")
    say("machine", "#{here.os}, #{here.machine}, #{Platform.words(here.libc)}")
  end

  defp tools(config) do
    cache = Config.cache_dir(config)
    compiler = Enum.find_value(~w(cc gcc clang), &System.find_executable/1)

    uv_advice =
      case Uv.look(config) do
        {:ok, uv} ->
          say("uv", "#{uv.version} (#{uv.path})")
          []

        {:fetch, version} ->
          say("uv", "#{version} is fetched for the first build (uv_version:)")
          []

        {:error, words} ->
          say("uv", "none")
          [words]
      end

    say("cache", cache <> if(writable?(cache), do: "", else: " (cannot be written)"))
    say("C compiler", compiler || "none")

    uv_advice ++
      if writable?(cache),
        do: [],
        else: ["#{cache} cannot be written: set cache_dir: to a directory that can"]
  end

  defp writable?(dir) do
    probe = Path.join(dir, ".probe-#{System.pid()}")

    with :ok <- File.mkdir_p(dir), :ok <- File.write(probe, "") do
      File.rm(probe)
      true
    else
      {:error, _reason} -> false
    end
  end

  defp bare do
    say(
      "environment",
      "none is configured (config :py_port, :uv_init); this is the python3 that servers would use"
    )

    round_trip([])
  end

  defp environment(%Config{name: name} = config) do
    Mix.shell().info("")
    say("environment", inspect(name))
    lock = Config.lock_path(config)
    say("lock", if(File.exists?(lock), do: Path.relative_to_cwd(lock), else: "none yet"))

    case Env.fetch(name) do
      {:ok, stamp, dir} ->
        picture(stamp, dir)

        stale =
          if Build.current?(Env.base(), config),
            do: [],
            else: ["#{inspect(name)} is out of date: run mix py_port.sync"]

        findings = Check.findings(stamp, dir, Platform.here())
        for {_severity, _tag, words} <- findings, do: say("finding", words)
        for words <- stale, do: say("state", words)
        refused = for {:refuse, _tag, words} <- findings, do: words
        if refused == [], do: round_trip(python_env: name), else: refused

      :error ->
        say("state", "not built")
        ["#{inspect(name)} is not built: run mix py_port.sync"]
    end
  end

  defp picture(stamp, dir) do
    say("directory", Path.relative_to_cwd(dir))

    say(
      "python",
      "#{stamp.python.version} (#{stamp.python.base_executable}), requires-python #{inspect(stamp.requires_python)}"
    )

    say("built for", "#{stamp.machine}, #{Platform.words(stamp.libc)}, with uv #{stamp.uv}")

    say(
      "needs",
      "glibc #{stamp.needs.glibc || "of any version"}, #{length(stamp.needs.libraries)} libraries of the system"
    )

    say("server", if(stamp.source == Package.digest(), do: "of this py_port", else: "of another py_port"))
    say("packages", Enum.map_join(stamp.packages, ", ", &"#{&1.name} #{&1.version}"))
  end

  # --- a real server ----------------------------------------------------------------------------

  defp round_trip(options) do
    began = System.monotonic_time(:microsecond)
    {:ok, server} = Server.start_link([logger: false] ++ options)

    case PyPort.eval("1 + 1", %{}, server: server, timeout: 60_000) do
      {:ok, 2} ->
        start = System.monotonic_time(:microsecond) - began
        say("first answer", "after #{div(start, 1_000)} ms")
        say("round trip", latency(server))
        advice = codec(server) ++ hidden(server)
        GenServer.stop(server)
        for words <- advice, do: Mix.shell().info("\n* " <> words)
        []

      {:error, error} ->
        say("server", "does not work")
        GenServer.stop(server)
        [Exception.message(error)]
    end
  end

  defp latency(server) do
    times =
      for _ <- 1..@round_trips do
        {time, {:ok, 2}} = :timer.tc(fn -> PyPort.eval("1 + 1", %{}, server: server) end)
        time
      end
      |> Enum.sort()

    middle = Enum.at(times, div(@round_trips, 2))
    "#{middle} us in the middle, #{Enum.at(times, div(@round_trips * 99, 100))} us at the 99th percentile"
  end

  defp codec(server) do
    {:ok, [codec, python]} =
      PyPort.eval(
        "import sys\nfrom port_server.etf import codec_name\n[codec_name, sys.version.split()[0]]",
        %{},
        server: server
      )

    say("runs", "Python #{python}, codec #{codec}")

    if codec == "native" do
      []
    else
      [
        "The native codec is missing, so encoding and decoding are some 20 times slower. Install a C compiler and Python's " <>
          "headers (Debian: gcc libc6-dev python3-dev; Alpine: gcc musl-dev python3-dev), then mix py_port.sync --force."
      ]
    end
  end

  defp hidden(server) do
    code = "from port_server.runtime import shadows\nlist(shadows.found())"
    {:ok, sentences} = PyPort.eval(code, %{}, server: server)
    sentences
  end

  defp say(label, text),
    do: Mix.shell().info(String.pad_trailing(label <> ":", @width) <> " " <> to_string(text))
end
