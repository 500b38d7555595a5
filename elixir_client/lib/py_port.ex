defmodule PyPort do
  @moduledoc """
  Python for Elixir, in a process of its own.

      iex> PyPort.eval("1 + 1")
      {:ok, 2}
      iex> PyPort.eval!("sum(data)", %{data: [1, 2, 3]})
      6
      iex> PyPort.call("math:sqrt", [9.0])
      {:ok, 3.0}

  A Python process is owned and supervised by a `PyPort.Server`. Without the option `:server` the
  default one answers, which starts with the application `:py_port`.

  ## What comes back

  `{:ok, value}`, or `{:error, %PyPort.Error{}}` for whatever the world does: Python raised, ended, took too
  long. A programmer's error (an unknown option, globals that are no map) raises `ArgumentError`.

  ## Options of a request

    * `:server` - the pid or name of a `PyPort.Server`. Default: `PyPort.Default`.
    * `:timeout` - how long to wait for the answer, in ms, the time spent in queues included, or `:infinity`.
      Default: 5_000.
    * `:binary_as` - what the binaries of globals and arguments are in Python: `:str` (they must be UTF-8) or
      `:bytes`. One binary alone becomes `bytes` by `bytes/1`. Default: `:str`.
    * `:stdout`, `:stderr` - the IO devices that get what the code prints. Default: the caller's group leader.
  """

  alias PyPort.{Code, Error, Request}

  @type code :: String.t() | Code.t()
  @type globals :: %{optional(atom() | String.t()) => term()}
  @type option ::
          {:server, GenServer.server()}
          | {:timeout, timeout()}
          | {:binary_as, :str | :bytes}
          | {:stdout, IO.device()}
          | {:stderr, IO.device()}

  @doc """
  Evaluates Python code and gives the value of its last expression.

  `globals` become the global names of the code; each request has a namespace of its own. Code that ends in a
  statement gives `nil`. `return` at the top level works.

  ## Examples

      iex> PyPort.eval("x * 2", %{x: 21})
      {:ok, 42}

      iex> PyPort.eval("if x > 0: return 'positive'", %{"x" => 1})
      {:ok, "positive"}

      iex> {:error, %PyPort.Error{kind: :python, type: "ZeroDivisionError"}} = PyPort.eval("1 / 0")
  """
  @spec eval(code(), globals(), [option()]) :: {:ok, term()} | {:error, Error.t()}
  def eval(code, globals \\ %{}, options \\ []) do
    check_code!(code)
    check_globals!(globals)
    Request.eval(code, globals, options)
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
  Calls a Python function by its name, `"module:qualified.name"`.

  The module is imported if it has not been. It is faster than `eval/3` where the code is one call anyway,
  and needs no Python source.

  ## Examples

      iex> PyPort.call("math:gcd", [12, 18])
      {:ok, 6}

      iex> PyPort.call("builtins:sorted", [[3, 1, 2]], %{reverse: true})
      {:ok, [3, 2, 1]}
  """
  @spec call(String.t(), list(), map() | keyword(), [option()]) :: {:ok, term()} | {:error, Error.t()}
  def call(target, args \\ [], kwargs \\ %{}, options \\ []) do
    unless is_binary(target) do
      raise ArgumentError, ~s(the target of a call must be a string like "math:sqrt", got: #{inspect(target)})
    end

    unless is_list(args) and not List.improper?(args) do
      raise ArgumentError,
            "the arguments of a call must be a list, got: #{inspect(args)}. " <>
              "One argument alone needs its brackets, too: [#{inspect(args)}]"
    end

    Request.call(target, args, check_kwargs!(kwargs), options)
  end

  @doc """
  Like `call/4`, but gives the value itself and raises `PyPort.Error`.
  """
  @spec call!(String.t(), list(), map() | keyword(), [option()]) :: term()
  def call!(target, args \\ [], kwargs \\ %{}, options \\ []),
    do: target |> call(args, kwargs, options) |> value!()

  @doc """
  Marks a binary as `bytes` for Python, whatever the option `:binary_as` says of the others.

  ## Examples

      iex> PyPort.eval!("len(data)", %{data: PyPort.bytes(<<255, 254>>)})
      2
  """
  @spec bytes(binary()) :: PyPort.Bytes.t()
  def bytes(data) when is_binary(data), do: %PyPort.Bytes{data: data}

  defp value!({:ok, value}), do: value
  defp value!({:error, %Error{} = error}), do: raise(error)

  defp check_code!(code) when is_binary(code), do: :ok
  defp check_code!(%Code{source: source}) when is_binary(source), do: :ok

  defp check_code!(other) do
    raise ArgumentError, "code must be a string, or a ~PY or ~P sigil, got: #{inspect(other)}"
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
