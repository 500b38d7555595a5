defmodule PyPort.Server.Launch do
  # Starts a Python server: the interpreter, its arguments, its environment, and the first message. The port belongs to
  # PyPort.Server.
  @moduledoc false

  import PyPort.Error, only: [unavailable: 1]

  alias PyPort.{
    Connection,
    Env,
    Error,
    Libraries,
    Options,
    Reaper,
    Registry,
    Sources,
    StatusPage,
    StderrFile,
    Wire
  }

  alias PyPort.Server.{AsyncDelivery, Preload, RequestTable}

  # The numbers on which Python finds the port. Below 10, which is as far as every shell counts.
  @reads 7
  @writes 8

  # The shell opens the stderr file before Python starts, so that even a failing import leaves its words there. It also
  # moves the port away from 0 and 1: code that runs before the server (a wrapper script, sitecustomize, a .pth
  # file) prints to stderr instead of into the first frame, and reads the end of a file instead of the first frame. The
  # redirections belong to the command, because some shells keep those of their own from the programs that they start.
  # `exec` keeps the pid, and with it the process group that the port's child leads.
  @shell ~s(exec 2>>"$1"; shift; exec "$@" #{@reads}<&0 #{@writes}>&1 </dev/null >&2)

  # -P keeps the working directory out of the way while the server imports its own modules, so a file
  # that happens to be called select.py cannot stop it; the directory joins the path right after, as with
  # `python -c`, because people keep their own modules there. The package that ships with this library stands last: a package
  # that is installed in the environment was built for that Python.
  @import "import sys; sys.path += sys.argv[1:]; from port_server.server import "
  @exit "; sys.path.insert(0, ''); sys.argv[:] = ['']; sys.exit"
  @boot @import <> "app" <> @exit <> "(app.serve(#{@reads}, #{@writes}))"

  # The same for the template of `preload:`, see PyPort.Server.Preload. Its fds 0 to 2 lead to the owner of the template.
  @template_boot @import <> "preload" <> @exit <> "(preload.serve())"

  # The output limit: how much printed text may be on its way to a device. A fast device is never waited for, and a thousand
  # callers with slow ones fit into memory.
  @output_limit_bytes 1_048_576

  # Python reports a request that has run for so long, and from then on the server watches its caller. Shorter requests cost
  # no message for it.
  @running_after_ms 5

  # Starts a Python whose owner is the calling process.
  @spec open(Options.server(), heir :: pid()) :: {:ok, Connection.t(), StderrFile.t()} | {:error, Error.t()}
  def open(options, heir) do
    dir = new_dir()
    # From here on the directory is removed when this process ends, in whatever way.
    Reaper.watch(self(), dir)
    stderr_path = StderrFile.path(dir)

    with {:ok, options} <- unseal(options),
         {:ok, command, options} <- command(options),
         {:ok, port_options} <- prepare(options, [stderr_path | command]),
         {:ok, stderr} <- make_dir(dir, stderr_path),
         {:ok, port, os_pid} <- open_port(port_options) do
      start_time = Reaper.start_time(os_pid)
      connection = connection(options, heir, port, os_pid, start_time, dir)
      # In this order: a reaper that is just being restarted hears no casts, and reads the registry first.
      Registry.put(connection)
      Reaper.watch(self(), os_pid, start_time, dir)
      Connection.command(connection, Wire.init(init_options(options, dir)))
      {:ok, connection, stderr}
    else
      {:error, error} ->
        File.rm_rf(dir)
        {:error, error}
    end
  end

  @spec unseal(map()) :: {:ok, map()} | {:error, Error.t()}
  def unseal(options) do
    with {:ok, env} <- Options.unseal(:env, options.env),
         {:ok, init_code} <- Options.unseal(:init_code, options.init_code),
         {:ok, preload} <- Options.unseal(:preload, options.preload) do
      {:ok, %{options | env: env, init_code: init_code, preload: preload}}
    else
      {:error, words} -> {:error, unavailable(words)}
    end
  end

  defp connection(options, heir, port, os_pid, start_time, dir) do
    counter = Connection.counter()

    %Connection{
      owner: self(),
      port: port,
      table: RequestTable.new(heir, counter),
      calls: calls(options.allow),
      counter: counter,
      os_pid: os_pid,
      start_time: start_time,
      dir: dir,
      max_frame_bytes: options.max_frame_bytes,
      max_queued_bytes: options.max_queued_bytes,
      max_pending: options.max_pending,
      max_objects_per_owner: options.max_objects_per_owner,
      patience: options.cancel_grace + options.kill_grace
    }
  end

  defp calls(allow) do
    table = :ets.new(:py_port_calls, [:set, :public, read_concurrency: true])
    :ets.insert(table, {:allow, allow})
    table
  end

  defp open_port(port_options) do
    port = Port.open({:spawn_executable, ~c"/bin/sh"}, port_options)

    case Port.info(port, :os_pid) do
      {:os_pid, os_pid} -> {:ok, port, os_pid}
      nil -> {:error, unavailable("Python ended before it had begun")}
    end
  rescue
    error -> {:error, unavailable("Python could not be started: #{Exception.message(error)}")}
  end

  # The Python that forks the members of a pool. It reads its configuration from stdin, and writes lines.
  @spec open_template(map(), line_bytes :: pos_integer()) ::
          {:ok, port(), pos_integer()} | {:error, Error.t()}
  def open_template(options, line_bytes) do
    with {:ok, python} <- python(options, @template_boot),
         {:ok, directory} <- find_directory(options.cd) do
      own = [{:line, line_bytes}, :stderr_to_stdout, {:args, ["-c", ~s(exec "$@"), "sh" | python]}]
      open_port(own ++ common(options) ++ directory)
    end
  end

  @spec new_dir() :: Path.t()
  def new_dir do
    unique = Base.encode32(:rand.bytes(10), case: :lower, padding: false)
    Path.join(System.tmp_dir() || "/tmp", "py_port-#{System.pid()}-#{unique}")
  end

  defp make_dir(dir, path) do
    with :ok <- File.mkdir(dir),
         :ok <- File.chmod(dir, 0o700),
         :ok <- StatusPage.make(dir),
         {:ok, stderr} <- StderrFile.open(path) do
      {:ok, stderr}
    else
      {:error, reason} ->
        why = "the directory #{dir} for Python's stderr could not be made: #{:file.format_error(reason)}"
        {:error, unavailable("#{why}. Set TMPDIR to a directory that can be written")}
    end
  end

  # Python cannot know its owner, nor the shape of a struct in this version of Elixir.
  defp init_options(options, dir) do
    base = %{
      owner: self(),
      token: Base.encode16(:rand.bytes(16)),
      max_frame_bytes: options.max_frame_bytes,
      max_depth: options.max_depth,
      # Its addresses would count.
      shared_memory: options.shm_threshold != :infinity and options.memory_limit == nil,
      max_objects: options.max_objects,
      binary_as: Atom.to_string(options.binary_as),
      threads: options.threads,
      async_threads: options.async_threads,
      heartbeat_interval_ms: options.heartbeat_interval,
      running_after_ms: @running_after_ms,
      logging: options.logger,
      stderr: true,
      output_window_bytes: @output_limit_bytes,
      delivery_window_bytes: AsyncDelivery.window_bytes(),
      status_page: StatusPage.path(dir),
      arrays: Atom.to_string(options.arrays),
      tables: Atom.to_string(options.tables),
      decimal: decimal(Application.get_env(:py_port, :decimal, :struct)),
      templates:
        %{map_set: MapSet.new()} |> put(:duration, duration()) |> put(:nx_tensor, Libraries.nx_template())
    }

    base
    |> put(:preload, code(options.preload))
    |> put(:init_code, code(options.init_code))
    |> put(:memory_limit_bytes, options.memory_limit)
  end

  # A struct of a module that the application does not have would be a broken one.
  defp decimal(:string), do: "string"
  defp decimal(:struct), do: if(Code.ensure_loaded?(Decimal), do: "struct", else: "none")

  defp decimal(other) do
    raise ArgumentError, "config :py_port, decimal: #{inspect(other)} is neither :struct nor :string"
  end

  # Elixir has it from 1.17 on.
  defp duration, do: if(Code.ensure_loaded?(Duration), do: struct(Duration))

  defp put(map, _key, nil), do: map
  defp put(map, key, value), do: Map.put(map, key, value)

  # As Python is told of it.
  @spec code(String.t() | PyPort.Code.t() | nil) :: String.t() | tuple() | nil
  def code(%PyPort.Code{source: source, file: file, line: line}), do: {:code, source, file, line}
  def code(source), do: source

  # The command of the port, and the options for it: a Python, or in a pool with `preload:` the stub of a fork of its template.
  defp command(%{preload: {:template, pool}} = options) do
    case Preload.member(pool) do
      {:ok, {:stub, stub, socket}} -> {:ok, [stub, socket], %{options | preload: nil}}
      {:ok, {:code, code}} -> command(%{options | preload: code})
      {:error, error} -> {:error, error}
    end
  end

  defp command(options), do: with({:ok, python} <- python(options, @boot), do: {:ok, python, options})

  defp python(options, boot) do
    with {:ok, python} <- find_python(options), do: {:ok, [python, "-P", "-c", boot | Env.package_path()]}
  end

  defp prepare(options, arguments) do
    with {:ok, directory} <- find_directory(options.cd),
         do: {:ok, [{:packet, 4}, {:args, ["-c", @shell, "sh" | arguments]}] ++ common(options) ++ directory}
  end

  defp common(options) do
    [
      :binary,
      :exit_status,
      :use_stdio,
      :hide,
      # Never suspend a caller that writes; the port's queue is watched instead.
      {:busy_limits_port, :disabled},
      {:busy_limits_msgq, :disabled},
      {:env, options |> environment() |> Enum.map(&variable/1)}
    ]
  end

  # A port's variables are added to those of the BEAM; the rest is what has to be taken away from these.
  defp environment(%{inherit_env: inherit} = options) do
    inherit
    |> not_inherited()
    |> Map.new(&{&1, nil})
    |> Map.merge(Map.new(variables(options)))
    |> with_sources()
  end

  defp with_sources(environment) do
    case Sources.path(Map.get(environment, "PYTHONPATH", System.get_env("PYTHONPATH"))) do
      none when none in [nil, false] -> environment
      path -> Map.put(environment, "PYTHONPATH", path)
    end
  end

  # A process that knows it can run code on the node: https://www.erlang.org/doc/reference_manual/distributed.html#security
  @never_inherited "RELEASE_COOKIE"

  defp not_inherited(true), do: [@never_inherited]
  defp not_inherited(false), do: Map.keys(System.get_env())
  defp not_inherited(names), do: Map.keys(System.get_env()) -- names

  # The directories of PYTHONPATH, as its Python sees it.
  @spec python_path(map()) :: [Path.t()]
  def python_path(options) do
    with {:ok, options} <- unseal(options) do
      path = options |> environment() |> Map.get("PYTHONPATH", System.get_env("PYTHONPATH"))
      String.split(path || "", ":", trim: true)
    else
      {:error, _reason} -> []
    end
  end

  # The server's own options take precedence.
  defp variables(%{python_env: name, env: env}) do
    Enum.reject(Env.variables(name), fn {name, _value} -> List.keymember?(env, name, 0) end) ++ env
  end

  defp variable({name, value}) when value in [nil, false], do: {String.to_charlist(name), false}
  defp variable({name, value}), do: {String.to_charlist(name), String.to_charlist(value)}

  defp find_python(%{python_env: name}) when name != nil do
    with {:error, words} <- Env.interpreter(name), do: {:error, unavailable(words)}
  end

  defp find_python(%{python: python}), do: find_python(python)

  defp find_python(nil) do
    case System.get_env("PYPORT_PYTHON") || System.find_executable("python3") do
      nil ->
        advice =
          "Install Python 3.11 or newer, or name one with the option :python (for the default pool: config :py_port, " <>
            "pool: [python: \"/path/to/python3\"])"

        {:error, unavailable("no Python was found: there is no python3 on the PATH. #{advice}")}

      python ->
        find_python(python)
    end
  end

  defp find_python(python) do
    case System.find_executable(python) do
      nil ->
        why = "the Python interpreter #{inspect(python)} does not exist, or may not be executed"
        {:error, unavailable("#{why}; see the option :python")}

      path ->
        {:ok, path}
    end
  end

  defp find_directory(nil), do: {:ok, []}

  defp find_directory(directory) do
    if File.dir?(directory),
      do: {:ok, [{:cd, String.to_charlist(directory)}]},
      else: {:error, unavailable("the directory #{inspect(directory)} of the option :cd does not exist")}
  end
end
