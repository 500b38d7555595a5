defmodule PyPort.Options do
  # The options of requests, servers and pools: their defaults, and the error of a wrong one. Pure.
  @moduledoc false

  alias PyPort.Libraries

  # The options of a request, by its kind. `server: nil` is PyPort.Default, or the server of a session or an object.
  @common [server: nil, timeout: 5_000]
  @values [
    binary_as: nil,
    stdout: nil,
    stderr: nil,
    on_progress: nil,
    session: nil,
    return: :value,
    owner: nil,
    error_value: false,
    retry: 0,
    arrays: nil,
    tables: nil
  ]

  @request @common ++ @values
  @request_defaults Map.new(@request)
  @call @request ++ [typed: false]
  @stream Keyword.drop(@request, [:error_value, :retry, :on_progress]) ++ [credit: 512]
  @session @common ++ [name: nil, owner: nil]
  @cast Keyword.drop(@call, [:return, :owner, :error_value])
  @call_defaults Map.new(@call)
  @interactive Keyword.delete(@request, :return)

  @server [
    name: nil,
    label: nil,
    queue: nil,
    python: nil,
    python_env: nil,
    cd: nil,
    env: [],
    inherit_env: true,
    init_code: nil,
    preload: nil,
    wait: false,
    init_timeout: 60_000,
    allow: [],
    arrays: :object,
    tables: :object,
    binary_as: :str,
    logger: true,
    heartbeat_interval: 1_000,
    lost_after: 10_000,
    gil_held_limit: :infinity,
    cancel_grace: 1_000,
    kill_grace: 1_000,
    import_grace: 30_000,
    after_cancel: :keep,
    memory_limit: nil,
    shutdown_grace: 1_000,
    max_frame_bytes: 1_073_741_824,
    max_depth: 512,
    shm_threshold: 2_097_152,
    max_shm_bytes: 536_870_912,
    max_queued_bytes: 67_108_864,
    max_pending: 1_024,
    threads: 0,
    async_threads: 32,
    max_stderr_bytes: 16_777_216,
    max_objects: 100_000,
    max_objects_per_owner: 50_000
  ]

  # A pool gives its servers this one.
  @internal [:queue]

  # The size of nil is one for each scheduler, which is not known before the VM runs.
  @pool [
          size: nil,
          min_size: nil,
          idle_timeout: 60_000,
          max_requests: :infinity,
          max_age: :infinity,
          max_rss: :infinity,
          drain_timeout: 60_000,
          max_queue: 10_000,
          cluster: false
        ] ++ @server

  @batcher [
    name: nil,
    fun: nil,
    server: nil,
    batch_size: 64,
    batch_timeout: 5,
    batch_keys: [:default],
    concurrency: nil,
    max_pending: 10_000,
    binary_as: :str
  ]

  @batched [timeout: 5_000, batch_key: :default]
  @batched_defaults Map.new(@batched)

  # The BEAM's own timers end at 2 ** 32 ms, 49 days; a request to another node adds some seconds.
  @longest_ms 4_294_000_000

  @type request :: %{
          required(:server) => GenServer.server() | nil,
          required(:timeout) => timeout(),
          required(:binary_as) => :str | :bytes | nil,
          required(:stdout) => IO.device() | nil,
          optional(:on_progress) => nil | (map() -> term()) | {pid(), reference()},
          required(:stderr) => IO.device() | nil,
          required(:session) => PyPort.Session.t() | atom(),
          required(:return) => :value | :object | :globals,
          # nil for the server's own.
          required(:arrays) => :object | :tensor | :nx | nil,
          required(:tables) => :object | :arrow | :explorer | nil,
          required(:error_value) => boolean(),
          optional(:retry) => non_neg_integer(),
          # The alias that PyPort.Cast is told under when the request has been sent.
          optional(:sent) => reference(),
          optional(:typed) => boolean(),
          # A pair of owner and heir where a process of another node asks.
          required(:owner) => pid() | {pid(), pid() | nil} | nil,
          optional(:credit) => pos_integer()
        }

  # The options of a server: each of `PyPort.Server`, and those of a pool for its servers.
  @type server :: %{required(:name) => GenServer.name() | nil, optional(atom()) => term()}

  @spec request!(keyword()) :: request()
  # The common case, which must cost nothing.
  def request!([]), do: @request_defaults

  def request!(options) do
    options |> validate!(@request_defaults, @request, "PyPort.eval/3 and PyPort.call/4") |> one_server!()
  end

  @spec call!(keyword()) :: request()
  def call!([]), do: @request_defaults

  def call!(options) do
    options
    |> validate!(@call_defaults, @call, "PyPort.call/4")
    |> one_server!()
    |> no_globals!("PyPort.call/4")
  end

  @spec cast!(keyword()) :: request()
  def cast!(options) do
    options
    |> validate!(Map.new(@cast), @cast, "PyPort.cast/4")
    |> Enum.into(@request_defaults)
    |> one_server!()
  end

  @spec stream!(keyword()) :: request()
  def stream!(options) do
    options
    |> validate!(Map.new(@stream), @stream, "PyPort.stream/3")
    |> Map.put(:on_progress, nil)
    |> one_server!()
    |> no_globals!("PyPort.stream/3")
  end

  @spec session!(keyword()) :: map()
  def session!(options) do
    valid = validate!(options, Map.new(@session), @session, "PyPort.open_session/1")

    unless is_atom(valid.name),
      do: raise(ArgumentError, "option :name must be an atom, got: #{inspect(valid.name)}")

    valid
  end

  @spec interactive!(keyword()) :: map()
  def interactive!(options) do
    options
    |> validate!(Map.new(@interactive), @interactive, "PyPort.Interactive.put_options/1")
    |> one_server!()
  end

  @spec server!(keyword()) :: server()
  def server!(options) do
    options |> validate!(Map.new(@server), @server, "PyPort.Server") |> one_python!() |> Map.new(&sealed/1)
  end

  # These options may hold secrets. They are kept in functions, since options are part of states, of child specifications
  # and of all crash reports that print these.
  @secret [:env, :init_code, :preload]

  # The same options, for a child specification. Wrong ones are left for `start_link/1` to complain about.
  @spec seal(term()) :: term()
  def seal(options), do: if(Keyword.keyword?(options), do: Enum.map(options, &sealed/1), else: options)

  defp sealed({name, value})
       when name in @secret and value not in [nil, []] and not is_function(value) and not is_tuple(value),
       do: {name, fn -> value end}

  defp sealed(option), do: option

  # The value that a server was started with, or that the function gives which it was started with.
  @spec unseal(:env | :init_code | :preload, term()) :: {:ok, term()} | {:error, String.t()}
  def unseal(name, fun) when is_function(fun) do
    value = fun.()

    if not is_function(value) and valid?(name, value),
      do: {:ok, value},
      else: {:error, "the function of the option #{inspect(name)} must give #{expected(name)}"}
  rescue
    error -> {:error, "the function of the option #{inspect(name)} raised: #{Exception.message(error)}"}
  end

  def unseal(_name, value), do: {:ok, value}

  defp one_python!(%{python: python, python_env: env}) when python != nil and env != nil do
    raise ArgumentError,
          ":python and :python_env both name the interpreter, so only one of them can be given, " <>
            "got: python: #{inspect(python)}, python_env: #{inspect(env)}"
  end

  defp one_python!(options), do: options

  # Those of a pool, with those of its servers among them.
  @spec pool!(keyword()) :: server()
  def pool!(options) do
    valid = options |> validate!(Map.new(@pool), @pool, "PyPort.Pool") |> one_python!() |> Map.new(&sealed/1)

    if valid.cluster and not (is_atom(valid.name) and valid.name != nil) do
      raise ArgumentError,
            "a pool with cluster: true needs a name that is an atom, by which the others find it, got: #{inspect(valid.name)}"
    end

    size = valid.size || System.schedulers_online()

    if valid.min_size && valid.min_size > size do
      raise ArgumentError,
            "option :min_size must not be more than :size, got: min_size: #{valid.min_size}, size: #{size}"
    end

    %{valid | size: size}
  end

  @spec batcher!(keyword()) :: map()
  def batcher!(options) do
    valid = validate!(options, Map.new(@batcher), @batcher, "PyPort.Batcher")

    unless valid.fun,
      do: raise(ArgumentError, "option :fun of PyPort.Batcher is required: #{expected(:fun)}")

    valid
  end

  @spec batched!(keyword()) :: %{timeout: timeout(), batch_key: atom()}
  def batched!(options), do: validate!(options, @batched_defaults, @batched, "PyPort.batched/3")

  @spec server_names() :: [atom()]
  def server_names, do: Keyword.keys(@server)

  defp one_server!(%{server: server, session: session}) when server != nil and session != nil do
    raise ArgumentError,
          "a session carries its server, so :session and :server cannot both be given, " <>
            "got: session: #{inspect(session)}, server: #{inspect(server)}"
  end

  defp one_server!(options), do: options

  defp no_globals!(%{return: :globals}, whose) do
    raise ArgumentError,
          "option :return is :globals, which is for PyPort.eval/3: #{whose} has no names to give. " <>
            "It takes :value or :object"
  end

  defp no_globals!(options, _whose), do: options

  defp validate!(options, defaults, known, whose),
    do: fill(options, defaults) || explain!(options, defaults, known, whose)

  # Each request does it, so a wrong option is looked for only where one was found.
  defp fill([], valid), do: valid

  defp fill([{name, value} | rest], valid) when is_atom(name) and is_map_key(valid, name),
    do: if(valid?(name, value), do: fill(rest, %{valid | name => value}))

  defp fill(_wrong, _valid), do: nil

  @spec explain!(term(), map(), keyword(), String.t()) :: no_return()
  defp explain!(options, defaults, known, whose) do
    known = Keyword.drop(known, @internal)

    unless Keyword.keyword?(options) do
      got = if Keyword.has_key?(known, :env), do: "something else", else: "got: #{inspect(options)}"
      raise ArgumentError, "options must be a keyword list, #{got}"
    end

    {name, value} =
      Enum.find(options, fn {name, value} -> not is_map_key(defaults, name) or not valid?(name, value) end)

    if is_map_key(defaults, name),
      do: raise(ArgumentError, "option #{inspect(name)} must be #{expected(name)}, #{got(name, value)}"),
      else: raise(ArgumentError, unknown(name, Keyword.keys(known), whose))
  end

  defp got(name, _value) when name in @secret, do: "got something else"
  defp got(_name, value), do: "got: #{inspect(value)}"

  defp unknown(name, known, whose) do
    "unknown option #{inspect(name)} for #{whose}.#{PyPort.DidYouMean.similar(name, known)} " <>
      "Known options: #{Enum.map_join(known, ", ", &inspect/1)}"
  end

  defp valid?(:min_size, value), do: is_nil(value) or (is_integer(value) and value >= 0)

  defp valid?(name, value)
       when name in [:timeout, :idle_timeout, :init_timeout, :drain_timeout, :gil_held_limit, :lost_after],
       do: value == :infinity or (is_integer(value) and value in 0..@longest_ms)

  defp valid?(name, value) when name in [:max_requests, :max_age, :max_rss],
    do: value == :infinity or (is_integer(value) and value > 0)

  defp valid?(name, value) when name in @secret and is_function(value, 0), do: true

  defp valid?(:inherit_env, value),
    do: is_boolean(value) or (is_list(value) and Enum.all?(value, &is_binary/1))

  defp valid?(name, value) when name in [:size, :threads, :retry], do: is_integer(value) and value >= 0
  # Of a server in a pool: its name in Logger, and the requests that wait at the pool.
  defp valid?(:label, value), do: is_nil(value) or is_binary(value)
  defp valid?(:queue, value), do: is_nil(value) or is_struct(value)

  @positive [:heartbeat_interval, :max_pending, :max_queued_bytes, :max_stderr_bytes, :max_shm_bytes] ++
              [:async_threads, :max_objects, :max_objects_per_owner, :batch_size, :max_queue]
  defp valid?(name, value) when name in @positive, do: is_integer(value) and value > 0

  # {packet, 4} has four bytes for a length, and the BEAM reads no more than 2 GiB at once; a credit is written in four.
  defp valid?(name, value) when name in [:max_frame_bytes, :credit],
    do: is_integer(value) and value in 1..2_147_483_647

  defp valid?(:shm_threshold, value), do: value == :infinity or (is_integer(value) and value > 0)

  # The codec recurses in C, and goes no deeper.
  defp valid?(:max_depth, value), do: is_integer(value) and value in 1..2_000

  defp valid?(name, value) when name in [:shutdown_grace, :cancel_grace, :kill_grace, :import_grace],
    do: is_integer(value) and value >= 0

  defp valid?(:fun, value), do: is_binary(value) and value =~ ~r/^[^:]+:[^:]+$/
  defp valid?(:batch_timeout, value), do: is_integer(value) and value in 0..@longest_ms
  defp valid?(:batch_keys, value), do: is_list(value) and value != [] and Enum.all?(value, &is_atom/1)
  defp valid?(:batch_key, value), do: is_atom(value)
  defp valid?(:concurrency, value), do: is_nil(value) or (is_integer(value) and value > 0)
  defp valid?(:after_cancel, value), do: value in [:keep, :restart]
  defp valid?(:memory_limit, value), do: is_nil(value) or (is_integer(value) and value > 0)
  defp valid?(:binary_as, value), do: value in [:str, :bytes]
  defp valid?(:arrays, :nx), do: Libraries.nx?()
  defp valid?(:arrays, value), do: value in [:object, :tensor]
  defp valid?(:tables, :explorer), do: Libraries.explorer?()
  defp valid?(:tables, value), do: value in [:object, :arrow]
  defp valid?(:return, value), do: value in [:value, :object, :globals]
  defp valid?(:session, value), do: is_atom(value) or is_struct(value, PyPort.Session)
  defp valid?(:owner, value), do: is_nil(value) or is_pid(value)

  defp valid?(name, value) when name in [:logger, :cluster, :error_value, :typed, :wait],
    do: is_boolean(value)

  defp valid?(name, value) when name in [:python, :cd], do: is_nil(value) or is_binary(value)
  defp valid?(:python_env, value), do: is_atom(value) and not is_boolean(value)
  # Of a server in a pool, the pool that has the template.
  defp valid?(:preload, {:template, pool}), do: is_pid(pool)

  defp valid?(name, value) when name in [:init_code, :preload],
    do: is_nil(value) or is_binary(value) or is_struct(value, PyPort.Code)

  defp valid?(:allow, value) do
    value == :all or
      (is_list(value) and
         Enum.all?(value, fn
           {module, function, arity} -> is_atom(module) and is_atom(function) and is_integer(arity)
           {module, function} -> is_atom(module) and is_atom(function)
           module -> is_atom(module)
         end))
  end

  defp valid?(:env, value) do
    is_list(value) and
      Enum.all?(value, fn
        {name, value} -> is_binary(name) and (is_binary(value) or value in [nil, false])
        _other -> false
      end)
  end

  defp valid?(:on_progress, {pid, ref}), do: is_pid(pid) and is_reference(ref)
  defp valid?(:on_progress, value), do: is_nil(value) or is_function(value, 1)
  defp valid?(name, value) when name in [:stdout, :stderr], do: is_pid(value) or is_atom(value)

  # A name that is no server shows when it is used.
  defp valid?(_name, _value), do: true

  defp expected(name) when name in [:timeout, :init_timeout, :drain_timeout, :gil_held_limit, :lost_after],
    do: "milliseconds (0 to #{@longest_ms}) or :infinity"

  defp expected(name) when name in [:heartbeat_interval], do: "milliseconds (1 or more)"

  defp expected(name) when name in [:shutdown_grace, :cancel_grace, :kill_grace, :import_grace],
    do: "milliseconds (0 or more)"

  defp expected(:shm_threshold), do: "a number of bytes (1 or more) or :infinity"

  defp expected(:fun), do: ~s(the name of a Python function, such as "my_pkg.embed:encode")
  defp expected(:batch_size), do: "a number of items (1 or more)"
  defp expected(:batch_timeout), do: "milliseconds (0 to #{@longest_ms})"
  defp expected(:batch_keys), do: "a list of one or more atoms"
  defp expected(:batch_key), do: "an atom, one of the :batch_keys of the batcher"
  defp expected(:concurrency), do: "a number of batches (1 or more), or nil for one on each server"
  defp expected(:after_cancel), do: ":keep or :restart"
  defp expected(:memory_limit), do: "a number of bytes (1 or more), or nil for none"
  defp expected(:size), do: "a number of servers (0 or more)"
  defp expected(:label), do: "a string"
  defp expected(:max_requests), do: "a number of requests (1 or more) or :infinity"
  defp expected(:max_age), do: "milliseconds (1 or more) or :infinity"
  defp expected(:max_rss), do: "a number of bytes (1 or more) or :infinity"
  defp expected(:threads), do: "a number of threads (0 or more)"
  defp expected(:async_threads), do: "a number of threads (1 or more)"
  defp expected(:max_pending), do: "a number of requests (1 or more)"

  defp expected(name) when name in [:max_objects, :max_objects_per_owner],
    do: "a number of objects (1 or more)"

  defp expected(name) when name in [:max_queued_bytes, :max_stderr_bytes, :max_shm_bytes],
    do: "a number of bytes (1 or more)"

  defp expected(:max_depth), do: "a number of levels (1 to 2000)"
  defp expected(:max_frame_bytes), do: "a number of bytes below 2 GiB"
  defp expected(:on_progress), do: "a function of one argument, or {pid, reference}"
  defp expected(name) when name in [:stdout, :stderr], do: "an IO device: a pid or a registered name"
  defp expected(:credit), do: "a number of items (1 or more)"
  defp expected(:binary_as), do: ":str or :bytes"
  defp expected(:arrays), do: ":object, :tensor, or :nx where the application has the library :nx"

  defp expected(:tables),
    do: ":object, :arrow, or :explorer where the application has the library :explorer"

  defp expected(:return), do: ":value, :object or :globals"
  defp expected(:session), do: "a session of PyPort.open_session/1, or its name, an atom"
  defp expected(:owner), do: "a pid"
  defp expected(name) when name in [:logger, :cluster, :error_value, :typed], do: "true or false"
  defp expected(:python), do: "the path of a Python interpreter, or its name on the PATH"
  defp expected(:python_env), do: "the name of an environment of config :py_port, :uv_init, such as :default"
  defp expected(:cd), do: "a directory"

  defp expected(name) when name in [:init_code, :preload],
    do: "Python source: a string, or a ~PY or ~P sigil; or a function that gives it"

  defp expected(:inherit_env), do: "true, false, or a list of names of OS variables"
  defp expected(:allow), do: "a list such as [{Enum, :map, 2}, {MyApp.Api, :find}, MyApp.Shared], or :all"

  defp expected(:env),
    do: ~s(a list such as [{"NAME", "value"}, {"UNSET_ME", nil}], or a function that gives one)
end
