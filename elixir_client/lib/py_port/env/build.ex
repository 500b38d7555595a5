defmodule PyPort.Env.Build do
  # Builds one environment with uv, in a directory of its own beside the one that is in use. The manifest swaps the new
  # one in when it is whole; a directory that a running VM uses stays.
  @moduledoc false

  alias PyPort.Env.{BuildLock, Check, Config, Hints, Inventory, Manifest, Package, Platform, Uv}

  @type result :: {:ok, :built | :unchanged} | {:error, String.t()}

  # One file for each VM that uses a directory, named by the pid of the VM.
  @users "users"

  @facts """
  import os, sys, sysconfig
  version = sys.version.split()[0].rstrip("+")
  base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
  if sys.version_info < (3, 11):
      sys.exit(f"Python {version} ({base}) is too old: the port server needs 3.11 or newer. "
               'Say so in the project: requires-python = ">=3.11"')
  print(version, base, sys.base_prefix, sysconfig.get_path("purelib"), sep="\\n")
  """

  # Without it the first request compiles (seconds, for pandas), and on a read-only disk every start does. Not uv's
  # --compile-bytecode, because packages' own tests are half of what it compiles.
  @bytecode """
  import compileall, re, sys
  compileall.compile_dir(sys.argv[1], quiet=2, workers=0, rx=re.compile("/tests?/"))
  """

  @doc "Whether the environment that is built is the one that the configuration and the lock ask for."
  @spec current?(Path.t(), Config.t()) :: boolean()
  def current?(base, config) do
    with {:ok, manifest, dir} <- Manifest.read(base, config.name) do
      wanted = wanted(config)
      Map.take(manifest, Map.keys(wanted)) == wanted and Check.interpreter(manifest, dir) == nil
    else
      :error -> false
    end
  end

  defp wanted(config) do
    lock =
      with {:ok, text} <- File.read(Config.lock_path(config)), do: Config.fingerprint(text), else: (_ -> nil)

    Map.merge(Platform.here(), %{config: Config.digest(config), lock: lock, source: Package.digest()})
  end

  @doc "Builds an environment unless it is built. An error is uv's own words, and what to do about them."
  @spec run(Config.t(), Path.t(), Uv.print()) :: result()
  def run(config, base, print) do
    current? = fn -> not config.force and current?(base, config) end

    if current?.() do
      {:ok, :unchanged}
    else
      # The earlier holder of the lock may have done the work.
      alone(config, base, print, fn ->
        if current?.(), do: {:ok, :unchanged}, else: build(config, base, print)
      end)
    end
  end

  @doc "Resolves the project anew and writes its lock; `:upgrade` takes the newest versions."
  @spec lock(Config.t(), Path.t(), keyword(), Uv.print()) :: {:ok, Path.t()} | {:error, String.t()}
  def lock(config, base, options, print) do
    alone(config, base, print, fn ->
      with {:ok, uv} <- Uv.find(config, print) do
        in_new_dir(config, base, fn dir ->
          project = project!(config, dir)
          upgrade = if options[:upgrade], do: ["--upgrade"], else: []

          with {:ok, _said} <- make_lock(uv, config, project, upgrade, cd: project, print: print),
               do: {:ok, Config.lock_path(config)}
        end)
      end
    end)
  end

  # OTP's words differ from uv's, which the hints are for.
  @reasons %{enospc: "No space left on device", erofs: "Read-only file system", eacces: "Permission denied"}

  defp alone(config, base, print, fun) do
    waiting = fn words -> print.("==> PyPort: #{words}\n") end

    with {:error, said} <- BuildLock.run(Path.join(base, "#{config.name}.lock"), waiting, fun),
         do: explain(said, config)
  rescue
    # A disk that is full or read-only; ErlangError is a program that cannot be started.
    error in [File.Error, File.CopyError, File.RenameError, ErlangError] ->
      explain("#{Exception.message(error)}\n#{@reasons[Map.get(error, :reason)]}", config)
  end

  defp explain(said, config) do
    words =
      "The Python environment #{inspect(config.name)} could not be built.\n#{String.trim_trailing(said)}"

    {:error, if(hint = Hints.uv(said), do: "#{words}\n\n#{hint}", else: words)}
  end

  # --- directories --------------------------------------------------------------------------------

  # A new name for each build, so that the remains of a killed one are never taken for an environment.
  defp in_new_dir(config, base, fun) do
    dir = Path.join(base, "#{config.name}-#{Base.encode32(:rand.bytes(5), case: :lower, padding: false)}")
    File.mkdir_p!(dir)

    try do
      fun.(dir)
    after
      unless match?({:ok, _manifest, ^dir}, Manifest.read(base, config.name)), do: File.rm_rf(dir)
    end
  end

  @doc "Notes that this VM uses the environment in a directory, which builds then leave alone."
  @spec use_dir(Path.t()) :: :ok
  def use_dir(dir) do
    users = Path.join(dir, @users)
    with :ok <- File.mkdir_p(users), do: File.touch(Path.join(users, System.pid()))
    :ok
  end

  defp in_use?(dir) do
    pids = dir |> Path.join("#{@users}/*") |> Path.wildcard() |> Enum.map_join(" ", &Path.basename/1)
    alive = "for pid in #{pids}; do kill -0 $pid 2>/dev/null || [ -e /proc/$pid ] && exit; done; exit 1"
    match?({_said, 0}, System.cmd("/bin/sh", ["-c", alive]))
  end

  # The remains of killed builds, and environments that no VM uses any more.
  defp sweep(base, name, kept) do
    for dir <- Path.wildcard(Path.join(base, "#{name}-*")),
        Path.basename(dir) =~ ~r/^#{name}-[a-z2-7]{8}$/,
        dir not in kept and not in_use?(dir),
        do: File.rm_rf(dir)
  end

  # --- the steps ------------------------------------------------------------------------------------

  defp build(config, base, print) do
    with {:ok, uv} <- Uv.find(config, print) do
      earlier = Manifest.read(base, config.name)
      kept = for {:ok, _manifest, dir} <- [earlier], do: dir
      sweep(base, config.name, kept)
      print.("==> PyPort: building the Python environment #{inspect(config.name)} with uv #{uv.version}\n")

      in_new_dir(config, base, fn dir ->
        with {:ok, manifest} <- fill(uv, config, dir, earlier, print) do
          Manifest.write!(base, manifest)
          count = length(manifest.packages)
          words = "Python #{manifest.python.version}, packages: #{count}, codec: #{manifest.codec}"
          print.("==> PyPort: #{inspect(config.name)} is ready: #{words}\n")
          sweep(base, config.name, [dir | kept])
          {:ok, :built}
        end
      end)
    end
  end

  defp fill(uv, config, dir, earlier, print) do
    project = project!(config, dir)
    venv = Path.join(dir, "venv")
    options = [cd: project, print: print, env: [{"UV_PROJECT_ENVIRONMENT", venv}]]

    with {:ok, _said} <- ensure_lock(uv, config, project, options),
         {:ok, _said} <- make_venv(uv, config, venv, earlier, options),
         {:ok, _said} <- sync(uv, config, project, venv, options),
         {:ok, python, purelib} <- facts(venv),
         {:ok, codec} <- Package.install(uv, config, Path.join(venv, "bin/python"), purelib, print) do
      print.("==> PyPort: compiling bytecode\n")
      # A file that is not Python of this version stays uncompiled, and nothing is lost.
      run(venv, [@bytecode, purelib])
      python = Map.put(python, :packages_dir, Path.relative_to(purelib, dir))
      installed = %{glibc: Inventory.glibc(purelib), packages: Inventory.packages(purelib)}
      built = %{name: config.name, kind: :venv, dir: Path.basename(dir), uv: uv.version, codec: codec}
      {:ok, config |> wanted() |> Map.merge(built) |> Map.merge(installed) |> Map.put(:python, python)}
    end
  end

  defp run(venv, code),
    do: System.cmd(Path.join(venv, "bin/python"), ["-I", "-c" | code], stderr_to_stdout: true)

  # A project that is given as text gets a directory, in which relative paths would mean nothing: those need `project:`.
  defp project!(%Config{project: nil} = config, dir) do
    project = Path.join(dir, "project")
    File.mkdir_p!(project)
    File.write!(Path.join(project, "pyproject.toml"), config.pyproject_toml)
    lock = Config.lock_path(config)
    if File.exists?(lock), do: File.cp!(lock, Path.join(project, "uv.lock"))
    project
  end

  defp project!(%Config{project: project}, _dir), do: project

  defp ensure_lock(uv, config, project, options) do
    lock = Config.lock_path(config)

    cond do
      not File.exists?(Path.join(project, "pyproject.toml")) ->
        {:error, "there is no pyproject.toml in #{project} (the option project:)"}

      File.exists?(lock) ->
        {:ok, "it is there"}

      config.frozen ->
        missing = "frozen: true needs the lock #{lock}, and there is none"
        {:error, "#{missing}: run `mix py_port.lock` and commit it"}

      true ->
        make_lock(uv, config, project, [], options)
    end
  end

  defp make_lock(uv, config, project, more, options) do
    args = ["lock"] ++ more ++ python_args(config) ++ Config.index_args(config)

    with {:ok, said} <- Uv.run(uv, config, args, options) do
      # In a project of its own it is there already.
      Manifest.replace!(Config.lock_path(config), File.read!(Path.join(project, "uv.lock")))
      {:ok, said}
    end
  end

  # The packages of the earlier environment are linked, so that uv adds and removes only what differs.
  defp make_venv(uv, config, venv, earlier, options) do
    with true <- not config.force and reusable?(uv, config, earlier, options),
         {:ok, _manifest, dir} = earlier,
         {said, 0} <- System.cmd("cp", [copy_flags(), Path.join(dir, "venv"), venv], stderr_to_stdout: true) do
      {:ok, said}
    else
      _no_earlier_one ->
        File.rm_rf!(venv)
        args = ["venv", "--quiet", "--relocatable", "--prompt", to_string(config.name)]
        Uv.run(uv, config, args ++ python_args(config) ++ [venv], options)
    end
  end

  # Clones where uv clones; else hard links, as uv makes them: uv and Python replace files and never change them.
  defp copy_flags, do: if(match?({:unix, :darwin}, :os.type()), do: "-RPpc", else: "-RPpl")

  # Whole, and with the Python that uv would take for a new one.
  defp reusable?(uv, config, {:ok, manifest, dir}, options) do
    # `uv python find` is the one command that does not read UV_PYTHON.
    asked = Enum.find([config.python, System.get_env("UV_PYTHON")], &(&1 not in [nil, ""]))
    args = ["python", "find", "--system"] ++ List.wrap(asked)

    with nil <- Check.problem(manifest, dir, Platform.here()),
         {:ok, said} <- Uv.run(uv, config, args, Keyword.delete(options, :print)) do
      inode(String.trim(said)) == inode(manifest.python.base_executable)
    else
      _problem -> false
    end
  end

  defp reusable?(_uv, _config, :error, _options), do: false

  defp inode(path), do: with({:ok, stat} <- File.stat(path), do: {stat.major_device, stat.inode})

  defp sync(uv, config, project, venv, options) do
    # Without --python uv replaces an environment whose Python is not the one it would choose.
    args = ["sync", "--locked", "--no-dev", "--no-editable", "--python", Path.join(venv, "bin/python")]
    more = own_packages(config, project) ++ Config.index_args(config) ++ config.extra_args
    Uv.run(uv, config, args ++ more, options)
  end

  # uv keeps the wheel of a directory until its pyproject.toml changes; another file in it may be why we are here.
  defp own_packages(%Config{project: nil}, _project), do: []

  defp own_packages(_config, project) do
    own = ~r/\nname = "([^"]+)"\n(?:version = .*\n)?source = \{ (?:editable|directory) =/

    for [_, name] <- Regex.scan(own, File.read!(Path.join(project, "uv.lock"))),
        do: "--reinstall-package=#{name}"
  end

  defp python_args(%Config{python: nil}), do: []
  defp python_args(%Config{python: python}), do: ["--python", python]

  defp facts(venv) do
    case run(venv, [@facts]) do
      {said, 0} ->
        [version, base, prefix, purelib] = String.split(said, "\n", trim: true)

        python = %{
          executable: "venv/bin/python",
          version: version,
          base_executable: base,
          base_prefix: prefix
        }

        {:ok, python, purelib}

      {said, _status} ->
        {:error, said}
    end
  end
end
