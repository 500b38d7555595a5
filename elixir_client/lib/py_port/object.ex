defmodule PyPort.Object do
  @moduledoc """
  A handle of an object that stays in Python.

  A value without a counterpart in Elixir (a data frame, a model, a generator) comes back as one of these, and with
  `return: :object` any value does. In the globals, arguments or target of a later request it is the very same object again:

      {:ok, counter} = PyPort.eval("import collections; collections.Counter(words)", %{words: ~w(a b a)})
      inspect(counter)          #=> #PyPort.Object<collections.Counter <collections.Counter object at 0x7f31c6d2b9d0>>
      {:ok, 2} = PyPort.call({counter, "total"}) ...

  It belongs to a process, and is released with it: the option `owner:` of the request names that process; without it
  the owner is the first of the caller's `$callers` (so a `Task` may return an object to whom it works for), else
  the caller. `PyPort.release/1` and the end of `PyPort.with_objects/1` release it earlier, `PyPort.transfer/2`
  gives it to another process.

  `repr` is a short text that was made with the handle: Python's own `repr` of built-in types, and
  `<module.Type object at 0x...>` of all others, because a `__repr__` may take long or fail, and the request would pay
  for it. To see it, ask for it: `PyPort.call("builtins:repr", [object])`.
  """

  # The token is the server's: it keeps handles that were made up, or come from a Python that has ended, out.
  @enforce_keys [:server, :token, :id, :type, :repr]
  defstruct [:server, :token, :id, :type, :repr]

  @type t :: %__MODULE__{
          server: pid(),
          token: binary(),
          id: pos_integer(),
          type: String.t(),
          repr: String.t()
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

  defimpl Inspect do
    def inspect(%{type: type, repr: repr}, _options) do
      "#PyPort.Object<#{text(type)} #{repr |> text() |> one_line()}>"
    end

    defp one_line(text), do: text |> String.split() |> Enum.join(" ") |> shorten()

    defp shorten(text) do
      if String.length(text) > 80, do: String.slice(text, 0, 79) <> "…", else: text
    end

    # To inspect a made-up handle must not raise.
    defp text(value) when is_binary(value) do
      if String.valid?(value), do: value, else: Kernel.inspect(value)
    end

    defp text(value), do: Kernel.inspect(value)
  end
end
