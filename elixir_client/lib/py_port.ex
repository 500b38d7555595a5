defmodule PyPort do
  @moduledoc """
  Python for Elixir, in a process of its own.

      iex> PyPort.eval("1 + 1")
      {:ok, 2}
      iex> PyPort.eval!("sum(data)", %{data: [1, 2, 3]})
      6
      iex> PyPort.call("math:sqrt", [9.0])
      {:ok, 3.0}

  A Python process is owned by a `PyPort.Server`; a `PyPort.Pool` has several behind one name. Without the option
  `:server` the default pool answers, which starts with the application `:py_port` (see `PyPort.Pool`).

  ## Results

  `{:ok, value}`, or `{:error, %PyPort.Error{}}` if Python raised, ended, or took too long. A programmer's error (an unknown
  option, globals that are no map) raises `ArgumentError`.

  ## Options of a request

    * `:server` - the pid or name of a `PyPort.Server` or a `PyPort.Pool`, on another node, too: `{name, node}`. Default:
      `PyPort.Default`, a pool.
    * `:timeout` - how long to wait for the answer, in ms, the time spent in queues included, or `:infinity`.
      Default: 5_000.
    * `:binary_as` - what the binaries of globals and arguments are in Python: `:str` (they must be UTF-8) or
      `:bytes`. One binary alone becomes `bytes` by `bytes/1`. Default: that of the server or pool, `:str` unless it was
      started with another.
    * `:session` - a session of `open_session/1`, or its name, whose names the code sees and sets. It carries its server.
    * `:arrays` - what an array of Python's in the value is: `:object`, a `PyPort.Object`; `:tensor`, a `PyPort.Tensor`; or `:nx`, an
      `Nx.Tensor`. Default: that of the server.
    * `:tables` - what a table in the value is: `:object`; `:arrow`, a `PyPort.Table`; or `:explorer`, an
      `Explorer.DataFrame`. Default: that of the server.
    * `:return` - `:value`; `:object` for a `PyPort.Object` of whatever the value is; or `:globals` for `{value, globals}`,
      see `eval/3`. Default: `:value`.
    * `:error_value` - whether the error of an exception has the exception itself under `value`, a `PyPort.Object`; not for
      `stream/3`. Default: `false`.
    * `:retry` - how often the request is asked again if the server of a pool ends before it has begun it, within
      the same `:timeout`; not for `stream/3`. Default: 0.
    * `:owner` - the process that objects in the answer belong to; see `PyPort.Object` for the default.
    * `:stdout`, `:stderr` - the IO devices that get what the code prints. Default: the caller's group leader. The one of
      `:stderr` also gets what child processes write, while the request is the only one that runs.
    * `:on_progress` - a function that gets, in the process of the caller, the map of each `port_server.progress(done, total)` in
      the code: `%{done: 3, total: 10}`; or `{pid, ref}`, for messages `{ref, :progress, map}`. Not for `stream/3`, whose
      items can tell.

  `batched/3` takes `:timeout` and `:batch_key`, one of the `:batch_keys` of its `PyPort.Batcher` (default: `:default`).

  ## Functions

  A function among the top-level values of `globals`, of the arguments or of the keyword arguments is a callable in
  Python. Each call runs in a process of its own, whose `$callers` lead to the caller of the request:

      iex> PyPort.eval("[f(x) for x in xs]", %{xs: [1, 2], f: &(&1 * 10)})
      {:ok, [10, 20]}
  """

  alias PyPort.{
    Code,
    Connection,
    Deadline,
    Error,
    Locator,
    Object,
    Options,
    Ownership,
    Registry,
    Remote,
    Request
  }

  alias PyPort.{Session, Status}

  @type code :: String.t() | Code.t()
  @type globals :: %{optional(atom() | String.t()) => term()}
  @type option ::
          {:server, GenServer.server()}
          | {:timeout, timeout()}
          | {:binary_as, :str | :bytes}
          | {:session, Session.t() | atom()}
          | {:retry, non_neg_integer()}
          | {:arrays, :object | :tensor | :nx}
          | {:tables, :object | :arrow | :explorer}
          | {:return, :value | :object | :globals}
          | {:owner, pid()}
          | {:error_value | :typed, boolean()}
          | {:stdout, IO.device()}
          | {:stderr, IO.device()}
          | {:on_progress, (map() -> term()) | {pid(), reference()}}

  @typedoc "`\"module:qualified.name\"`, an attribute of an object, or an object that can be called."
  @type target :: String.t() | {Object.t(), String.t()} | Object.t()

  @doc """
  Evaluates Python code and gives the value of its last expression.

  `globals` become the global names of the code; each request has a namespace of its own. Code that ends in a
  statement gives `nil`. `return` at the top level works.

  `return: :globals` gives `{value, globals}`: a map of the names that the code has bound at its top level, by whatever
  statement, with strings as keys. Values without a counterpart in Elixir are `PyPort.Object`s there, as are the modules,
  functions and classes that the code imports and defines: passed to another request as globals they are the same objects.
  Names that are only read, deleted again, or brought by `import *` are not in it.

  ## Examples

      iex> PyPort.eval("x * 2", %{x: 21})
      {:ok, 42}

      iex> PyPort.eval("if x > 0: return 'positive'", %{"x" => 1})
      {:ok, "positive"}

      iex> {:error, %PyPort.Error{kind: :python, type: "ZeroDivisionError"}} = PyPort.eval("1 / 0")

      iex> PyPort.eval("total = sum(data); len(data)", %{data: [1, 2]}, return: :globals)
      {:ok, {2, %{"total" => 3}}}
  """
  @spec eval(code(), globals(), [option()]) :: {:ok, term()} | {:error, Error.t()}
  def eval(code, globals \\ %{}, options \\ []) do
    check_code!(code)
    check_globals!(globals)
    ask({:eval, code, globals}, Options.request!(options))
  end

  @doc """
  Like `eval/3`, but gives the value itself and raises `PyPort.Error`.

  ## Examples

      iex> PyPort.eval!("[n * n for n in numbers]", %{numbers: [1, 2, 3]})
      [1, 4, 9]
  """
  @spec eval!(code(), globals(), [option()]) :: term()
  def eval!(code, globals \\ %{}, options \\ []), do: code |> eval(globals, options) |> value!()

  @doc """
  Calls a Python function by its name, `"module:qualified.name"`, a method of an object as `{object, "name"}`, or an
  object that can be called.

  The module is imported if it has not been. It is faster than `eval/3` where the code is one call anyway,
  and needs no Python source.

  With `typed: true` the arguments are what the type hints of the function say: maps become dataclasses, or models of
  attrs, pydantic and msgspec, and the value or the name of a member that member of an enum, also inside of lists, maps
  and optional types.

  ## Examples

      iex> PyPort.call("math:gcd", [12, 18])
      {:ok, 6}

      iex> PyPort.call("builtins:sorted", [[3, 1, 2]], %{reverse: true})
      {:ok, [3, 2, 1]}

      iex> text = PyPort.eval!("'a-b'", %{}, return: :object)
      iex> PyPort.call({text, "split"}, ["-"])
      {:ok, ["a", "b"]}
  """
  @spec call(target(), list(), map() | keyword(), [option()]) :: {:ok, term()} | {:error, Error.t()}
  def call(target, args \\ [], kwargs \\ %{}, options \\ []) do
    check_target!(target)
    check_args!(args)
    ask({:call, target, args, check_kwargs!(kwargs)}, Options.call!(options))
  end

  # A session may be named by its name.
  defp ask(asked, %{session: name} = options) when is_atom(name) and name != nil do
    with {:ok, session} <- Registry.session(name), do: Request.ask(asked, %{options | session: session})
  end

  defp ask(asked, options), do: Request.ask(asked, options)

  @doc """
  Like `call/4`, but gives the value itself and raises `PyPort.Error`.

  ## Examples

      iex> PyPort.call!("math:sqrt", [9.0])
      3.0
  """
  @spec call!(target(), list(), map() | keyword(), [option()]) :: term()
  def call!(target, args \\ [], kwargs \\ %{}, options \\ []),
    do: target |> call(args, kwargs, options) |> value!()

  @doc """
  Like `call/4`, but does not wait for the answer: it returns when the request has been sent. While all servers of a pool are
  busy it waits for one that can begin it, and gives the error if none can within `:timeout`.

  The casts of one process to one server run in the order in which they were sent; those to a pool may go to several
  servers. An error after it was sent is logged, with the logger metadata of the caller. The request goes on if the
  caller ends. The value of the function is dropped. It takes the options of `call/4`, but `:return`, `:owner` and
  `:error_value`; `:timeout` holds for the request as a whole.

  ## Examples

      iex> PyPort.cast("builtins:print", ["indexed"])
      :ok
  """
  @spec cast(target(), list(), map() | keyword(), [option()]) :: :ok | {:error, Error.t()}
  def cast(target, args \\ [], kwargs \\ %{}, options \\ []) do
    check_target!(target)
    check_args!(args)
    asked = {:call, target, args, check_kwargs!(kwargs)}

    with %{session: name} = options when is_atom(name) and name != nil <- Options.cast!(options),
         {:ok, session} <- Registry.session(name) do
      PyPort.Cast.cast(asked, %{options | session: session})
    else
      {:error, error} -> {:error, error}
      options -> PyPort.Cast.cast(asked, options)
    end
  end

  @doc """
  A Python generator, asynchronous generator, or any iterable as a lazy enumerable.

  Python makes items ahead, but no more than the consumer may still take: option `:credit`, 512 by default.
  A generator without an end is fine: when the consumer halts, or dies, it is closed (its `finally` runs, before the
  next request of that consumer).
  `:timeout` is the longest wait for the next item. Errors are raised where they happen: after the items before them.
  The other options are those of `eval/3`. Each enumeration runs the code anew.

  ## Examples

      iex> PyPort.stream("for n in range(limit): yield n * n", %{limit: 4}) |> Enum.to_list()
      [0, 1, 4, 9]

      iex> PyPort.stream("import itertools; itertools.count()") |> Stream.map(&(&1 * 2)) |> Enum.take(3)
      [0, 2, 4]
  """
  @spec stream(code(), globals(), [option() | {:credit, pos_integer()}]) :: Enumerable.t()
  def stream(code, globals \\ %{}, options \\ []) do
    check_code!(code)
    check_globals!(globals)
    PyPort.Stream.new({:eval, code, globals}, Keyword.replace_lazy(options, :session, &session!/1))
  end

  defp session!(name) when is_atom(name) and name != nil do
    case Registry.session(name) do
      {:ok, session} -> session
      {:error, error} -> raise error
    end
  end

  defp session!(session), do: session

  @doc """
  Gives one item to a `PyPort.Batcher`, and its result: Python gets the items of many callers as one list.

  Options: `:timeout`, the time that the item waits for others included, and `:batch_key`.

  ## Examples

      iex> {:ok, batcher} = PyPort.Batcher.start_link(fun: "builtins:sorted", batch_size: 1)
      iex> PyPort.batched(batcher, "an item")
      {:ok, "an item"}
  """
  @spec batched(GenServer.server(), term(), [{:timeout, timeout()} | {:batch_key, atom()}]) ::
          {:ok, term()} | {:error, Error.t()}
  def batched(batcher, item, options \\ []),
    do: PyPort.Batcher.ask(batcher, item, Options.batched!(options))

  @doc """
  Waits until a server, or the first server of a pool, is ready, for `timeout` ms at the most. Gives the error why it is not.

  ## Examples

      iex> PyPort.await_ready(PyPort.Default, 10_000)
      :ok
  """
  @spec await_ready(GenServer.server(), timeout()) :: :ok | {:error, Error.t()}
  def await_ready(server, timeout \\ 5_000) do
    deadline = Deadline.deadline(timeout)

    case Locator.connection(server, deadline, :at_once) do
      {:remote, node, server} ->
        with {:ok, outcome} <- Remote.call(node, __MODULE__, :await_ready, [server, timeout], deadline),
             do: outcome

      {:error, error} ->
        {:error, error}

      _found ->
        :ok
    end
  end

  @doc """
  Opens a session: names that stay from one request to the next.

  It ends with its owner, if `close_session/1` does not end it before. Requests of one session run one at a
  time, and see each other's context variables, too; two sessions never see each other.

  Options:

    * `:server`, `:timeout` - as in a request.
    * `:owner` - the process with which the session ends. Default: the calling one. `transfer/2` changes it.
    * `:name` - an atom, by which all processes of this node can name it: `session: MySession`. If a session of that name
      is open, the error says so. Its server must be on this node.

  ## Examples

      iex> {:ok, session} = PyPort.open_session()
      iex> PyPort.eval("x = 41", %{}, session: session)
      {:ok, nil}
      iex> PyPort.eval("x + 1", %{}, session: session)
      {:ok, 42}
  """
  @spec open_session([
          {:server, GenServer.server()} | {:timeout, timeout()} | {:owner, pid()} | {:name, atom()}
        ]) :: {:ok, Session.t()} | {:error, Error.t()}
  def open_session(options \\ []) do
    %{name: name} = options = Options.session!(options)
    if name == nil, do: Request.open_session(options), else: open_session(name, options)
  end

  defp open_session(name, options) do
    with {:error, _none} <- Registry.session(name),
         {:ok, session} <- Request.open_session(options) do
      cond do
        # The name would outlive it: its end is not known here.
        node(session.server) != node() ->
          close_session(session)
          where = "its server would be on the node #{node(session.server)}"
          {:error, Error.unavailable("the session #{inspect(name)} cannot have a name: #{where}")}

        Registry.name_session(name, session) ->
          still_open(session, options.owner || self())

        true ->
          close_session(session)
          open_session(name, options)
      end
    else
      {:ok, session} ->
        {:error, Error.unavailable("a session is open as #{inspect(name)} already: #{inspect(session)}")}

      {:error, error} ->
        {:error, error}
    end
  end

  # Its owner may have ended before it had its name, and the session with it.
  defp still_open(session, owner) do
    case transfer(session, owner) do
      :ok ->
        {:ok, session}

      {:error, error} ->
        close_session(session)
        {:error, error}
    end
  end

  @doc """
  Closes a session, which may be named. To close it again, or after its server has ended, does no harm.

  ## Examples

      iex> {:ok, session} = PyPort.open_session()
      iex> PyPort.close_session(session)
      :ok
  """
  @spec close_session(Session.t() | atom()) :: :ok
  def close_session(name) when is_atom(name) do
    with {:ok, session} <- Registry.session(name), do: close_session(session)
    :ok
  end

  def close_session(%Session{server: server} = session) when node(server) != node() do
    Remote.errand(node(server), __MODULE__, :close_session, [session])
    :ok
  end

  def close_session(%Session{server: server, name: name}) do
    with {:ok, connection} <- Registry.fetch(server), do: Request.close_session(connection, name)

    :ok
  end

  @doc """
  An attribute of an object.

  ## Examples

      iex> fraction = PyPort.eval!("from fractions import Fraction; Fraction(6, 8)")
      iex> PyPort.getattr(fraction, "numerator")
      {:ok, 3}
  """
  @spec getattr(Object.t(), String.t() | atom(), [option()]) :: {:ok, term()} | {:error, Error.t()}
  def getattr(%Object{} = object, name, options \\ []) when is_binary(name) or is_atom(name),
    do: call("builtins:getattr", [object, to_string(name)], %{}, options)

  @doc """
  An item of an object, `object[key]`.

  ## Examples

      iex> counter = PyPort.eval!("import collections; collections.Counter('abracadabra')", %{}, return: :object)
      iex> PyPort.getitem(counter, "a")
      {:ok, 5}
  """
  @spec getitem(Object.t(), term(), [option()]) :: {:ok, term()} | {:error, Error.t()}
  def getitem(%Object{} = object, key, options \\ []),
    do: call("operator:getitem", [object, key], %{}, options)

  @doc """
  Releases an object, or several, before their owner ends. Releasing twice does no harm.

  ## Examples

      iex> object = PyPort.eval!("object()")
      iex> PyPort.release(object)
      :ok
      iex> {:error, %PyPort.Error{}} = PyPort.call({object, "__hash__"})
  """
  @spec release(Object.t() | [Object.t()]) :: :ok
  def release(%Object{} = object), do: release([object])

  def release(objects) when is_list(objects) do
    Enum.each(objects, &check_object!/1)

    for {server, objects} <- Enum.group_by(objects, &Object.server/1), do: release(server, objects)
    :ok
  end

  # Waited for, so that it comes before what the caller asks for next; or written from here, for the same reason.
  defp release(server, objects) when node(server) != node(),
    do: Remote.errand(node(server), __MODULE__, :release, [objects])

  defp release(server, objects) do
    with {:ok, connection} <- Registry.fetch(server) do
      ids = Enum.map(objects, & &1.id)
      Connection.command(connection, PyPort.Wire.release(ids))
      Ownership.tell(server, {:forget, ids})
    end
  end

  @doc """
  Gives an object or a session, which may be named, to another process: it is released, or closed, when that one ends. An object is
  refused where that process owns as many as it may (`max_objects_per_owner`).

  ## Examples

      iex> object = PyPort.eval!("object()")
      iex> PyPort.transfer(object, Process.whereis(PyPort.Supervisor))
      :ok
  """
  @spec transfer(Object.t() | Session.t() | atom(), pid()) :: :ok | {:error, Error.t()}
  def transfer(name, owner) when is_atom(name) and is_pid(owner),
    do: with({:ok, session} <- Registry.session(name), do: transfer(session, owner))

  def transfer(%Session{server: server, name: name} = session, owner) when is_pid(owner) do
    with {:error, :unknown} <- GenServer.call(server, {:transfer_session, name, owner}),
         do: {:error, gone(session)}
  catch
    :exit, _reason -> {:error, gone(session)}
  end

  def transfer(%Object{id: id} = object, owner) when is_pid(owner) do
    case Locator.connection(object, :infinity, nil) do
      {:error, error} ->
        {:error, error}

      # Here or elsewhere.
      _reachable ->
        case GenServer.call(Object.server(object), {:transfer, [id], owner}) do
          :ok -> :ok
          {:error, %Error{} = error} -> {:error, error}
          {:error, _ids} -> {:error, Error.released(object)}
        end
    end
  catch
    :exit, {:timeout, _call} -> {:error, Error.no_word_of(object)}
    :exit, _reason -> {:error, Error.released(object)}
  end

  defp gone(session),
    do: Error.unavailable("the session #{inspect(session)} has ended, or its server cannot be reached")

  @doc """
  Copies an object to another server, or a server of a pool: by cloudpickle where that is installed, else by pickle. The error
  names the type of an object that cannot be copied. Options: `:timeout`, for each of the two servers, and `:owner`.

  ## Examples

      iex> fraction = PyPort.eval!("from fractions import Fraction; Fraction(6, 8)")
      iex> {:ok, server} = PyPort.Server.start_link()
      iex> {:ok, copy} = PyPort.copy(fraction, server)
      iex> PyPort.eval("f * 4", %{f: copy}) |> elem(0)
      :ok
  """
  @spec copy(Object.t(), GenServer.server(), [{:timeout, timeout()} | {:owner, pid()}]) ::
          {:ok, Object.t()} | {:error, Error.t()}
  def copy(%Object{} = object, server, options \\ []) do
    with {:ok, data} <-
           call("port_server.runtime.copies:dump", [object], %{}, Keyword.take(options, [:timeout])) do
      options = Keyword.merge(options, server: server, return: :object)
      call("port_server.runtime.copies:load", [bytes(data)], %{}, options)
    end
  end

  @doc """
  Starts the Pythons of a pool anew, at once, so that each request from now on sees the Python files as they are; requests that
  run go on. In development the pools do it by themselves where a Python file has changed (`config :py_port, reload: true`).
  `PyPort.Pool.restart/1` does it one by one.

  ## Examples

      iex> {:ok, pool} = PyPort.Pool.start_link(size: 1)
      iex> PyPort.reload(pool)
      :ok
  """
  @spec reload(GenServer.server()) :: :ok | {:error, Error.t()}
  def reload(pool \\ PyPort.Default), do: PyPort.Pool.reload(pool)

  @doc """
  Runs `fun`, and releases the objects that came in meanwhile: by requests of the calling process, and by those of its
  tasks that have brought them back before `fun` returns.

  `transfer/2` keeps an object; to return it from `fun` does not. Objects that were given to another process by its name,
  with the option `:owner`, are kept as well.

  ## Examples

      iex> PyPort.with_objects(fn ->
      ...>   words = PyPort.eval!("import collections; collections.Counter('hello')", %{}, return: :object)
      ...>   PyPort.getitem(words, "l")
      ...> end)
      {:ok, 2}
  """
  @spec with_objects((... -> result)) :: result when result: var
  def with_objects(fun) when is_function(fun, 0), do: Ownership.with_scope(fun)

  @doc """
  How a server is, from what is known without asking Python: a list of `PyPort.Status`, one for each Python.

  ## Examples

      iex> [%PyPort.Status{os_pid: os_pid}] = PyPort.status()
      iex> is_integer(os_pid)
      true
  """
  @spec status(GenServer.server()) :: [Status.t()]
  def status(server \\ PyPort.Default), do: Status.of(server)

  @doc """
  The stacks of all threads of a server's Python, in the format of Python's `faulthandler`: the innermost call first.

  Python answers while its code runs, within a few ms. An error of kind `:unavailable` where no Python is running, and where
  it cannot answer: its process is stopped, or code in C holds the interpreter.
  Of a pool with several Pythons each has a heading.

  ## Examples

      iex> {:ok, stacks} = PyPort.stacks()
      iex> stacks =~ "(most recent call first)"
      true
  """
  @spec stacks(GenServer.server()) :: {:ok, String.t()} | {:error, Error.t()}
  def stacks(server \\ PyPort.Default) do
    case Locator.running(server) do
      {:ok, connections} ->
        PyPort.Server.Stacks.take_all(connections)

      {:remote, node, there} ->
        with {:ok, stacks} <- Remote.errand(node, __MODULE__, :stacks, [there]), do: stacks

      {:error, error} ->
        {:error, error}
    end
  end

  @doc """
  Marks a binary as `bytes` for Python, whatever the option `:binary_as` says of the others.

  ## Examples

      iex> PyPort.eval!("len(data)", %{data: PyPort.bytes(<<255, 254>>)})
      2
  """
  @spec bytes(binary()) :: PyPort.Bytes.t()
  def bytes(data) when is_binary(data), do: %PyPort.Bytes{data: data}

  @doc """
  Builds a Python environment at run time, for scripts and notebooks, and starts the default pool in it.

      :ok = PyPort.uv_init(File.read!("pyproject.toml"))

  docs/environments.md has a whole script. The environment is kept in a cache under the project's digest, so the same text
  is ready at once the next time, and a default pool that runs in it already is left alone. The output of uv goes to the
  group leader. The options are those of `PyPort.Env`, and `:name` (default: `:default`), under which servers find it:
  `python_env: :name`.

  Gives `{:error, %PyPort.Error{kind: :unavailable}}` with uv's words and what to do about them.
  """
  @spec uv_init(String.t(), keyword()) :: :ok | {:error, Error.t()}
  def uv_init(pyproject_toml, options \\ []) when is_binary(pyproject_toml) do
    case PyPort.Env.init(pyproject_toml, options) do
      {:ok, :default, true} -> PyPort.Application.restart_default()
      {:ok, _name, _changed?} -> :ok
      {:error, words} -> {:error, Error.unavailable(words)}
    end
  end

  @doc """
  The OS variables that tell PyPort on another machine where the environments of this node are, once
  `install_paths/0` have been copied there.

      FLAME.Pool, ..., backend: {FLAME.FlyBackend, env: PyPort.install_env()},
                       code_sync: [copy_paths: PyPort.install_paths()]

  They have to be set before `:py_port` starts there. Empty where no environment is in use.
  """
  @spec install_env() :: %{optional(String.t()) => String.t()}
  def install_env, do: PyPort.Env.install_env()

  @doc """
  The files and directories that hold the environments of this node, to be copied to the same paths on another
  machine: of the same kind (libc, machine) and, unless uv fetched it, with the same Python installed. An empty list
  where no environment is in use.

      for path <- PyPort.install_paths(), do: System.cmd("rsync", ["-aR", path, "worker:/"])
  """
  @spec install_paths() :: [Path.t()]
  def install_paths, do: PyPort.Env.install_paths()

  defp value!({:ok, value}), do: value
  defp value!({:error, %Error{} = error}), do: raise(error)

  defp check_code!(code) when is_binary(code), do: :ok
  defp check_code!(%Code{source: source}) when is_binary(source), do: :ok

  defp check_code!(other) do
    raise ArgumentError, "code must be a string, or a ~PY or ~P sigil, got: #{inspect(other)}"
  end

  defp check_target!(target) when is_binary(target) or is_struct(target, Object), do: :ok
  defp check_target!({%Object{}, attribute}) when is_binary(attribute), do: :ok

  defp check_target!(target) do
    raise ArgumentError,
          ~s(the target of a call must be a string like "math:sqrt", an object, or {object, "attribute"}, ) <>
            "got: #{inspect(target)}"
  end

  defp check_object!(%Object{}), do: :ok

  defp check_object!(other),
    do:
      raise(ArgumentError, "only a PyPort.Object, or a list of them, can be released, got: #{inspect(other)}")

  defp check_args!(args) do
    unless is_list(args) and not List.improper?(args) do
      raise ArgumentError,
            "the arguments of a call must be a list, got: #{inspect(args)}. " <>
              "One argument alone needs its brackets, too: [#{inspect(args)}]"
    end
  end

  defp check_globals!(globals) when is_map(globals) and not is_struct(globals), do: :ok

  defp check_globals!([_ | _] = globals) do
    if Keyword.keyword?(globals) do
      raise ArgumentError,
            "globals must be a map, got the keyword list #{inspect(globals)}. " <>
              "Options come third: eval(code, %{}, #{keyword_text(globals)})"
    else
      raise ArgumentError, "globals must be a map, got: #{inspect(globals)}"
    end
  end

  defp check_globals!(other), do: raise(ArgumentError, "globals must be a map, got: #{inspect(other)}")

  defp keyword_text(keyword), do: keyword |> inspect() |> String.slice(1..-2//1)

  defp check_kwargs!(kwargs) when is_map(kwargs) and not is_struct(kwargs), do: kwargs

  defp check_kwargs!(kwargs) do
    if Keyword.keyword?(kwargs) do
      Map.new(kwargs)
    else
      raise ArgumentError, "keyword arguments must be a map or a keyword list, got: #{inspect(kwargs)}"
    end
  end
end
