defmodule :py_port do
  @moduledoc ~S"""
  PyPort for Erlang.

      1> py_port:eval("sum(xs)", #{xs => [1, 2, 3]}).
      {ok,6}
      2> py_port:call(math, sqrt, [9.0]).
      {ok,3.0}

  Code and names are strings, binaries or atoms. Globals and options are maps or proplists; the options are those of
  `PyPort`, in `call/4` also `kwargs`. An error is `{error, Map}` with the fields of `PyPort.Error`, whose `message` is a
  text for people. Wrong arguments are `error({badarg, Message})`. `None` is `nil`.
  """

  alias PyPort.{Error, Session}

  @type text :: iodata() | atom()
  @type pairs :: map() | [{atom() | binary(), term()}]
  @type options :: map() | [{atom(), term()}]
  @type failure :: {:error, %{kind: atom(), message: binary()}}
  @opaque stream :: (Enumerable.acc() -> Enumerable.result())

  @doc ~S"""
  Evaluates code, and gives the value of its last expression; see `PyPort.eval/3`.

      {ok, 6} = py_port:eval("sum(xs)", #{xs => [1, 2, 3]}, [{timeout, 2000}]).
  """
  @spec eval(text(), pairs(), options()) :: {:ok, term()} | failure()
  def eval(code, globals \\ %{}, options \\ %{}),
    do: safely(fn -> PyPort.eval(text(code), Map.new(globals), options(options)) end)

  @doc ~S"""
  Calls a function of a module, or of an object. The option `kwargs` has the keyword arguments.

      {ok, 3.0} = py_port:call(math, sqrt, [9.0]).
      {ok, [<<"a">>, <<"b">>]} = py_port:call(Object, split, [<<"-">>]).
  """
  @spec call(text() | PyPort.Object.t(), text(), list(), options()) :: {:ok, term()} | failure()
  def call(module, function, args, options \\ %{}) do
    {kwargs, options} = options |> options() |> Keyword.pop(:kwargs, %{})
    safely(fn -> PyPort.call(target(module, text(function)), args, Map.new(kwargs), options) end)
  end

  defp target(%PyPort.Object{} = object, function), do: {object, function}
  defp target(module, function), do: text(module) <> ":" <> function

  @doc ~S"""
  A stream of the items of a generator, or of any iterable; see `PyPort.stream/3`. `next/1` gives the items, `fold/3` takes
  all of them, and `stop/1` ends it before its end.

      Stream = py_port:stream("yield from range(3)", #{}, #{}).
  """
  @spec stream(text(), pairs(), options()) :: stream()
  def stream(code, globals, options) do
    stream = safely(fn -> PyPort.stream(text(code), Map.new(globals), options(options)) end)
    &Enumerable.reduce(stream, &1, fn item, _none -> {:suspend, {:item, item}} end)
  end

  @doc ~S"""
  The next item of a stream, with the rest of the stream.

      {ok, 0, Rest} = py_port:next(Stream).
  """
  @spec next(stream()) :: {:ok, term(), stream()} | :done | failure()
  def next(stream) do
    case safely(fn -> stream.({:cont, :none}) end) do
      {:suspended, {:item, item}, rest} -> {:ok, item, rest}
      {:error, error} -> {:error, error}
      _done -> :done
    end
  end

  @doc ~S"""
  Calls `fun(Item, Acc)` for each item of a stream.

      {ok, 3} = py_port:fold(fun(N, Sum) -> N + Sum end, 0, Stream).
  """
  @spec fold((term(), acc -> acc), acc, stream()) :: {:ok, acc} | failure() when acc: term()
  def fold(fun, acc, stream) do
    case next(stream) do
      {:ok, item, rest} -> fold(fun, fun.(item, acc), rest)
      :done -> {:ok, acc}
      {:error, error} -> {:error, error}
    end
  end

  @doc ~S"""
  Ends a stream: its `finally` runs.

      ok = py_port:stop(Rest).
  """
  @spec stop(stream()) :: :ok
  def stop(stream) do
    _ = stream.({:halt, :none})
    :ok
  end

  @doc ~S"""
  Opens a session, for the option `session` of later requests; see `PyPort.open_session/1`.

      {ok, Session} = py_port:open_session(#{}).
      {ok, nil} = py_port:eval("x = 41", #{}, #{session => Session}).
  """
  @spec open_session(options()) :: {:ok, Session.t()} | failure()
  def open_session(options \\ %{}), do: safely(fn -> PyPort.open_session(options(options)) end)

  @doc ~S"""
  Ends a session.

      ok = py_port:close_session(Session).
  """
  @spec close_session(Session.t()) :: :ok | failure()
  def close_session(session), do: safely(fn -> PyPort.close_session(session) end)

  @doc ~S"""
  The child specification of a server, with the options of `PyPort.Server`.

      #{start := _} = py_port:server_spec([{name, single}]).
  """
  @spec server_spec(options()) :: :supervisor.child_spec()
  def server_spec(options), do: options |> options() |> PyPort.Server.child_spec()

  @doc ~S"""
  The child specification of a pool, with the options of `PyPort.Pool`.

      #{start := _} = py_port:pool_spec(#{name => workers, size => 2}).
  """
  @spec pool_spec(options()) :: :supervisor.child_spec()
  def pool_spec(options), do: options |> options() |> PyPort.Pool.child_spec()

  @doc ~S"""
  Starts the application `py_port` with all that it needs.

      ok = py_port:start().
  """
  @spec start() :: :ok | {:error, term()}
  def start, do: with({:ok, _started} <- Application.ensure_all_started(:py_port), do: :ok)

  defp safely(fun) do
    case fun.() do
      {:error, %Error{} = error} -> {:error, described(error)}
      other -> other
    end
  rescue
    error in Error -> {:error, described(error)}
    error in ArgumentError -> :erlang.error({:badarg, Exception.message(error)})
  end

  defp described(error),
    do:
      error |> Map.from_struct() |> Map.delete(:__exception__) |> Map.put(:message, Exception.message(error))

  # Strings of Erlang are lists of characters.
  @texts [:init_code, :preload, :python, :cd]

  defp options(options) do
    for {name, value} <- Enum.to_list(:proplists.unfold(to_list(options))),
        do: {name, if(name in @texts and is_list(value), do: text(value), else: value)}
  end

  defp to_list(options) when is_map(options), do: Map.to_list(options)
  defp to_list(options), do: options

  defp text(name) when is_atom(name), do: Atom.to_string(name)

  defp text(text) do
    case :unicode.characters_to_binary(text) do
      text when is_binary(text) -> text
      _wrong -> :erlang.error({:badarg, "this is no text: #{inspect(text)}"})
    end
  end
end
