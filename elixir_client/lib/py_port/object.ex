defmodule PyPort.Object do
  @moduledoc """
  A handle of an object that stays in Python.

  A value without a counterpart in Elixir (a data frame, a model, a generator) comes back as one of these, and with
  `return: :object` any value does. In the globals, arguments or target of a later request it is the very same object again:

      {:ok, counter} = PyPort.eval("import collections; collections.Counter(words)", %{words: ~w(a b a)})
      inspect(counter)          #=> #PyPort.Object<collections.Counter Counter({'a': 2, 'b': 1})>
      {:ok, 2} = PyPort.call({counter, "total"}) ...

  It belongs to a process, and is released with it: the option `owner:` of the request names that process; without it
  the owner is the first of the caller's `$callers` (so a `Task` may return an object to whom it works for), else
  the caller. `PyPort.release/1` and the end of `PyPort.with_objects/1` release it earlier, `PyPort.transfer/2`
  gives it to another process.

  Where there was a C compiler when this library was compiled, the object is also released when no process of this node, and no
  table, refers to its handle any more: after a garbage collection. That holds for an object without the option `owner:` that was not
  transferred. A handle as a term of another kind (after `:erlang.term_to_binary/1`, or on another node) does not keep it.

  ## Inspecting

  To inspect an object asks its Python for the `repr`, at that moment and never before, and shows the beginning. This waits for
  200 ms at the most, or `inspect(object, custom_options: [repr_ms: 50])`; with 0 it does not ask. Where no answer comes in time, because
  Python is busy, or where the object has been released, the text in the field `repr` is shown. It was made with the handle and runs no code of the
  object's type: `<module.Type object at 0x...>` for most types. A Python that was late is not asked again for a second. `show/1` gives the whole `repr`.
  """

  # The token is the server's: it keeps handles that were made up, or come from a Python that has ended, out.
  @enforce_keys [:server, :token, :id, :type, :repr]
  defstruct [:server, :token, :id, :type, :repr, :ref]

  @type t :: %__MODULE__{
          server: pid(),
          token: binary(),
          id: pos_integer(),
          type: String.t(),
          repr: String.t(),
          # Of PyPort.Collector.
          ref: reference() | nil
        }

  @doc false
  # The process that owns its Python. Python learnt of it when it started; a node that has been given its name since
  # does not recognise the pid as one of its own.
  #
  # Raises for one that no server has made.
  @spec server(t()) :: pid()
  def server(%__MODULE__{server: pid, id: id}) when not (is_pid(pid) and is_integer(id) and id > 0) do
    raise ArgumentError,
          "a PyPort.Object comes from a request, with the pid of its server and a positive id, got one with " <>
            "server: #{inspect(pid)}, id: #{inspect(id)}"
  end

  def server(%__MODULE__{server: pid}) when node(pid) == node() or node(pid) != :nonode@nohost, do: pid

  def server(%__MODULE__{server: pid}) do
    [_node, number, serial] = pid |> :erlang.pid_to_list() |> to_string() |> String.split(".")
    :erlang.list_to_pid(~c"<0.#{number}.#{serial}")
  end

  @doc """
  The whole `repr` of an object, as Python has it now. The options are those of `PyPort.call/4`, such as `:timeout`.

  Raises `PyPort.Error`.

  ## Examples

      iex> object = PyPort.eval!("list(range(100))", %{}, return: :object)
      iex> object |> PyPort.Object.show() |> String.slice(-8, 8)
      " 98, 99]"
  """
  @spec show(t(), keyword()) :: String.t()
  # Requests stand above this module, since handles are among their values.
  def show(%__MODULE__{} = object, options \\ []), do: Inspect.impl_for!(object).show(object, options)
end
