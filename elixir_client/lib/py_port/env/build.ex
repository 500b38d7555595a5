defmodule PyPort.Env.Build do
  # Builds one environment: under a lock, in a directory of its own that nobody looks into before it is whole, with
  # uv doing the work. What is asked for is PyPort.Env.Config's, what was built PyPort.Env.Stamp's.
  @moduledoc false

  alias PyPort.Env.{Advice, BuildLock, Config, Inventory, Package, Platform, Specifier, Stamp}
  alias PyPort.Uv

  @facts """
  import os, sys, sysconfig
  v = sys.version_info
  pre = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(v.releaselevel, "")
  base = getattr(sys, "_base_executable", sys.executable)
  for name, value in {
      "version": f"{v.major}.{v.minor}.{v.micro}" + (f"{pre}{v.serial}" if pre else ""),
      "implementation": sys.implementation.name,
      "free_threaded": int(bool(sysconfig.get_config_var("Py_GIL_DISABLED"))),
      "base_executable": os.path.realpath(base),
      "base_prefix": sys.base_prefix,
      "purelib": sysconfig.get_path("purelib"),
  }.items():
      print(f"{name}={value}")
  """

  @doc "Whether what is built is what is asked for, on this machine."
  @spec current?(Path.t(), Config.t()) :: boolean()
  def current?(base, config) do
    case Stamp.read(base, config.name) do
      {:ok, stamp} -> current?(base, config, stamp)
      :error -> false
    end
  end

  defp current?(base, config, stamp) do
    %{libc: libc, machine: machine} = Platform.here()

    stamp.config == Config.digest(config) and stamp.lock == lock_digest(Config.lock_path(config)) and
      stamp.source == Package.digest() and stamp.machine == machine and stamp.libc == libc and
      File.exists?(Path.join([base, stamp.dir, stamp.python.executable]))
  end

  defp lock_digest(path) do
    case File.read(path) do
      {:ok, text} -> Config.fingerprint(text)
      {:error, _none} -> nil
    end
  end

  @doc """
  Builds an environment unless it is built already.

  Gives words for people with `{:error, words}`: what uv said, and what to do about it.
  """
  @spec run(Config.t(), Path.t(), Uv.print()) :: {:ok, :built | :unchanged} | {:error, String.t()}
  def run(config, base, print) do
    if not config.force and current?(base, config) do
      {:ok, :unchanged}
    else
      alone(config, base, print, fn ->
        # Whoever had the lock may have done the work.
        if not config.force and current?(base, config),
          do: {:ok, :unchanged},
          else: build(config, base, print)
      end)
    end
  end

  # A build sweeps away every directory of its environment but the one in use.
  defp alone(config, base, print, fun) do
    waiting = fn words -> print.("==> PyPort: #{words}\n") end
    guarded(config, fn -> BuildLock.run(Path.join(base, "#{config.name}.lock"), waiting, fun) end)
  end

  @doc "Resolves the project anew, and writes its lock; `:upgrade` takes newer versions where the lock had older ones."
  @spec lock(Config.t(), Path.t(), keyword(), Uv.print()) :: {:ok, Path.t()} | {:error, String.t()}
  def lock(config, base, options, print) do
    alone(config, base, print, fn ->
      with {:ok, uv} <- Uv.find(config, print) do
        scratch = scratch(base, config.name)

        try do
          {project, _lock} = project(config, scratch)
          upgrade = if options[:upgrade], do: ["--upgrade"], else: []

          with :ok <- make_lock(uv, config, project, upgrade, print), do: {:ok, Config.lock_path(config)}
        after
          File.rm_rf(scratch)
        end
      end
    end)
  end

  # A disk that is full or may not be written ends in words, as everything else does.
  defp guarded(config, fun) do
    fun.() |> explain(config)
  rescue
    # ErlangError is what System.cmd/3 makes of a program that cannot be started.
    error in [File.Error, File.CopyError, File.RenameError, ErlangError] ->
      explain({:error, Exception.message(error) <> posix_hint(error)}, config)
  end

  # OTP's words differ from uv's, to which Advice listens.
  defp posix_hint(%{reason: :enospc}), do: "\nNo space left on device"
  defp posix_hint(%{reason: :erofs}), do: "\nRead-only file system"
  defp posix_hint(%{reason: :eacces}), do: "\nPermission denied"
  defp posix_hint(_error), do: ""

  defp explain({:error, said}, config) do
    advice = Advice.uv(said)
    start = "The Python environment #{inspect(config.name)} could not be built.\n"
    {:error, start <> String.trim_trailing(said) <> if(advice, do: "\n\n" <> advice, else: "")}
  end

  defp explain(result, _config), do: result

  # --- the steps --------------------------------------------------------------------------------

  defp build(config, base, print) do
    with {:ok, uv} <- Uv.find(config, print) do
      sweep(base, config.name)
      dir = scratch(base, config.name)
      print.("==> PyPort: building the Python environment #{inspect(config.name)} with uv #{uv.version}\n")

      try do
        with {:ok, stamp} <- fill(uv, config, dir, print) do
          previous = Stamp.read(base, config.name)
          Stamp.write!(base, Map.put(stamp, :dir, Path.basename(dir)))
          print.("==> PyPort: #{inspect(config.name)} is ready: #{words(stamp)}\n")
          keep_only(base, config.name, [dir | previous_dir(previous, base)])
          {:ok, :built}
        end
      after
        unless match?({:ok, %{dir: _whole}}, whole(base, config.name, dir)), do: File.rm_rf(dir)
      end
    end
  end

  defp whole(base, name, dir) do
    case Stamp.read(base, name) do
      {:ok, %{dir: found} = stamp} -> if found == Path.basename(dir), do: {:ok, stamp}, else: :error
      :error -> :error
    end
  end

  defp words(stamp) do
    "Python #{stamp.python.version}, packages: #{length(stamp.packages)}, codec: #{stamp.codec}"
  end

  # A new directory for each try: what a killed build has left cannot be mistaken for anything, and programs that still
  # run on the environment before this one keep it for their lifetime, or until the build after this.
  defp scratch(base, name) do
    unique = Base.encode32(:rand.bytes(5), case: :lower, padding: false)
    dir = Path.join(base, "#{name}-#{unique}")
    File.mkdir_p!(dir)
    dir
  end

  defp sweep(base, name) do
    keep_only(base, name, previous_dir(Stamp.read(base, name), base))
  end

  defp previous_dir({:ok, %{dir: dir}}, base), do: [Path.join(base, dir)]
  defp previous_dir(:error, _base), do: []

  defp keep_only(base, name, kept) do
    for dir <- Path.wildcard(Path.join(base, "#{name}-*")),
        dir not in kept and Path.basename(dir) =~ ~r/^#{name}-[a-z2-7]{8}$/,
        do: File.rm_rf(dir)
  end

  defp fill(uv, config, dir, print) do
    {project, lock} = project(config, dir)
    venv = Path.join(dir, "venv")
    env = [{"UV_PROJECT_ENVIRONMENT", venv}, {"UV_VENV_RELOCATABLE", "1"}]

    with :ok <- ensure_lock(uv, config, project, lock, print),
         :ok <- make_venv(uv, config, project, venv, print),
         :ok <- sync(uv, config, project, venv, env, print),
         {:ok, python} <- facts(venv),
         :ok <- check_python(config, project, python),
         :ok <- Package.install(uv, config, python, dir, print),
         {:ok, codec} <- finish(python, print) do
      tidy(dir)
      {:ok, stamp(uv, config, dir, project, python, codec)}
    end
  end

  # What is given as text gets a directory, where relative paths in it would mean nothing: those need `project:`.
  defp project(%Config{project: nil} = config, dir) do
    project = Path.join(dir, "project")
    lock = Config.lock_path(config)
    File.mkdir_p!(project)
    File.write!(Path.join(project, "pyproject.toml"), config.pyproject_toml)
    if File.exists?(lock), do: File.cp!(lock, Path.join(project, "uv.lock"))
    {project, lock}
  end

  defp project(%Config{project: project} = config, _dir), do: {project, Config.lock_path(config)}

  defp ensure_lock(uv, config, project, lock, print) do
    cond do
      not File.exists?(Path.join(project, "pyproject.toml")) ->
        {:error, "there is no pyproject.toml in #{project} (the option project:)"}

      File.exists?(lock) ->
        :ok

      config.frozen ->
        {:error,
         "frozen: true needs the lock #{lock}, and there is none: run `mix py_port.lock` and commit it"}

      true ->
        make_lock(uv, config, project, [], print)
    end
  end

  defp make_lock(uv, config, project, more, print) do
    args = ["lock"] ++ more ++ python_args(config) ++ Config.index_args(config)

    with {:ok, _said} <- Uv.run(uv, config, args, cd: project, print: print) do
      if config.project == nil,
        do: Stamp.replace!(Config.lock_path(config), File.read!(Path.join(project, "uv.lock")))

      :ok
    end
  end

  defp make_venv(uv, config, project, venv, print) do
    args =
      ["venv", "--quiet", "--relocatable", "--prompt", to_string(config.name)] ++
        python_args(config) ++ [venv]

    with {:ok, _said} <- Uv.run(uv, config, args, cd: project, print: print), do: :ok
  end

  defp sync(uv, config, project, venv, env, print) do
    # Without --python uv replaces an environment whose Python is not the one it would choose.
    python = ["--python", Path.join(venv, "bin/python")]

    args =
      ["sync", "--locked", "--no-dev", "--no-editable"] ++
        python ++ own_packages(config, project) ++ Config.index_args(config) ++ config.extra_args

    with {:ok, _said} <- Uv.run(uv, config, args, cd: project, env: env, print: print), do: :ok
  end

  # uv keeps the wheel it has built of a directory until that directory's pyproject.toml changes; that something else in
  # it has changed may be why we are here.
  defp own_packages(%Config{project: nil}, _project), do: []

  defp own_packages(_config, project) do
    lock = File.read!(Path.join(project, "uv.lock"))

    for [_, name] <-
          Regex.scan(~r/\nname = "([^"]+)"\n(?:version = .*\n)?source = \{ (?:editable|directory) =/, lock),
        do: "--reinstall-package=#{name}"
  end

  defp python_args(%Config{python: nil}), do: []
  defp python_args(%Config{python: python}), do: ["--python", python]

  defp facts(venv) do
    python = Path.join(venv, "bin/python")

    case System.cmd(python, ["-I", "-c", @facts], stderr_to_stdout: true) do
      {said, 0} ->
        facts =
          for line <- String.split(said, "\n"),
              [name, value] <- [String.split(line, "=", parts: 2)],
              into: %{},
              do: {name, value}

        {:ok,
         %{
           executable: python,
           version: facts["version"],
           implementation: facts["implementation"],
           free_threaded: facts["free_threaded"] == "1",
           base_executable: facts["base_executable"],
           base_prefix: facts["base_prefix"],
           purelib: facts["purelib"]
         }}

      {said, status} ->
        {:error, "the Python of the new environment ended with status #{status}: #{said}"}
    end
  end

  defp check_python(config, project, python) do
    wanted = requires_python(project)

    cond do
      not Specifier.satisfied?(python.version, wanted) ->
        {:error,
         "Python #{python.version} (#{python.base_executable}) does not satisfy requires-python #{inspect(wanted)}; see the option " <>
           "python:#{if config.python, do: ", which asks for #{inspect(config.python)}"}"}

      not Specifier.satisfied?(python.version, ">=3.11") ->
        {:error,
         "Python #{python.version} (#{python.base_executable}) is too old: the port server needs 3.11 or newer. Say so in the " <>
           "project: requires-python = \">=3.11\""}

      true ->
        :ok
    end
  end

  # uv writes it into the lock, in its own plain form; a TOML reader is not needed.
  defp requires_python(project) do
    with {:ok, lock} <- File.read(Path.join(project, "uv.lock")),
         [_, wanted] <- Regex.run(~r/^requires-python = "([^"]*)"/m, lock) do
      wanted
    else
      _none -> ""
    end
  end

  # Bytecode now: else the first request pays for it (seconds, for pandas), and on a read-only disk every one does. Not
  # uv's --compile-bytecode, because packages' own tests are half of what it compiles. A file that is no Python of this
  # version stays uncompiled, and nothing is lost. The last line says which codec the server has.
  @finish """
  import compileall, re, sys
  compileall.compile_dir(sys.argv[1], quiet=2, workers=0, rx=re.compile("/tests?/"))
  from port_server.etf import codec_name
  print("\\ncodec", codec_name)
  """

  defp finish(python, print) do
    print.("==> PyPort: compiling bytecode\n")

    case System.cmd(python.executable, ["-I", "-c", @finish, python.purelib], stderr_to_stdout: true) do
      {said, 0} -> {:ok, said |> String.split() |> List.last()}
      {said, _status} -> {:error, "the port server does not work in the new environment:\n#{said}"}
    end
  end

  defp tidy(dir) do
    for name <- ~w(port-server wheel requirements.txt), do: File.rm_rf(Path.join(dir, name))
  end

  # --- the record -------------------------------------------------------------------------------

  defp stamp(uv, config, dir, project, python, codec) do
    platform = Platform.here()

    %{
      name: config.name,
      kind: :venv,
      config: Config.digest(config),
      lock: lock_digest(Config.lock_path(config)),
      source: Package.digest(),
      uv: uv.version,
      os: platform.os,
      machine: platform.machine,
      libc: platform.libc,
      needs: python.purelib |> Inventory.binaries() |> Inventory.needs(),
      requires_python: requires_python(project),
      codec: codec,
      python: %{
        version: python.version,
        executable: "venv/bin/python",
        base_executable: python.base_executable,
        base_prefix: python.base_prefix,
        packages_dir: Path.relative_to(python.purelib, dir)
      },
      packages: Inventory.packages(python.purelib)
    }
  end
end
