defmodule Mix.Tasks.PyPort.Doctor do
  @shortdoc "Shows what PyPort finds here, whether it works, and what to do if not"

  @moduledoc """
  Prints the whole picture: this machine, uv, the caches, every Python environment with its packages and its codec,
  and a real server with the latency of a real round trip. Ends with what to do, and with status 1 if a server does not
  work.

      mix py_port.doctor
  """
  use Mix.Task

  alias PyPort.{Env, Server}
  alias PyPort.Env.{Build, Check, Config, Package, Platform, Uv}

  @round_trips 2_000

  @hidden """
  import sys
  from port_server.etf import codec_name
  from port_server.runtime import shadows
  [codec_name, sys.version.split()[0], list(shadows.found())]
  """

  @impl true
  def run(_args) do
    Mix.Task.run("loadconfig")
    configs = Env.configured()
    # The application starts without building an environment and without a server: those are looked at here.
    Application.put_env(:py_port, :pool, false)
    uv_init = Application.get_env(:py_port, :uv_init)
    Application.delete_env(:py_port, :uv_init)
    {:ok, _started} = Application.ensure_all_started(:py_port)
    if uv_init, do: Application.put_env(:py_port, :uv_init, uv_init)

    advice = machine(List.first(configs) || %Config{host_dir: File.cwd!()})
    trouble = if configs == [], do: bare(), else: Enum.flat_map(configs, &environment/1)
    for words <- Enum.uniq(advice ++ trouble), do: Mix.shell().info("\n* " <> words)

    if trouble == [] do
      Mix.shell().info("\nEverything works.")
    else
      Mix.shell().info("\nThis does not work yet; see above.")
      exit({:shutdown, 1})
    end
  end

  # --- the parts; each gives advice -------------------------------------------------------------

  defp machine(config) do
    here = Platform.here()
    cache = Config.cache_dir(config)
    otp = :erlang.system_info(:otp_release)
    say("py_port", "#{Application.spec(:py_port, :vsn)}, Elixir #{System.version()}, OTP #{otp}")
    say("machine", "#{here.os}, #{here.machine}, #{Platform.words(here.libc)}")

    {uv, advice} =
      case Uv.look(config) do
        {:ok, uv} -> {"#{uv.version} (#{uv.path})", []}
        {:fetch, version} -> {"#{version} is fetched for the first build (uv_version:)", []}
        {:error, words} -> {"none", [words]}
      end

    say("uv", uv)
    say("cache", cache)
    say("C compiler", Enum.find_value(~w(cc gcc clang), "none", &System.find_executable/1))
    probe = Path.join(cache, ".probe-#{System.pid()}")

    with :ok <- File.mkdir_p(cache),
         :ok <- File.touch(probe),
         :ok <- File.rm(probe),
         do: advice,
         else: (_error -> advice ++ ["#{cache} cannot be written: set cache_dir: to a directory that can"])
  end

  defp bare do
    missing = "none is configured (config :py_port, :uv_init)"
    say("environment", "#{missing}; servers would use the python3 of the PATH")
    round_trip([])
  end

  defp environment(%Config{name: name} = config) do
    Mix.shell().info("")
    say("environment", inspect(name))
    lock = Config.lock_path(config)
    say("lock", if(File.exists?(lock), do: Path.relative_to_cwd(lock), else: "none yet"))

    case Env.fetch(name) do
      {:ok, manifest, dir} ->
        picture(manifest, dir)
        unless Build.current?(Env.base(), config), do: say("state", "out of date: run mix py_port.sync")
        problem = Check.problem(manifest, dir, Platform.here())
        if problem, do: [problem], else: round_trip(python_env: name)

      :error ->
        ["#{inspect(name)} is not built: run mix py_port.sync"]
    end
  end

  defp picture(manifest, dir) do
    say("directory", Path.relative_to_cwd(dir))
    say("python", "#{manifest.python.version} (#{manifest.python.base_executable})")
    needs = "with uv #{manifest.uv}; needs glibc #{manifest.glibc || "of any version"}"
    say("built for", "#{manifest.machine}, #{Platform.words(manifest.libc)}, #{needs}")
    say("server", if(manifest.source == Package.digest(), do: "of this py_port", else: "of another py_port"))
    say("packages", Enum.map_join(manifest.packages, ", ", &"#{&1.name} #{&1.version}"))
  end

  # --- a real server ----------------------------------------------------------------------------

  defp round_trip(options) do
    began = System.monotonic_time(:millisecond)
    {:ok, server} = Server.start_link([logger: false] ++ options)
    ask = fn code -> PyPort.eval(code, %{}, server: server, timeout: 60_000) end

    case ask.(@hidden) do
      {:ok, [codec, python, hidden]} ->
        say("first answer", "after #{System.monotonic_time(:millisecond) - began} ms")
        say("round trip", latency(fn -> ask.("1 + 1") end))
        say("runs", "Python #{python}, codec #{codec}")
        GenServer.stop(server)
        for words <- codec(codec) ++ hidden, do: Mix.shell().info("\n* " <> words)
        []

      {:error, error} ->
        say("server", "does not work")
        GenServer.stop(server)
        [Exception.message(error)]
    end
  end

  defp latency(ask) do
    times = for(_ <- 1..@round_trips, {time, {:ok, 2}} = :timer.tc(ask), do: time) |> Enum.sort()
    [middle, high] = for percent <- [50, 99], do: Enum.at(times, div(@round_trips * percent, 100))
    "#{middle} us in the middle, #{high} us at the 99th percentile"
  end

  defp codec("native"), do: []

  defp codec(_slower) do
    [
      "The native codec is missing, so encoding and decoding are some 20 times slower. Install a C compiler and Python's " <>
        "headers (Debian: gcc libc6-dev python3-dev; Alpine: gcc musl-dev python3-dev), then mix py_port.sync --force."
    ]
  end

  defp say(label, text), do: Mix.shell().info(String.pad_trailing(label <> ":", 14) <> " " <> text)
end
