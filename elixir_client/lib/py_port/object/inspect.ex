defimpl Inspect, for: PyPort.Object do
  # Asks Python for the repr, for a limited time.
  @moduledoc false

  alias PyPort.Object

  # How long to wait for a repr, and how long not to ask a Python again that was late: a busy Python must not hold up a
  # process that prints a list of objects.
  @repr_ms 200
  @pause_ms 1_000

  @longest 80

  def inspect(%{type: type} = object, options) do
    repr = repr(object, Keyword.get(options.custom_options, :repr_ms, @repr_ms)) || object.repr
    "#PyPort.Object<#{text(type)} #{repr |> text() |> one_line()}>"
  end

  def show(object, options), do: PyPort.call!("builtins:repr", [object], %{}, options)

  defp repr(_object, 0), do: nil

  defp repr(object, ms) do
    server = Object.server(object)
    late = {__MODULE__, server}

    now = System.monotonic_time(:millisecond)

    if server != self() and now >= Process.get(late, now) do
      # The text of an error names the object, too, and does not ask again.
      Process.put(late, now + @pause_ms)
      answer = PyPort.call("port_server.runtime.objects:shown", [object], %{}, timeout: ms)
      unless match?({:error, %{kind: :timeout}}, answer), do: Process.delete(late)

      case answer do
        {:ok, repr} -> repr
        {:error, _error} -> nil
      end
    end
  rescue
    # A handle that was made up. To inspect one must not raise.
    _error -> nil
  end

  defp one_line(text), do: text |> String.split() |> Enum.join(" ") |> shorten()

  defp shorten(text) do
    if String.length(text) > @longest, do: String.slice(text, 0, @longest - 1) <> "…", else: text
  end

  defp text(value) when is_binary(value) do
    if String.valid?(value), do: value, else: Kernel.inspect(value)
  end

  defp text(value), do: Kernel.inspect(value)
end
